#!/usr/bin/env python3
"""Writes what follows from the code: the shipped config.pbtxt files, docs/requests.md, docs/metrics.md, docs/map.md,
the table of clients in docs/gateway.md, the Grafana dashboard and the alerts for the Prometheus operator.

With --check nothing is written and the exit status says whether a file differs; the test suite calls it so.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Sequence
from pathlib import Path

# Both before what is installed: the tables of this checkout are written, whichever one the environment serves.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python_backend"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from inflight.model.parameters import model_parameters
from inflight.request.contract import INPUTS, JSON_ALIASES, JSON_ONLY, OUTPUTS, RANKS, VLLM_DEFAULTS
from inflight.request.limits import limits
from inflight.serving.metrics import FAMILIES
from inflight.triton.config import tensors
from inflight_tools.common.layout import REPOSITORY
from inflight_tools.server.moving import tables
from maintain.dashboard import dashboard_text
from maintain.gateway_clients import gateway_text
from maintain.peer_suites import FROM_TRTLLM, FROM_VLLM, Difference, tried

ROOT = REPOSITORY

_FLAT_HEAD = """\
# Inflight in vLLM's shape: every tensor is [1] or [-1] on the wire.
# Build the engine into 1/engine with `python -m build_engine build` (see docs/building.md).
"""
_BATCHED_HEAD = """\
# Inflight in TensorRT-LLM's shape: every tensor is [1,1] or [1,-1] on the wire, but for text_output, which is [-1] as
# there. It serves the engine that `llm` holds, in an engine process of its own; load one of the two where memory is
# short.
"""
_BODY = """\
backend: "inflight"
max_batch_size: {batch}
model_transaction_policy {{ decoupled: true }}
# One engine process serves all requests; more than one instance is refused. KIND_CPU on a GPU server too: it says where
# Triton's side runs, and the engine process chooses its GPUs by itself. (pytriton's client knows no KIND_MODEL.)
instance_group [ {{ count: 1, kind: KIND_CPU }} ]
parameters {{ key: "engine_dir" value {{ string_value: "{engine_dir}" }} }}
# All model parameters: docs/requests.md.

# Written by scripts/maintain/generate.py. The backend completes what follows by itself, so a model of your own does
# not need it, unless the server runs with --disable-auto-complete-config.
"""

_ENDS = """\
| event | streaming | unary |
|---|---|---|
| end of sequence, stop string | last delta, finish_reason stop, final | text, stop |
| max_tokens, context full | length | text, length |
| deadline while running | last delta, deadline, final | text so far, deadline |
| deadline before that: while parsed, while its guide is checked, while queued | UNAVAILABLE | UNAVAILABLE |
| client cancels | CANCELLED | CANCELLED |
| bad value; capability missing | INVALID_ARG; UNSUPPORTED, naming the parameter | same |
| queue full, draining, engine restarting or lost | UNAVAILABLE, with what to do | same, never part of a text |
| our bug | INTERNAL with the request's id | same |
"""


_PYTHON_CLIENT = """
## From Python

Over a gRPC stream, with `pip install "tritonclient[grpc]"`:

```python
import queue

import numpy as np
import tritonclient.grpc as grpc


def tensor(name, value, datatype, dtype):
    item = grpc.InferInput(name, [1], datatype)
    item.set_data_from_numpy(np.array([value], dtype=dtype))
    return item


answers = queue.Queue()
with grpc.InferenceServerClient("localhost:8001") as client:
    client.start_stream(lambda result, error: answers.put((result, error)))
    client.async_stream_infer(
        "llm",
        [
            tensor("text_input", "Once upon a time", "BYTES", object),
            tensor("stream", True, "BOOL", bool),
            tensor("max_tokens", 32, "INT32", np.int32),
        ],
        enable_empty_final_response=True,
    )
    while True:
        result, error = answers.get(timeout=60)
        if error is not None:
            raise error
        text = result.as_numpy("text_output")
        if text is not None:
            print(text[0].decode(), end="", flush=True)
        if result.get_response().parameters["triton_final_response"].bool_param:
            break
print()
```
"""


_HEADERS = """\
Triton forwards headers as request parameters where its `--http-header-forward-pattern` and
`--grpc-header-forward-pattern` say so. Those with a hyphen pass (`x-request-id`), and so do `traceparent` and
`tracestate`. One that is a parameter's name but for its hyphens (`max-tokens`) is refused: it looks like a parameter,
and would have no effect. **A trap:** a header that is spelt exactly like a parameter acts as one. With the pattern `.*`
a proxy's header `stop` or `max_tokens` changes the answer. Forward what you need, such as `(?i)x-.*`. (Triton 24.10
does all this for gRPC; its HTTP `generate` forwards no headers at all.)

