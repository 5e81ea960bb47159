"""The contract's model parameters: what each changes, in models that are loaded into the running server.

Which values each takes is in tests/unit/model/test_parameters.py; loading and unloading is in tests/reliability.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from inflight.request.contract import declared_inputs
from inflight_tools.server.server import Server, ServerConfig
from tests.contract.conftest import FAST
from tests.contract.forms import PROMPT, ask
from tests.harness.grpc_client import GrpcClient, RequestFailed
from tests.harness.http_client import HttpClient
from tests.harness.repository import write_model

pytestmark = pytest.mark.server

ROOT = Path(__file__).resolve().parents[2]
Load = Callable[..., tuple[int, str]]


@pytest.fixture
def load(server: Server) -> Iterator[Load]:
    """Load a model into the running server; gives the status and the error. It is unloaded at the end."""
    http = HttpClient(server.http_url)
    engine = server.config.repository / "llm" / "1" / "engine"
    loaded: list[str] = []

    def load_model(name: str, pbtxt: str = "", **parameters: Any) -> tuple[int, str]:
        values = {"engine": "simulated", "engine_options": FAST, **parameters}
        write_model(server.config.repository, name, values, engine_dir=engine.resolve(), config=pbtxt)
        loaded.append(name)
        status, body = http.call("POST", f"/v2/repository/models/{name}/load", b"{}")
        return status, body.decode()

    yield load_model
    for name in loaded:
        http.call("POST", f"/v2/repository/models/{name}/unload", b"{}")


def works(client: GrpcClient, model: str, **values: Any) -> Any:
    return ask(client, {"max_tokens": 4, "return_num_output_tokens": True, **values}, model=model)


def test_defaults_and_limits_of_tokens(load: Load, grpc: GrpcClient) -> None:
    """default_max_tokens, max_tokens_limit, exclude_input_in_output, max_prompt_bytes, metrics and sender options."""
    status, error = load(
        "limits",
        default_max_tokens="7",
        max_tokens_limit="9",
        exclude_input_in_output="false",
        max_prompt_bytes="64",
        metrics_interval_ms="100",
        sender_threads="1",
        drain_notice_ms="0",
        drain_timeout_ms="1000",
        load_timeout_s="60",
        max_restarts="1",
        stall_timeout_ms="5000",
        max_queue_tokens="1000",
    )
    assert status == 200, error
    assert ask(grpc, {"return_num_output_tokens": True}, model="limits").output_tokens == 7
    assert works(grpc, "limits", max_tokens=50).output_tokens == 9
    assert works(grpc, "limits").text.startswith(PROMPT)
    with pytest.raises(RequestFailed, match="text_input is longer than the 64 bytes"):
        works(grpc, "limits", text_input="x" * 65)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("asked", ["true", "false"])
def test_the_end_comes_apart_from_the_last_text_where_it_is_asked_for(
    asked: str, stream: bool, load: Load, server: Server
) -> None:
    """pytriton's client reads no outputs of the response that is the last one."""
    name = f"pytriton_{asked}_{stream}"
    status, error = load(name, empty_final_response=asked)
    assert status == 200, error
    values: dict[str, Any] = {"text_input": PROMPT, "max_tokens": 12, "stream": stream}
    with GrpcClient(server.grpc_url) as client:
        whole = client.send(client.build(model=name, **values)).result()
        read = b"".join(
            response.outputs["text_output"][0] for response in whole.responses if not response.final
        ).decode()
        assert (read == whole.text) is (asked == "true")
        assert bool(whole.responses[-1].outputs) is (asked == "false")
        assert whole.finals == 1
        with pytest.raises(RequestFailed, match="temperature"):
            client.send(client.build(model=name, temperature=-1.0, **values)).result()
    http = HttpClient(server.http_url, name)
    if stream:
        assert "".join(event["text_output"] for event in http.generate_stream(**values)) == whole.text
    else:
        assert http.generate(**values)[1]["text_output"] == whole.text


def test_a_stream_begins_with_the_prompt_where_the_model_says_so(load: Load, server: Server) -> None:
    status, error = load("loud", exclude_input_in_output="false", stream_echo="true")
    assert status == 200, error
    with GrpcClient(server.grpc_url) as client:
        assert works(client, "loud", stream=True).text.startswith(PROMPT)
        assert not works(client, "loud", stream=True, exclude_input_in_output=True).text.startswith(PROMPT)


def test_a_default_deadline_and_a_chat_template_of_the_operators_own(
    load: Load, server: Server, grpc: GrpcClient
) -> None:
    folder = server.config.repository / "ours" / "1"
    folder.mkdir(parents=True)
    (folder / "ours.jinja").write_text("ours:{{ messages[0].content }}")
    (folder.parent / "1" / "engine").symlink_to((server.config.repository / "llm" / "1" / "engine").resolve())
    parameters = {"engine": "simulated", "default_deadline_ms": "200", "chat_template": "ours.jinja"}
    options = json.dumps({"step_ms": 20.0})
    text = 'backend: "inflight"\nmodel_transaction_policy { decoupled: true }\ninstance_group [{ kind: KIND_CPU }]\n'
    for name, value in {**parameters, "engine_options": options}.items():
        text += f"parameters {{ key: {json.dumps(name)} value {{ string_value: {json.dumps(value)} }} }}\n"
    (folder.parent / "config.pbtxt").write_text(text)
    http = HttpClient(server.http_url)
    status, body = http.call("POST", "/v2/repository/models/ours/load", b"{}")
    assert status == 200, body
    messages = json.dumps([{"role": "user", "content": "Hi"}])
    values = {"return_finish_reason": True, "exclude_input_in_output": False, "messages": messages}
    got = ask(grpc, values, model="ours")
    assert got.text.startswith("ours:Hi")
    assert got.finish_reason == "deadline"
    http.call("POST", "/v2/repository/models/ours/unload", b"{}")


