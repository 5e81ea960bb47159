"""The self-check's figures of vLLM: the same prompts, the roofline, what is compared, what is refused."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from build_engine import hf_config
from build_engine.planning import model_size
from build_engine.quantization import RECIPES
from inflight_tools.common.report import Failure
from inflight_tools.load.lengths import parse_lengths
from inflight_tools.load.perf_analyzer import Load
from inflight_tools.load.workload import PROBE, Workload
from inflight_tools.selfcheck import gpu_selfcheck
from inflight_tools.selfcheck import vllm as selfcheck_vllm
from inflight_tools.selfcheck import vllm_child as child
from inflight_tools.selfcheck import vllm_facts as facts
from inflight_tools.selfcheck.kind import Setup
from inflight_tools.selfcheck.report import EngineReport, Report, markdown
from inflight_tools.selfcheck.tables import against_plain
from tests.unit.machines.tokenizer_kinds import write_folder

pytestmark = pytest.mark.fast

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = write_folder(tmp_path / "checkpoint")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def recorded(concurrency: int, ms_per_token: int, count: int = 4, tokens: int = 8) -> dict[str, Any]:
    """What the child leaves of a level: requests one after another, `concurrency` at once, a token every so often."""
    requests = []
    for number in range(count):
        sent = (number // concurrency) * tokens * ms_per_token * 1_000_000
        arrivals = [[sent + (place + 1) * ms_per_token * 1_000_000, 1] for place in range(tokens)]
        requests.append({"sent": sent, "arrivals": arrivals, "prompt_tokens": 64})
    return {"concurrency": concurrency, "warmup": 0, "requests": requests}


# -- figures -----------------------------------------------------------------------------------------------------------


def test_prompts_are_those_of_the_load_test(checkpoint: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    level = selfcheck_vllm.workload(checkpoint, 40)
    assert (level["warmup"], len(level["prompts"])) == (40, 200), "as load_test.py plans them"
    words = 200 / len(tokenizer.encode(PROBE).ids)
    length = parse_lengths("64", 0)
    work = Workload(length, length, words, seed=0)
    sent = work.requests(f"{Load(concurrency=40)} run 0", 200)
    assert level["prompts"][7] == tokenizer.encode(sent[7]["text_input"][0]).ids
    assert len({tuple(prompt) for prompt in level["prompts"]}) == 200
    assert level["prompts"][0] != selfcheck_vllm.workload(checkpoint, 4)["prompts"][0]


def test_bare_figures_are_counted_as_the_load_test_counts_them() -> None:
    level = selfcheck_vllm.bare_level(recorded(2, 10))
    assert level.tokens_per_s == pytest.approx(200.0)
    assert (level.ttft.p50, level.itl.p50, level.prompt_tokens) == (10.0, 10.0, 64.0)


def test_the_share_of_the_bandwidth(checkpoint: Path) -> None:
    step = selfcheck_vllm.StepBytes(checkpoint, "bfloat16", "auto")
    config = hf_config.load(checkpoint)
    assert step.weights(1) == model_size.bytes_read_per_step(config, RECIPES["none"], 1)
    assert step.keys_and_values(10) == 10 * 2 * 2 * 2 * 16 * 2  # K and V, layers, heads, their size, bytes
    assert selfcheck_vllm.StepBytes(checkpoint, "bfloat16", "fp8").keys_and_values(10) == step.keys_and_values(5)
    assert selfcheck_vllm.StepBytes(checkpoint, "float32", "auto").weights(1) == 2 * step.weights(1)
    # Ten tokens a second of one sequence read every weight ten times; with two sequences a step makes two tokens.
    assert step.share(10.0, 1, 0, 10.0 * step.weights(1)) == pytest.approx(1.0)
    assert step.share(10.0, 2, 0, 10.0 * step.weights(1)) == pytest.approx(0.5)
    row = selfcheck_vllm.level_row(selfcheck_vllm.bare_level(recorded(1, 10)), {}, step, 1e9)
    assert row["vllm_bandwidth_share"] == pytest.approx((step.weights(1) + step.keys_and_values(96)) * 100 / 1e9)
    assert "ratio" not in row, "nothing was served"


def test_a_child_that_measured_becomes_a_table(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"version": "0.32.0", "dtype": "bfloat16", "kv_cache_dtype": "auto", "devices": 2}
    found |= {"bandwidth": 1e9, "bandwidth_of": "copies", "levels": [recorded(1, 10)]}
    monkeypatch.setattr(selfcheck_vllm, "child", lambda *_: found)
    times = {"p50": 12.5}
    load = {"levels": [{"value": 1, "load": "concurrency 1", "tokens_per_s": 90.0, "ttft": times, "itl": times}]}
    engine = EngineReport("fp8", str(checkpoint), load=load)
    engine.bench = selfcheck_vllm.bench(Setup(checkpoint, checkpoint.parent, (1,)), engine)
    (level,) = engine.bench["levels"]
    assert level["ratio"] == pytest.approx(0.9)
    assert level["served_bandwidth_share"] == pytest.approx(0.9 * level["vllm_bandwidth_share"])
    text = markdown(Report({}, engines=[engine], package="vLLM"))
    assert "| 1 | 90.0 | 100.0 | 0.900 | 12.5 | 10.0 | 12.50 | 10.00 |" in text
    assert "beside bare vLLM: version 0.32.0, dtype bfloat16, kv_cache_dtype auto, devices 2, bandwidth_gb_s" in text
    assert engine.bench["bandwidth_gb_s"] == 2.0, "of both"
    assert "TensorRT" not in text


def test_a_child_that_failed_is_a_fault(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def windows(*given: Any) -> list[list[int]]:
        asked.append(given)
        return [[1, 2]]

    monkeypatch.setattr(selfcheck_vllm, "chosen_windows", windows)
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho 'no such device' >&2; exit 1\n")
    program.chmod(0o755)
    setup = Setup(checkpoint, tmp_path, (1,), python=str(program), options={"max_seq_len": 100})
    assert selfcheck_vllm.check_facts(setup) == {"problem": "vLLM cannot be looked into: no such device"}
    engine = EngineReport("none", str(checkpoint), perplexity=selfcheck_vllm.perplexity(setup, checkpoint))
    engine.bench = selfcheck_vllm.bench(setup, engine)
    assert list(engine.faults()) == ["perplexity: no such device", "bench: no such device"]
    assert asked == [(checkpoint, 100)], "no window is longer than what is served"


def test_a_level_that_fails_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def result_of(command: list[str], *_: Any) -> dict[str, Any]:
        level = int(command[command.index("--concurrency") + 1])
        return {"problem": "an empty export"} if level == 256 else {"levels": [{"value": level}]}

    monkeypatch.setattr(gpu_selfcheck, "result_of", result_of)
    server: Any = argparse.Namespace(grpc_url="here")
    found = gpu_selfcheck.load(server, Setup(tmp_path, tmp_path, (1, 256, 512)), tmp_path)
    assert [level["value"] for level in found["levels"]] == [1, 512]
    assert found["problem"] == "concurrency 256: an empty export"
    assert "problem" not in gpu_selfcheck.load(server, Setup(tmp_path, tmp_path, (1,)), tmp_path)


def test_recipes_against_plain_weights() -> None:
    plain = {"perplexity": {"measured": 10.0}, "bench": {"levels": [{"concurrency": 8, "vllm_tokens_per_s": 50.0}]}}
    fp8 = {"perplexity": {"measured": 11.0}, "bench": {"levels": [{"concurrency": 8, "vllm_tokens_per_s": 75.0}]}}
    lines = list(against_plain({"none": plain, "fp8": fp8}))
    assert "| fp8 | perplexity | 10 | 11 | 1.100 |" in lines
    assert "| fp8 | tokens/s at 8, bare | 50 | 75 | 1.500 |" in lines
    assert list(against_plain({"fp8": fp8})) == list(against_plain({"none": plain})) == []
    assert list(against_plain({"none": plain, "fp8": {"perplexity": {"problem": "no"}}})) == []


# -- the child, without vLLM -------------------------------------------------------------------------------------------


class Engine:
    """Gives every request under way `tokens` a step; `short` answers end a token early."""

    def __init__(self, tokens: int = 1, short: bool = False) -> None:
        self._tokens, self._short = tokens, short
        self._left: dict[str, int] = {}
        self.widest = 0

    def add_request(self, key: str, _prompt: Any, params: Any) -> None:
        self._left[key] = params["max_tokens"] - self._short
        self.widest = max(self.widest, len(self._left))

    def step(self) -> list[Any]:
        results = []
        for key, left in list(self._left.items()):
            count = min(left, self._tokens)
            self._left[key] = left - count
            finished = self._left[key] == 0
            if finished:
                del self._left[key]
            output = argparse.Namespace(token_ids=list(range(count)))
            results.append(argparse.Namespace(request_id=key, outputs=[output], finished=finished))
        return results


def installed() -> Any:
    return argparse.Namespace(sampling_params=lambda **values: values, tokens_input=list, delta="delta")


@pytest.mark.parametrize("tokens", [1, 3])
def test_bare_requests_keep_their_width(tokens: int) -> None:
    engine = Engine(tokens)
    ended = child.drive(engine, installed(), [[1, 2]] * 7, 5, 3)
    assert (len(ended), engine.widest) == (7, 3)
    assert all(sum(count for _, count in request["arrivals"]) == 5 for request in ended)
    assert all(request["arrivals"][0][0] >= request["sent"] for request in ended)


def test_a_shorter_answer_is_no_measurement() -> None:
    with pytest.raises(RuntimeError, match="4 tokens came where 5"):
        child.drive(Engine(short=True), installed(), [[1]], 5, 1)


def test_bandwidth_is_a_positive_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "COPIED", 1 << 20)
    assert 1e7 < child.cpu_bandwidth(2) < 1e13


def test_what_is_missing_in_a_release_is_found() -> None:
    found = list(
        facts.missing(
            {"json.dumps": ("obj", "colour"), "json.nothing": (), "no.such.module": ()}, {"json.JSONDecoder": ("x",)}
        )
    )
    assert [what for what, *_ in found] == [
        "json.dumps(colour)",
        "json.nothing",
        "no.such.module",
        "json.JSONDecoder.x",
    ]


# -- options -----------------------------------------------------------------------------------------------------------


def options(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> argparse.Namespace:
    monkeypatch.setattr("sys.argv", ["gpu_selfcheck.py", *arguments])
    return gpu_selfcheck.parse()


def test_each_engine_has_its_levels_and_python(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: Path
) -> None:
    monkeypatch.setattr(gpu_selfcheck, "VLLM_PYTHON", tmp_path / "none")
    setup = gpu_selfcheck.setup_of(options(monkeypatch), tmp_path)
    assert (setup.concurrencies, setup.python) == ((1, 8, 32), "")
    setup = gpu_selfcheck.setup_of(options(monkeypatch, "--engine", "vllm"), tmp_path)
    assert (setup.concurrencies, setup.python) == ((1, 4, 16, 64, 256, 512), "")
    (tmp_path / "python").symlink_to("/bin/sh")
    given = ["--engine", "vllm", "--python", str(tmp_path / "python"), "--concurrency", "8,2"]
    given += ["--engine-options", '{"enforce_eager": true}']
    setup = gpu_selfcheck.setup_of(options(monkeypatch, *given), tmp_path)
    assert (setup.concurrencies, setup.python) == ((2, 8), str(tmp_path / "python"))
    assert setup.options == {"enforce_eager": True}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--concurrency", "0"], "--concurrency must be"),
        (["--concurrency", "1,x"], "--concurrency must be"),
        (["--python", "/bin/sh"], "--python is for vllm"),
        (["--engine", "vllm", "--python", "/nowhere/python"], "cannot be run"),
    ],
)
def test_options_that_cannot_be(
    arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(Failure, match=says):
        gpu_selfcheck.setup_of(options(monkeypatch, *arguments), tmp_path)


@pytest.mark.parametrize("arguments", [["--engine", "fp8=engine"], ["--engine-options", "[]"], ["--parts", "all"]])
def test_options_that_argparse_refuses(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit):
        options(monkeypatch, *arguments)
