"""The TensorRT-LLM engine through a real tritonserver, on the stand-in: one rank, four ranks, checkpoints."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from inflight_tools.common.layout import ENGINE
from inflight_tools.common.report import Failure
from inflight_tools.server import import_config
from inflight_tools.server.server import Server, ServerConfig
from tests.conftest import MakeServer
from tests.doubles.folders import environment, write_checkpoint, write_engine
from tests.harness.grpc_client import GrpcClient, RequestFailed
from tests.harness.http_client import HttpClient, wait_for_metric

pytestmark = pytest.mark.server

Serve = Callable[..., Server]


@pytest.fixture
def serve(make_server: MakeServer, tmp_path: Path) -> Serve:
    """Starts a server of model `llm` on an engine of the stand-in."""

    def start(
        folder: Path,
        *,
        profile: str = "1.2",
        double: dict[str, Any] | None = None,
        ready: bool = True,
        **parameters: Any,
    ) -> Server:
        site = environment(tmp_path / "site", profile, **(double or {}))
        mpi = importlib.util.find_spec("mpi4py")
        if mpi is not None and mpi.origin is not None:
            site["PYTHONPATH"] += f":{Path(mpi.origin).parent.parent}"
        models = {"llm": {"engine_dir": str(folder), **parameters}}
        return make_server(models, engine="auto", environment=site, ready=ready)

    return start


def finishes(pending: Any) -> list[str]:
    """Finish reasons in the order they came."""
    return [
        reason.decode()
        for response in pending.responses
        for reason in response.outputs.get("finish_reason", [])
        if reason
    ]


def test_one_rank_serves_the_contract(serve: Serve, tmp_path: Path) -> None:
    server = serve(
        write_engine(tmp_path / "engine", ENGINE, max_beam_width=4),
        double={"step_ms": 2},
        max_restarts=3,
    )
    http = HttpClient(server.http_url)
    with GrpcClient(server.grpc_url) as grpc:
        unary = grpc.generate("Tell me", stream=False, max_tokens=24, return_finish_reason=True).text
        streamed = grpc.generate("Tell me", max_tokens=24, return_finish_reason=True)
        assert streamed.text == unary
        assert len(streamed.responses) > 3
        stop = next(
            unary[place : place + 3] for place in range(4, len(unary)) if unary.count(unary[place : place + 3]) == 1
        )
        stopped = grpc.generate("Tell me", max_tokens=24, stop_words=[stop], return_finish_reason=True)
        assert stopped.text == unary[: unary.index(stop)]
        several = grpc.generate(
            "Tell me",
            stream=False,
            max_tokens=6,
            temperature=1.0,
            seed=3,
            num_return_sequences=3,
            return_finish_reason=True,
        )
        assert len(set(several.texts)) == 3
        guided = grpc.generate(
            "Tell me",
            max_tokens=40,
            guided_decoding_guide_type="json_schema",
            guided_decoding_guide='{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"]}',
        )
        assert guided.text == '{"a":0}'
        with pytest.raises(RequestFailed, match="lora_name is not supported"):
            grpc.generate("Tell me", lora_name="x")
        long = [grpc.start("Tell me", max_tokens=1500) for _ in range(4)]
        for pending in long:
            pending.first()
    wait_for_metric(server.metrics_url, 0, "inflight_requests_running")
    wait_for_metric(server.metrics_url, 4, "inflight_requests_total", outcome="cancelled")
    status, answer = http.generate(text_input="Tell me", max_tokens=24)
    assert (status, answer["text_output"]) == (200, unary)
    wait_for_metric(server.metrics_url, 512, "nv_trt_llm_kv_cache_block_metrics", kv_cache_block_type="max")
    wait_for_metric(server.metrics_url, 0, "nv_trt_llm_kv_cache_block_metrics", kv_cache_block_type="used")


@pytest.mark.full
@pytest.mark.parametrize(("write", "fault"), [(write_engine, "stall_at"), (write_checkpoint, "die_at")])
def test_an_engine_that_stops_iterating_is_started_again(
    serve: Serve, tmp_path: Path, write: Callable[[Path, Path], Path], fault: str
) -> None:
    """A compiled engine, and a checkpoint whose worker dies without a word."""
    server = serve(
        write(tmp_path / "engine", ENGINE),
        engine="tensorrt_llm",
        double={fault: 30},
        engine_options={"stall_timeout_ms": 1500},
    )
    with GrpcClient(server.grpc_url) as grpc:
        assert grpc.generate("one", stream=False, max_tokens=8).text
        with pytest.raises(RequestFailed, match="restarted"):
            grpc.generate("two", max_tokens=64)
        again(grpc)
    wait_for_metric(server.metrics_url, 1, "inflight_engine_restarts_total")


def again(grpc: GrpcClient, timeout_s: float = 30.0) -> None:
    """Wait until requests are answered again."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            assert grpc.generate("three", stream=False, max_tokens=8).text
            return
        except RequestFailed:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)


