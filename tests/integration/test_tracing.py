"""One tree of spans per request: Triton's own spans and Inflight's, as a collector sees them, over gRPC and HTTP."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.more_packages import server_with
from inflight_tools.common.layout import CACHE, REPOSITORY
from inflight_tools.server.find import Triton
from inflight_tools.server.server import Server, ServerConfig
from tests.conftest import READY_TIMEOUT_S
from tests.harness.grpc_client import GrpcClient
from tests.harness.http_client import HttpClient
from tests.harness.otlp_sink import Sink, Span
from tests.harness.repository import write_model

pytestmark = [pytest.mark.server, pytest.mark.full]

PARTS = ["queue", "prefill", "decode"]
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Triton:
    """A server whose Python has what the extra `otel` installs."""
    folder = CACHE / "otel"
    lines = (REPOSITORY / "pyproject.toml").read_text("utf-8").split("\notel = [\n")[1].split("]")[0].splitlines()
    wanted = [line.strip().strip('",') for line in lines]
    assert len(wanted) == 2
    if not (folder / "opentelemetry" / "sdk").is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), *wanted]
        subprocess.run(command, check=True, timeout=300)
    return server_with(folder, tmp_path_factory.mktemp("python"))


@pytest.fixture
def traced(triton: Triton, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts a server with Triton's tracing and ours, both to a sink."""
    started: list[Server] = []

    def start(sink: Sink, *, by_triton: bool = True) -> Server:
        pairs = ["mode=opentelemetry", "level=TIMESTAMPS", "rate=1", f"opentelemetry,url={sink.url}"]
        pairs.append("opentelemetry,bsp_schedule_delay=200")
        write_model(tmp_path / "models", "llm", {"engine": "simulated", "engine_options": {"step_ms": 5}})
        config = ServerConfig(
            repository=tmp_path / "models",
            log=tmp_path / "tritonserver.log",
            arguments=(
                *(f"--trace-config={pair}" for pair in pairs if by_triton),
                "--grpc-header-forward-pattern=(?i)(x-.*|traceparent)",
            ),
            environment={
                "INFLIGHT_TRACING": "1",
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": sink.url,
                "OTEL_SERVICE_NAME": "tested",
            },
            drain_timeout_s=0.0,
        )
        started.append(Server(config, triton))
        started[-1].start()
        started[-1].wait_ready(READY_TIMEOUT_S)
        return started[-1]

    yield start
    for server in started:
        server.stop()
        assert server.processes() == []


def stream(server: Server, headers: tuple[tuple[str, str], ...] = (), **values: Any) -> None:
    with GrpcClient(server.grpc_url) as client:
        asked = client.build(text_input="Once upon a time", **values)
        asked.id = "over-grpc"
        answers = list(client.stub.ModelStreamInfer(iter([asked]), metadata=headers, timeout=30))
    assert answers
    assert not answers[-1].error_message


def tree(spans: list[Span], request_id: str) -> tuple[Span, list[Span], list[Span]]:
    """(the request's span, its parts, the way up to the root)."""
    (whole,) = (span for span in spans if span.attributes.get("gen_ai.response.id") == request_id)
    by_id = {span.span_id: span for span in spans}
    parts = sorted((span for span in spans if span.parent_id == whole.span_id), key=lambda span: span.start_ns)
    way, at = [], whole
    while at.parent_id in by_id:
        at = by_id[at.parent_id]
        way.append(at)
    assert {span.trace_id for span in (whole, *parts, *way)} == {whole.trace_id}
    return whole, parts, way


def check(whole: Span, parts: list[Span], tokens: int) -> None:
    assert whole.name == "text_completion llm"
    assert [part.name for part in parts] == PARTS
    assert whole.start_ns <= parts[0].start_ns
    for before, after in itertools.pairwise(parts):
        assert before.end_ns == after.start_ns
    assert parts[-1].end_ns <= whole.end_ns
    assert whole.attributes["gen_ai.provider.name"] == "inflight"
    assert whole.attributes["gen_ai.usage.output_tokens"] == tokens
    assert whole.attributes["gen_ai.response.finish_reasons"] == ["length"]
    assert parts[-1].end_ns - parts[-1].start_ns > (tokens - 2) * 5e6, "a step takes 5 ms"


def test_one_tree_per_request(traced: Callable[..., Server]) -> None:
    with Sink() as sink:
        server = traced(sink)
        stream(server, (("traceparent", f"00-{TRACE}-{PARENT}-01"),), max_tokens=20)
        body = {"id": "over-http", "text_input": "Once upon a time", "max_tokens": 12}
        http = HttpClient(server.http_url)
        assert http.call("POST", "/v2/models/llm/generate", json.dumps(body).encode())[0] == 200
        wrong = {"id": "refused", "text_input": "Once upon a time", "temperature": -1.0}
        assert http.call("POST", "/v2/models/llm/generate", json.dumps(wrong).encode())[0] >= 400
        ours = lambda spans: sum(span.by == "protobuf" for span in spans) >= 9  # noqa: E731
        spans = sink.until(lambda spans: ours(spans) and sum(span.name == "InferRequest" for span in spans) >= 3)
    for request_id, tokens in (("over-grpc", 20), ("over-http", 12)):
        whole, parts, way = tree(spans, request_id)
        check(whole, parts, tokens)
        assert [span.name for span in way] == ["llm", "InferRequest"], "below Triton's span of the model"
        assert {span.by for span in way} == {"json"}
        assert {span.by for span in (whole, *parts)} == {"protobuf"}
    whole, _, way = tree(spans, "over-grpc")
    assert (whole.trace_id, way[-1].parent_id) == (TRACE, PARENT), "the client's trace goes on"
    whole, parts, way = tree(spans, "refused")
    assert (whole.name, whole.attributes["error.type"], parts) == ("refused llm", "invalid_arg", [])
    assert [span.name for span in way] == ["llm", "InferRequest"]
    assert len({span.trace_id for span in spans}) == 3
    assert f"(trace {TRACE})" not in server.log_text(), "nothing went wrong"


def test_where_triton_does_not_trace_a_forwarded_header_is_followed(traced: Callable[..., Server]) -> None:
    with Sink() as sink:
        server = traced(sink, by_triton=False)
        for flags in ("00", "01"):
            trace = TRACE[:-2] + flags
            stream(server, (("traceparent", f"00-{trace}-{PARENT}-{flags}"),), max_tokens=4)
        stream(server, max_tokens=4)
        spans = sink.until(lambda spans: len(spans) >= 4)
        server.stop()
        assert len(sink.spans) == 4, "parent-based: only what its sender records"
    whole, parts, way = tree(spans, "over-grpc")
    assert (whole.trace_id, whole.parent_id, way) == (TRACE[:-2] + "01", PARENT, [])
    assert [part.name for part in parts] == PARTS


def test_a_collector_that_is_not_there_costs_its_spans_and_nothing_else(traced: Callable[..., Server]) -> None:
    with Sink() as sink:
        pass  # nobody listens there any more
    server = traced(sink)
    for _ in range(5):
        stream(server, max_tokens=4)
    server.stop()
    assert "spans are lost" in server.log_text()
