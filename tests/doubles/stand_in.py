"""The stand-in inside a test's own process: any profile, any fault, and no trace of it afterwards."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from inflight.engines.base import Engine, EngineOutput, EngineRequest, SamplingParams
from tests.doubles.folders import DOUBLES, write_engine, write_metadata
from tests.unit.machines.tokenizer_kinds import write_folder

PACKAGES = ("tensorrt_llm", "trtllm_double")
VOCABULARY = 49_152  # of checkpoints that `write_checkpoint` writes

Install = Callable[..., "StandIn"]
Checkpoint = Callable[..., Any]


def forget() -> None:
    """Take the stand-in's modules out, so that the next import reads the environment again."""
    for name in [name for name in sys.modules if name.split(".")[0] in PACKAGES]:
        del sys.modules[name]


class StandIn:
    """One pretended installation. `engine` makes an engine of it, `folder` an engine directory."""

    def __init__(self, root: Path, profile: str) -> None:
        self.root, self.profile = root, profile
        self.tokenizer = write_folder(root / "tokenizer")
        (self.tokenizer / "generation_config.json").write_text('{"eos_token_id": 1}')
        self.made: list[Engine] = []

    def folder(self, name: str = "engine", **build: Any) -> Path:
        """An engine directory; the vocabulary is large, whatever the tokenizer holds."""
        return write_engine(self.root / name, self.tokenizer, self.profile, **{"vocab_size": 20_000, **build})

    def engine(self, folder: Path | None = None, max_running: int = 0, **options: Any) -> Engine:
        """The engine that the factory would make."""
        from inflight.engines.tensorrt_llm.create import create

        made = create(folder or self.folder(), options, max_running)
        self.made.append(made)
        return made

    @property
    def bindings(self) -> Any:
        """tensorrt_llm.bindings.executor."""
        import tensorrt_llm.bindings.executor as bindings

        return bindings

    def expected(self, prompt: list[int], count: int, **more: Any) -> list[int]:
        """What the stand-in answers."""
        from trtllm_double.tokens import expected  # type: ignore[import-not-found]

        found: list[int] = expected(prompt, count, 20_000, **more)
        return found


@contextmanager
def stand_in(monkeypatch: pytest.MonkeyPatch, root: Path, profile: str = "1.2", **options: Any) -> Iterator[StandIn]:
    """A pretended installation of `profile`; `options` are `trtllm_double.options.DoubleOptions`."""
    forget()
    monkeypatch.setenv("TRTLLM_DOUBLE_PROFILE", profile)
    monkeypatch.setenv("TRTLLM_DOUBLE", json.dumps({"step_ms": 0.2, **options}))
    monkeypatch.syspath_prepend(str(DOUBLES))
    monkeypatch.syspath_prepend(str(write_metadata(root / f"site-{profile}", profile)))
    found = StandIn(root, profile)
    try:
        yield found
    finally:
        for engine in found.made:
            engine.close()
        forget()


def request(request_id: int = 1, prompt: list[int] | None = None, **values: Any) -> EngineRequest:
    """A request; what is no field of EngineRequest goes into its sampling."""
    own = {name: values.pop(name) for name in list(values) if name in EngineRequest.__struct_fields__}
    sampling = SamplingParams(**{"max_tokens": 8, **values})
    return EngineRequest(request_id=request_id, token_ids=prompt or [5, 6, 7], sampling=sampling, **own)


def run(engine: Engine, *requests: EngineRequest, timeout_s: float = 20.0) -> dict[tuple[int, int], list[EngineOutput]]:
    """Add the requests and step until every sequence has ended; outputs per (request, sequence)."""
    left = {(item.request_id, index) for item in requests for index in range(item.sampling.num_sequences)}
    for item in requests:
        engine.add(item)
    return collect(engine, left, timeout_s)


def collect(
    engine: Engine, left: set[tuple[int, int]], timeout_s: float = 20.0
) -> dict[tuple[int, int], list[EngineOutput]]:
    """Step until the sequences of `left` have ended, and a little longer: nothing may come after an end."""
    found: dict[tuple[int, int], list[EngineOutput]] = {place: [] for place in left}
    deadline = time.monotonic() + timeout_s
    waiting = set(left)
    while waiting:
        assert time.monotonic() < deadline, f"no end of {waiting}"
        for output in engine.step(0.02):
            place = (output.request_id, output.sequence_index)
            assert place in waiting, f"an output after the end of {place}"
            found[place].append(output)
            if output.finish is not None or output.error is not None:
                waiting.discard(place)
    for _ in range(3):
        assert engine.step(0.01) == []
    return found


def ids(outputs: list[EngineOutput]) -> list[int]:
    """All tokens of a sequence."""
    return [token for output in outputs for token in output.token_ids]


def expected(prompt: list[int], count: int, **more: Any) -> list[int]:
    """The tokens that a checkpoint answers with."""
    from trtllm_double.tokens import expected as answer  # type: ignore[import-not-found]

    found: list[int] = answer(prompt, count, VOCABULARY, **more)
    return found