@pytest.mark.full
def test_a_release_without_engines_says_what_to_do(serve: Serve, tmp_path: Path) -> None:
    folder = write_engine(tmp_path / "engine", ENGINE, "1.3", with_manifest=False)
    with pytest.raises(
        Failure, match=r"cannot run compiled engines any more; serve this one with TensorRT-LLM 1\.2\.1"
    ):
        serve(folder, profile="1.3")


@pytest.mark.full
def test_a_quantized_checkpoint_is_served_without_engines(serve: Serve, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", ENGINE)
    server = serve(folder, profile="1.3", engine="tensorrt_llm")
    with GrpcClient(server.grpc_url) as grpc:
        streamed = grpc.generate("Tell me", max_tokens=16, return_finish_reason=True)
        assert streamed.text == grpc.generate("Tell me", stream=False, max_tokens=16).text
        assert finishes(streamed) == ["length"]


# As the README and the documents of NVIDIA's backend, its clients, and guides of cloud providers write them.
SAMPLES: list[dict[str, Any]] = [
    {"text_input": "What is machine learning?", "max_tokens": 20, "bad_words": "", "stop_words": ""},
    {"text_input": "What is", "max_tokens": 20, "bad_words": "", "stop_words": "", "pad_id": 2, "end_id": 2},
    {"text_input": "Born in", "max_tokens": 10, "temperature": 0.7, "top_k": 50, "top_p": 0.9, "random_seed": 3},
    {"text_input": "Born in", "max_tokens": 10, "seed": 3, "repetition_penalty": 1.1, "min_length": 2, "stream": False},
    {
        "text_input": "Born in",
        "max_tokens": 10,
        "beam_width": 2,
        "length_penalty": 1.2,
        "exclude_input_in_output": True,
    },
    {"text_input": "Born in", "max_tokens": 10, "return_log_probs": True, "temperature": 1.0, "seed": 5},
    {"text_input": "How do I", "parameters": {"max_tokens": 12, "bad_words": [""], "stop_words": [""]}},
    {"text_input": "Earth + Water =", "max_tokens": 20, "bad_words": [], "stop_words": ["\n"], "stream": False},
    {
        "text_input": "List a colour:",
        "max_tokens": 20,
        "guided_decoding_guide_type": "json_schema",
        "guided_decoding_guide": '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}',
    },
]
REFUSED: list[tuple[dict[str, Any], str]] = [  # what import_config.py says that it has no counterpart
    ({"text_input": "Continue", "max_tokens": 8, "num_draft_tokens": 10, "use_draft_logits": True}, "num_draft_tokens"),
    ({"text_input": "Born in", "max_tokens": 8, "return_context_logits": True}, "return_context_logits"),
    ({"text_input": "Born in", "max_tokens": 8, "lora_task_id": 1}, "lora_task_id"),
]


def replay(http: HttpClient) -> list[str]:
    """Every sample request to one model: same names in, same names out; the texts."""
    texts = []
    for sample in SAMPLES:
        status, answer = http.generate(**sample)
        assert status == 200, answer
        assert {"model_name", "model_version", "text_output"} <= set(answer)
        assert ({"output_log_probs", "cum_log_probs"} <= set(answer)) == ("return_log_probs" in sample)
        texts.append(str(answer["text_output"]))
        assert texts[-1].startswith(str(sample["text_input"])) != bool(sample.get("exclude_input_in_output"))
    for body, name in REFUSED:
        status, answer = http.generate(**body)
        assert (status, name in answer["error"]) == (400, True), answer
    streamed = list(http.generate_stream(text_input="Born in", max_tokens=10))
    assert all("text_output" in event for event in streamed)
    assert len(streamed) > 1
    return texts


def test_clients_of_nvidias_ensemble_keep_their_requests(tmp_path: Path) -> None:
    """Its five configuration files imported, its documented requests replayed: same names in, same names out."""
    engine = write_engine(tmp_path / "engines", ENGINE, with_manifest=False, max_beam_width=2)
    repository = tmp_path / "triton_model_repo"
    llm = {"gpt_model_type": "inflight_fused_batching", "gpt_model_path": str(engine), "max_beam_width": "2"}
    llm["decoding_mode"] = "${decoding_mode}"
    for name, parameters in {
        "tensorrt_llm": llm,
        "preprocessing": {"tokenizer_dir": str(ENGINE)},
        "postprocessing": {"tokenizer_dir": str(ENGINE)},
        "ensemble": {},
        "tensorrt_llm_bls": {"accumulate_tokens": "true"},
    }.items():
        (repository / name).mkdir(parents=True)
        text = f'name: "{name}" max_batch_size: 4\n'
        for key, value in parameters.items():
            text += f'parameters: {{ key: "{key}" value: {{ string_value: "{value}" }} }}\n'
        (repository / name / "config.pbtxt").write_text(text)
    served = tmp_path / "served"
    for name in ("ensemble", "tensorrt_llm_bls"):
        import_config.write(import_config.plan(repository, name), served)
    config = ServerConfig(
        repository=served,
        models=("ensemble", "tensorrt_llm_bls"),
        environment=environment(tmp_path / "site"),
        log=tmp_path / "log",
    )
    with Server(config) as server:
        server.wait_ready(120)
        ensemble, bls = (replay(HttpClient(server.http_url, model=name)) for name in config.models)
        assert ensemble == bls


def need_mpi() -> None:
    """The four ranks are real processes under a real mpirun."""
    if shutil.which("mpirun") is None or importlib.util.find_spec("mpi4py") is None:
        pytest.skip("mpirun or mpi4py is missing: apt-get install openmpi-bin and pip install mpi4py==4.1.2")


def ranks_of(server: Server) -> list[psutil.Process]:
    """The ranks' processes."""
    found = []
    for pid in server.processes():
        process = psutil.Process(pid)
        command = process.cmdline()
        if "inflight.engine_process.ranks" in command and "mpirun" not in command[0]:
            found.append(process)
    return found


def test_four_ranks_under_mpirun(serve: Serve, tmp_path: Path) -> None:
    need_mpi()
    server = serve(write_engine(tmp_path / "engine", ENGINE, world=4))
    ranks = ranks_of(server)
    assert len(ranks) == 4
    with GrpcClient(server.grpc_url) as grpc:
        assert grpc.generate("Tell me", stream=False, max_tokens=16).text
        before = [sum(rank.cpu_times()[:2]) for rank in ranks]
        time.sleep(2.0)
        used = [sum(rank.cpu_times()[:2]) - start for rank, start in zip(ranks, before, strict=True)]
        assert max(used) < 0.5, "idle ranks must not burn cores"
        pending = grpc.start("Tell me", max_tokens=2000)
        pending.first()
        victim = next(rank for rank in ranks if rank.environ().get("OMPI_COMM_WORLD_RANK") == "2")
        os.kill(victim.pid, signal.SIGKILL)
        with pytest.raises(RequestFailed, match="restarted"):
            pending.result()
        again(grpc)
    assert len(ranks_of(server)) == 4
    assert not {rank.pid for rank in ranks} & {rank.pid for rank in ranks_of(server)}