Two of them say who a request is, in the server's log and in traces: `x-request-id`, where the request has no `id` of
its own, and `traceparent` ([operating.md](operating.md#finding-a-request)).
"""


def config_text(batch: int, engine_dir: str) -> str:
    """One complete config.pbtxt."""
    lines = [_FLAT_HEAD if batch == 0 else _BATCHED_HEAD, _BODY.format(batch=batch, engine_dir=engine_dir)]
    return "".join([*lines, tensors()])


def requests_text() -> str:
    """docs/requests.md: every row of the contract."""
    lines = [
        "# Requests\n\n",
        "<!-- Written by scripts/maintain/generate.py from the tables of the code. Do not edit. -->\n\n",
        "Exactly one of `text_input`, `messages` and `input_ids` is required. A value may come as a tensor, inside\n",
        "`sampling_parameters` (a JSON object; numbers may be strings) or as a request parameter; that is also the\n",
        "order of precedence. A name and its alias together, an unknown name or a value out of range: INVALID_ARG.\n",
        "With `max_batch_size: 1` (model `llm_batched`) every shape has a leading 1, except that of `text_output`:\n",
        "TensorRT-LLM's models send it with one dimension in both shapes, and their clients read it so.\n\n",
        "## Inputs\n\n| input (alias) | type, dims | default | note |\n|---|---|---|---|\n",
    ]
    for item in INPUTS:
        alias = f" ({', '.join(item.aliases)})" if item.aliases else ""
        lines.append(f"| {item.name}{alias} | {item.type} [{item.dims}] | {item.default} | {item.note} |\n")
    others = ", ".join(f"`{name}` (for `{value}`)" for name, value in JSON_ALIASES.items())
    lines.append(f"\n`sampling_parameters` also takes {others}, {', '.join(f'`{name}`' for name in JSON_ONLY)}.\n")
    keys = ", ".join(f"`{name}`" for name in VLLM_DEFAULTS)
    lines.append(f"\nOf vLLM's keys without a counterpart here it takes the defaults, and null: {keys}.\n")
    lines.append("Any other value of theirs: UNSUPPORTED, by name.\n")
    lines.append("\n## Outputs\n\n| output | type, dims | sent with | note |\n|---|---|---|---|\n")
    lines += [f"| {item.name} | {item.type} [{item.dims}] | {item.when} | {item.note} |\n" for item in OUTPUTS]
    lines.append("\n" + _RANKS + "\n| engine | ranks that it tells |\n|---|---|\n")
    lines += [f"| {engine} | {ranks} |\n" for engine, ranks in RANKS.items()]
    lines.append("\n## How a request ends\n\n" + _ENDS)
    lines.append(
        "\n## Limits\n\nWhat goes beyond them: INVALID_ARG that names it. No more requests fit: UNAVAILABLE.\n\n"
    )
    lines.append("| what | limit |\n|---|---|\n")
    lines += [f"| {what} | {limit} |\n" for what, limit in limits()]
    lines.append("\nGuides have more of them: [guided.md](guided.md#what-happens-to-a-guide).\n")
    lines.append("\n## Headers\n\n" + _HEADERS)
    lines += _differences("vLLM's backend", FROM_VLLM) + _differences("TensorRT-LLM's models", FROM_TRTLLM)
    lines.append(
        "\n## What the peers' own tests and clients say\n\n"
        "On OpenVINO, 2026-11-29; only the server's address is another. vllm_backend's own came out the same on the\n"
        "vLLM engine; of additional_outputs_test, whose likeliest tokens it has, 116 of 209 pass there.\n\n"
    )
    lines.append("| what | passes | does not, and why |\n|---|---|---|\n")
    lines += [f"| {row.what} | {row.passes} | {row.fails} |\n" for row in tried()]
    lines.append("\n## Model parameters (config.pbtxt)\n\n| parameter | default | note |\n|---|---|---|\n")
    for parameter in model_parameters().values():
        lines.append(f"| {parameter.name} | {_shown(parameter.default)} | {parameter.note} |\n")
    lines.append(_PYTHON_CLIENT)
    return "".join(lines)


_RANKS = """\
`rank` in `logprobs` is a token's place by likelihood, from 1. Among the likeliest tokens it is the place in that list.
For a chosen token that is not among them, or where none were asked for, it is what the engine tells. Where that is
nothing, it is 1 if it must be: the answer is greedy without guide or beams, or the token is likelier than all others
together. Else it is null.
"""


def _differences(peer: str, rows: Sequence[Difference]) -> list[str]:
    """What a client meets otherwise that comes from another backend of Triton's."""
    lines = [f"\n## Coming from {peer}\n\n| what | there | here |\n|---|---|---|\n"]
    return lines + [f"| {row.what} | {row.there} | {row.here} |\n" for row in rows]


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


_METRICS_HEAD = """\
# Metrics

<!-- Written by scripts/maintain/generate.py from serving/metrics.py. Do not edit. -->

On Triton's metrics port (8002), with the labels `model` and `version` besides those named. Every family is there from
the first scrape of a loaded model, but for two that some engines know nothing of:
`inflight_prefix_cache_hit_tokens_total` and `inflight_speculative_tokens_total`. Values are handed over every
`metrics_interval_ms`, distributions every three seconds while requests run: each of their counters is a round trip.

A distribution is exported as the counters `_bucket{le}`, `_sum` and `_count`, which `histogram_quantile` reads. What a
token costs: `inflight_price_per_hour / 3600 / rate(inflight_generation_tokens_total[5m])`.

What to look at first is in [operating.md](operating.md#what-to-watch). Triton's own `nv_inference_*` latencies mean
little for a decoupled model. Its header with the load for proxies (ORCA, from 25.03 on) is made of the `nv_trt_llm_*`
families. Envoy takes no load report without a rate of requests, which that header lacks, so it balances nothing there:
balance by least requests, or by a hash of `x-session-id`.

| metric | kind | label | meaning |
|---|---|---|---|
"""


def metrics_text() -> str:
    """docs/metrics.md: every metric family."""
    lines = [_METRICS_HEAD]
    for family in FAMILIES:
        label = f"{family.label}: {', '.join(family.values)}" if family.label else ", ".join(family.labels)
        lines.append(f"| {family.name} | {family.kind} | {label} | {family.help} |\n")
    lines.append("\nBounds of the distributions (`le`, and `+Inf`):\n\n| metric | bounds |\n|---|---|\n")
    for family in FAMILIES:
        if family.bounds:
            lines.append(f"| {family.name} | {', '.join(f'{bound:g}' for bound in family.bounds)} |\n")
    return "".join(lines)


_MAP_HEAD = """\
# Map

<!-- Written by scripts/maintain/generate.py from the first sentence of every module. Do not edit. -->

The way of a request ([a picture](request.svg)):

1. `model.py` copies it and hands it to `backend/`.
2. A parse pool makes a `GenerationRequest` and token ids of it (`request/`); a new guide is checked in a process of its
   own (`guides/`). Until then its deadline and its client can end it at any time (`serving/arrival.py`).
3. `serving/dispatcher.py` admits it (`serving/admission.py`) and tells the engine process (`engine_process/link.py` ⇄
   `engine_process/worker.py`, `engine_process/frames.py`), which `engine_process/supervisor.py` keeps alive.
4. Outputs come back into the stream's inbox. A sender thread (`serving/delivery.py`) turns everything buffered into one
   response (`answer/`, `triton/io.py`).

Rooms lie in layers: backend, triton, serving, guides and answer, request, engine_process, engines, model and grammar.
A room imports what lies below it; engines know nothing of Triton, sockets or text; `build_engine` shares only
`manifest.py`, `errors.py` and `processor.py` with the serving side (import-linter checks it, in pyproject.toml).

Not listed here: benchmarks (`scripts/bench`), what maintainers run (`scripts/maintain`) and tests:
[changing.md](changing.md).
"""
_MAP_PARTS = (
    ("python_backend", "Serving: the backend that Triton loads"),
    ("gateway", "The gateway: OpenAI's, Anthropic's and TGI's APIs in front of Triton (`inflight gateway`)"),
    ("build_engine", "Building: checkpoints to engines (`python -m build_engine`)"),
    ("scripts", "Tools: run, load-test and check"),
)
_NOT_THE_PRODUCT = ("scripts/bench", "scripts/maintain")


def map_text() -> str:
    """docs/map.md: every module of the product with what it is for, in its own words."""
    lines = [_MAP_HEAD]
    for part, title in _MAP_PARTS:
        lines.append(f"\n## {title}\n")
        found = [path for pattern in ("*.py", "*.sh") for path in (ROOT / part).rglob(pattern)]
        files = [path for path in found if not str(path.relative_to(ROOT)).startswith(_NOT_THE_PRODUCT)]
        rooms: dict[Path, list[Path]] = {}
        for path in sorted(files, key=lambda path: (path.parent, path.name)):
            rooms.setdefault(path.parent, []).append(path)
        for room, modules in rooms.items():
            rows = [f"| `{path.relative_to(ROOT)}` | {_purpose(path)} |\n" for path in modules if _purpose(path)]
            if rows:
                lines.append(
                    f"\n### {room.relative_to(ROOT)}\n\n| module | what it is for |\n|---|---|\n" + "".join(rows)
                )
    return "".join(lines)


def _purpose(path: Path) -> str:
    """The first sentence of a module's docstring, or of a shell script's first comment."""
    text = path.read_text("utf-8")
    if path.suffix == ".sh":
        comments = [line.lstrip("# ").strip() for line in text.splitlines()[1:] if line.startswith("#")]
        words = " ".join(comments)
    else:
        words = " ".join((ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0].split())
    return words.split(". ")[0].rstrip(".").replace("|", "\\|")


_PROMETHEUS_RULE = """\
# Written by scripts/maintain/generate.py from deploy/observability/rules.yml. Do not edit.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: inflight
spec:
"""


def prometheus_rule_text() -> str:
    """The rules as the Prometheus operator takes them."""
    lines = (ROOT / "deploy/observability/rules.yml").read_text("utf-8").splitlines()
    body = [line for line in lines if not line.startswith("#")]
    return _PROMETHEUS_RULE + "".join(f"  {line}".rstrip() + "\n" for line in body)


def moving_text(text: str) -> str:
    """docs/moving.md with the flags of other servers between its marks."""
    before, begin, rest = text.partition("moving.py's tables. -->\n")
    _, end, after = rest.partition("\n<!-- The end of it. -->")
    return f"{before}{begin}\n{tables()}{end}{after}"


def generated() -> dict[Path, str]:
    """Every generated file and its text."""
    return {
        ROOT / "model_repository/llm/config.pbtxt": config_text(0, "engine"),
        ROOT / "model_repository/llm_batched/config.pbtxt": config_text(1, "../../llm/1/engine"),
        ROOT / "docs/requests.md": requests_text(),
        ROOT / "docs/metrics.md": metrics_text(),
        ROOT / "docs/map.md": map_text(),
        ROOT / "docs/moving.md": moving_text((ROOT / "docs/moving.md").read_text("utf-8")),
        ROOT / "docs/gateway.md": gateway_text((ROOT / "docs/gateway.md").read_text("utf-8")),
        ROOT / "deploy/observability/grafana/dashboards/inflight.json": dashboard_text(),
        ROOT / "deploy/kubernetes/components/monitoring/prometheusrule.yaml": prometheus_rule_text(),
    }


def main() -> int:
    """0 when all files say what the tables say."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--check", action="store_true", help="write nothing; say which files differ")
    check = parser.parse_args().check
    differing = [path for path, text in generated().items() if not path.exists() or path.read_text("utf-8") != text]
    for path in differing:
        print(f"{'differs' if check else 'wrote'} {path.relative_to(ROOT)}")
        if not check:
            path.write_text(generated()[path], encoding="utf-8")
    return 1 if check and differing else 0


if __name__ == "__main__":
    sys.exit(main())
