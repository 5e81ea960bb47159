"""One check in the process that checks guides: whatever goes wrong becomes a sentence, and memory has an end."""

from __future__ import annotations

import pytest

from inflight.grammar import network
from inflight.grammar.nodes import GrammarError
from inflight.grammar.prepare import prepare
from inflight.guides import worker
from inflight.guides.frames import MAX_FRAME_BYTES, Check, Verdict

pytestmark = pytest.mark.fast

PLENTY = 1 << 40


class FakeCompiler:
    vocab_size = 0
    broken = False

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error

    def compile(self, grammar: str) -> None:
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        pass


def check(text: str = "a", error: Exception | None = None, most_bytes: int = PLENTY) -> Verdict:
    return worker._check(FakeCompiler(error), Check("regex", text), most_bytes)


def test_a_guide_that_is_well() -> None:
    verdict = check()
    assert (verdict.grammar, verdict.problem, verdict.last) == (prepare("regex", "a"), "", False)
    assert 0.0 <= verdict.compile_s < 1.0


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (GrammarError("does not compile: so"), "does not compile: so"),
        (MemoryError(), "takes too much memory"),
        (RecursionError(), "nested too deeply"),
    ],
)
def test_what_goes_wrong_is_a_sentence(error: Exception, words: str) -> None:
    verdict = check(error=error)
    assert words in verdict.problem
    assert verdict.grammar == ""


def test_a_sentence_does_not_repeat_a_whole_guide() -> None:
    verdict = check(error=GrammarError(f"has {'é' * 60_000}, which is not allowed"))
    assert len(verdict.problem) == worker.MAX_PROBLEM + 1
    assert verdict.problem.startswith("has é")


def test_a_process_that_has_grown_too_large_says_that_it_leaves() -> None:
    assert check(most_bytes=1).last


def test_no_verdict_is_larger_than_a_frame() -> None:
    """Grammars are bounded in characters, and theirs are one byte each."""
    assert network.MAX_TEXT + 4 * worker.MAX_PROBLEM < MAX_FRAME_BYTES // 2
    assert prepare("regex", "日🙂é[^\\U0010ffff]").isascii()
