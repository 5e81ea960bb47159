"""What concerns one request alone inside the OpenVINO engine ends that request: on a pipeline of a few lines."""

from __future__ import annotations

import errno
import types
from pathlib import Path
from typing import Any

import openvino_genai
import pytest

from inflight.engines.base import EngineBroken, EngineRefusal, FinishReason, Guide
from inflight.engines.openvino.engine import OpenVinoEngine, OpenVinoOptions
from inflight.engines.openvino.guides import CompiledGrammars
from inflight.engines.openvino.lookup import Payoff
from tests.unit.machines.strategies import engine_request, info

pytestmark = pytest.mark.fast

STATUS = openvino_genai.GenerationStatus


class Handle:
    """One token a step."""

    def __init__(self, status: Any = STATUS.RUNNING) -> None:
        self.status = status
        self.ready = False
        self.cancelled = False

    def can_read(self) -> bool:
        return self.ready

    def read(self) -> dict[int, Any]:
        self.ready = False
        generated = types.SimpleNamespace(
            generated_ids=[7], generated_log_probs=[0.0], finish_reason=openvino_genai.GenerationFinishReason.NONE
        )
        return {0: generated}

    def get_status(self) -> Any:
        return self.status

    def cancel(self) -> None:
        self.cancelled = True


class Pipeline:
    """Takes so many requests, then none; a step makes a token for each."""

    def __init__(self, takes: int, error: Exception) -> None:
        self.handles: list[Handle] = []
        self.prompts: list[list[int]] = []
        self._takes = takes
        self._error = error

    def add_request(self, _: int, prompt: Any, __: object) -> Handle:
        if len(self.handles) == self._takes:
            raise self._error
        self.prompts.append(prompt.data[0].tolist())
        self.handles.append(Handle())
        return self.handles[-1]

    def step(self) -> None:
        for handle in self.handles:
            handle.ready = handle.status == STATUS.RUNNING


def engine_on(pipeline: Pipeline) -> Any:
    engine: Any = object.__new__(OpenVinoEngine)
    engine._pipeline, engine._lookup, engine._options = pipeline, None, OpenVinoOptions()
    engine._sequences, engine._of_request, engine._next_id, engine._payoff = {}, {}, 0, Payoff()
    engine._held = []
    engine.info = info()
    return engine


def test_a_sequence_that_cannot_follow_ends_its_request_alone() -> None:
    """The second sequence of a request is added in a step, after the first token of the first."""
    pipeline = Pipeline(2, RuntimeError("no more"))
    engine = engine_on(pipeline)
    engine.add(engine_request(1, token_ids=[5] * 4))
    engine.add(engine_request(2, token_ids=[6] * 4, num_sequences=3, temperature=1.0))
    outputs = engine.step(0.0)
    errors = [(output.request_id, output.sequence_index) for output in outputs if output.error is not None]
    assert errors == [(2, 0), (2, 1), (2, 2)]
    assert [handle.cancelled for handle in pipeline.handles] == [False, True]
    assert [output.request_id for output in engine.step(0.0)] == [1]
    assert set(engine._of_request) == {1}


@pytest.mark.parametrize(
    ("error", "raised"), [(RuntimeError("x.cpp:1:\nis wrong"), EngineRefusal), (MemoryError(), MemoryError)]
)
def test_a_request_that_is_not_taken_is_unknown(error: Exception, raised: type[Exception]) -> None:
    engine = engine_on(Pipeline(0, error))
    with pytest.raises(raised):
        engine.add(engine_request(1))
    assert not engine._of_request
    assert not engine._sequences


def test_a_pool_that_ran_dry_is_a_broken_engine() -> None:
    pipeline = Pipeline(1, RuntimeError())
    engine = engine_on(pipeline)
    engine.add(engine_request(1))
    pipeline.handles[0].status = STATUS.IGNORED
    with pytest.raises(EngineBroken):
        engine.step(0.0)


BLOCK = 32  # a prompt of whole blocks needs a primer: its tokens, and the last one twice more


def with_a_primer(takes: int = 99) -> tuple[Any, Pipeline]:
    """An engine whose one request, 1, has its primer in the pipeline."""
    pipeline = Pipeline(takes, RuntimeError("no more"))
    engine = engine_on(pipeline)
    engine.add(engine_request(1, token_ids=[1] * BLOCK))
    assert pipeline.prompts == [[1] * (BLOCK + 2)]
    return engine, pipeline