@pytest.mark.parametrize("strategy", ["dynamic", "static", "inflight"])
def test_the_batching_strategy(strategy: str, load: Load, server: Server) -> None:
    options = {"step_ms": 10.0, "prefill_us_per_token": 0.0, "decode_us_per_sequence": 0.0}
    status, error = load(
        strategy, engine_options=options, batching_strategy=strategy, batching_max_wait_ms="300", max_running="2"
    )
    assert status == 200, error
    with GrpcClient(server.grpc_url) as client:
        began = time.monotonic()
        alone = works(client, strategy)
        waited = time.monotonic() - began
        assert alone.output_tokens == 4
        if strategy == "inflight":
            assert waited < 0.25
        else:
            assert 0.3 <= waited < 1.0, "it waits for others to come"
        long = client.send(client.build(model=strategy, text_input="a", max_tokens=60, stream=True))
        short = client.send(client.build(model=strategy, text_input="b", max_tokens=5, stream=True))
        long.first()
        third = client.send(client.build(model=strategy, text_input="c", max_tokens=1, stream=True))
        for pending in (short, long, third):
            pending.result()
        joined = third.responses[-1].at < long.responses[-1].at
        assert joined is (strategy == "inflight"), "only in-flight batching adds to a running batch"


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"max_runing": "4"}, "did you mean max_running?"),
        ({"engine_options": {"step_mss": 1}}, "step_mss"),
        ({"engine_dir": "nowhere"}, "nowhere"),
        ({"engine_options": {"fail_load": "the weights are gone; build the engine again."}}, "the weights are gone"),
        ({"load_timeout_s": "1", "engine_options": {"load_ms": 5000}}, "load_timeout_s"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_wrong_parameter_fails_the_load_with_one_clear_sentence(
    parameters: dict[str, Any], says: str, load: Load, request: pytest.FixtureRequest, grpc: GrpcClient
) -> None:
    name = "bad" + str(abs(hash(request.node.name)))
    status, error = load(name, **parameters)
    assert status == 400
    assert says in error
    assert name in error
    assert "Traceback" not in error
    assert works(grpc, "llm").text, "the other models go on"


def test_more_than_one_instance_is_refused(load: Load, server: Server) -> None:
    model = server.config.repository / "twice"
    write_model(server.config.repository, "twice", {"engine": "simulated"})
    text = (model / "config.pbtxt").read_text().replace("count: 1", "count: 2")
    (model / "config.pbtxt").write_text(text)
    status, body = HttpClient(server.http_url).call("POST", "/v2/repository/models/twice/load", b"{}")
    assert status == 400
    assert b"more than one instance" in body
    assert b"Traceback" not in body


def test_the_configuration_that_triton_shows_is_the_contract(server: Server) -> None:
    for model, batch in (("llm", 0), ("llm_batched", 1)):
        status, body = HttpClient(server.http_url).call("GET", f"/v2/models/{model}/config")
        config = json.loads(body)
        assert status == 200
        assert config["max_batch_size"] == batch
        assert config["model_transaction_policy"] == {"decoupled": True}
        shown = {item["name"]: (item["data_type"].removeprefix("TYPE_"), *item["dims"]) for item in config["input"]}
        assert shown == {name: (type_, dims) for name, type_, dims in declared_inputs()}
        assert all(item["optional"] for item in config["input"])


def test_the_shipped_configurations_serve_without_auto_completion(tmp_path: Path, server: Server) -> None:
    """`model_repository/*/config.pbtxt` are complete: a server that completes nothing loads them as they are."""
    repository = tmp_path / "shipped"
    engine = (server.config.repository / "llm" / "1" / "engine").resolve()
    for model in ("llm", "llm_batched"):
        (repository / model / "1").mkdir(parents=True)
        (repository / model / "1" / "engine").symlink_to(engine)
        text = (ROOT / "model_repository" / model / "config.pbtxt").read_text()
        engine_parameter = 'parameters { key: "engine" value { string_value: "simulated" } }\n'
        (repository / model / "config.pbtxt").write_text(text + engine_parameter)
    config = ServerConfig(
        repository=repository,
        models=("llm", "llm_batched"),
        arguments=("--disable-auto-complete-config",),
        log=tmp_path / "tritonserver.log",
        drain_timeout_s=0.0,
    )
    texts = set()
    with Server(config) as complete:
        complete.wait_ready(120.0)
        with GrpcClient(complete.grpc_url) as client:
            for model in ("llm", "llm_batched"):
                for form in ("tensor", "json", "parameter"):
                    texts.add(ask(client, {"max_tokens": 6}, form, model).text)
    assert len(texts) == 1
