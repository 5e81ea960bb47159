"""A server with one model on the simulated engine, for benchmarks of everything around an engine."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from inflight_tools.server.find import Triton
from inflight_tools.server.server import Server, ServerConfig

READY_S = 60.0


def write_model(
    repository: Path,
    engine: Path,
    options: Mapping[str, Any] | None,
    parameters: Mapping[str, str],
    name: str = "llm",
) -> None:
    """The model `name` in `repository`, on the simulated engine with `options`, or without them on `engine`'s own.

    `engine` is an engine directory, for the simulated one any directory with tokenizer.json.
    """
    simulated = {} if options is None else {"engine": "simulated", "engine_options": json.dumps(dict(options))}
    given = {**simulated, **parameters}
    text = 'backend: "inflight"\nmax_batch_size: 0\nmodel_transaction_policy { decoupled: true }\n'
    text += "instance_group [ { count: 1, kind: KIND_CPU } ]\n"
    for key, value in given.items():
        text += f"parameters {{ key: {json.dumps(key)} value {{ string_value: {json.dumps(value)} }} }}\n"
    model = repository / name
    (model / "1").mkdir(parents=True)
    (model / "1" / "engine").symlink_to(engine.absolute())
    (model / "config.pbtxt").write_text(text, encoding="utf-8")


@contextmanager
def serving(
    engine: Path,
    options: Mapping[str, Any],
    parameters: Mapping[str, str] | None = None,
    triton: Triton | None = None,
    environment: Mapping[str, str] | None = None,
    arguments: Sequence[str] = (),
) -> Iterator[Server]:
    """A ready server with the model `llm`: `options` of the simulated engine, further model `parameters`.

    `engine` is a directory with tokenizer.json; `environment` and `arguments` are the server's. Raises `Failure`.
    """
    with tempfile.TemporaryDirectory(prefix="inflight-bench-") as name:
        write_model(Path(name), engine, options, parameters or {})
        config = ServerConfig(repository=Path(name), environment=environment or {}, arguments=tuple(arguments))
        with Server(config, triton) as server:
            server.wait_ready(READY_S)
            yield server