def test_who_comes_while_a_primer_runs_stays_behind_whom_it_is_for() -> None:
    """The primer's own request was the last in the pipeline, and had its first token after everybody else."""
    engine, pipeline = with_a_primer()
    engine.add(engine_request(2, token_ids=[2] * 5))
    engine.add(engine_request(3, token_ids=[3] * BLOCK))
    assert len(pipeline.prompts) == 1
    assert engine.step(0.0) == []
    assert pipeline.prompts[1:] == [[1] * BLOCK, [2] * 5, [3] * BLOCK]
    assert [output.request_id for output in engine.step(0.0)] == [1, 2, 3]


def test_beside_others_no_prompt_needs_a_primer() -> None:
    pipeline = Pipeline(99, RuntimeError())
    engine = engine_on(pipeline)
    engine.add(engine_request(1, token_ids=[1] * 4))
    engine.add(engine_request(2, token_ids=[2] * BLOCK))
    assert pipeline.prompts == [[1] * 4, [2] * BLOCK]


def test_who_has_left_is_nobody_beside_whom_sums_differ() -> None:
    pipeline = Pipeline(99, RuntimeError())
    engine = engine_on(pipeline)
    engine.add(engine_request(1, token_ids=[1] * 4))
    engine.cancel(1)
    engine.add(engine_request(2, token_ids=[2] * BLOCK))
    assert pipeline.prompts[1:] == [[2] * (BLOCK + 2)]


def test_a_cancel_while_a_primer_runs_ends_the_request_it_names() -> None:
    engine, pipeline = with_a_primer()
    engine.add(engine_request(2, token_ids=[2] * 5, num_sequences=2, temperature=1.0))
    engine.add(engine_request(3, token_ids=[3] * 5))
    engine.cancel(2)
    ends = [(output.request_id, output.sequence_index, output.finish) for output in engine.step(0.0)]
    assert ends == [(2, 0, FinishReason.CANCELLED), (2, 1, FinishReason.CANCELLED)]
    assert pipeline.prompts[1:] == [[1] * BLOCK, [3] * 5]
    assert set(engine._of_request) == {1, 3}


def test_the_primer_may_be_cancelled_and_nobody_waits_for_it_further() -> None:
    engine, pipeline = with_a_primer()
    engine.add(engine_request(2, token_ids=[2] * 5))
    engine.cancel(1)
    assert [(output.request_id, output.finish) for output in engine.step(0.0)] == [(1, FinishReason.CANCELLED)]
    assert pipeline.prompts[1:] == [[2] * 5]
    assert set(engine._of_request) == {2}


def test_who_waited_for_a_primer_and_is_not_taken_ends_alone() -> None:
    engine, _ = with_a_primer(takes=3)
    engine.add(engine_request(2, token_ids=[2] * 5))
    engine.add(engine_request(3, token_ids=[3] * 5))
    assert [(output.request_id, output.error is not None) for output in engine.step(0.0)] == [(3, True)]
    assert set(engine._of_request) == {1, 2}


def test_a_disk_that_is_full_is_the_trouble_of_one_guide_at_a_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Forgetting old grammars takes a temporary folder. Who comes when there is none is told; nothing is miscounted."""

    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    pipeline = types.SimpleNamespace(get_tokenizer=lambda: None)
    grammars = CompiledGrammars(pipeline, tmp_path, 100, most_text=30)
    grammars.use(Guide("ebnf_grammar", "a" * 20))
    with monkeypatch.context() as patch:
        patch.setattr("inflight.engines.openvino.guides.RunFolder", fails)
        for _ in range(2):
            with pytest.raises(OSError, match="No space left"):
                grammars.use(Guide("ebnf_grammar", "b" * 20))
        grammars.use(Guide("ebnf_grammar", "a" * 20))
    forgets: list[int] = []
    monkeypatch.setattr(grammars, "_forget", lambda: forgets.append(1))
    grammars.use(Guide("ebnf_grammar", "b" * 20))
    grammars.use(Guide("ebnf_grammar", "b" * 20))
    assert forgets == [1]
