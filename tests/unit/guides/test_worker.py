"""One check in the process that checks guides: whatever goes wrong becomes a sentence, and memory has an end."""

from __future__ import annotations

import pytest

from inflight.engines import faults
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
        (GrammarError("does not compile: so"), "is beyond the engine's grammar compiler; simplify it"),
        (MemoryError(), "takes too much memory"),
        (RecursionError(), "nested too deeply"),
    ],
)
def test_what_goes_wrong_is_a_sentence(error: Exception, words: str) -> None:
    verdict = check(error=error)
    assert words in verdict.problem
    assert verdict.grammar == ""


def test_the_compilers_own_words_are_for_the_operator(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They are about the grammar that we made of the guide."""
    monkeypatch.setattr(worker, "sparingly", faults.Sparingly())
    words = 'does not compile: EBNF parser error at line 1, column 10: Rule "foo" is not defined'
    assert "EBNF" not in check("x", GrammarError(words)).problem
    assert words in caplog.text
    for number in range(100):
        check("x", GrammarError(f"oops {number}"))
    assert len(caplog.records) < 3, "they do not fill the log"


def test_a_sentence_does_not_repeat_a_whole_guide() -> None:
    verdict = worker._check(FakeCompiler(), Check("ebnf_grammar", "root ::= " + "a" * 60_000), PLENTY)
    assert verdict.problem.startswith("uses the rule 'aaa")
    assert len(verdict.problem) == worker.MAX_PROBLEM + 1


def test_a_process_that_has_grown_too_large_says_that_it_leaves() -> None:
    assert check(most_bytes=1).last


def test_no_verdict_is_larger_than_a_frame() -> None:
    """Grammars are bounded in characters, and theirs are one byte each."""
    assert network.MAX_TEXT + 4 * worker.MAX_PROBLEM < MAX_FRAME_BYTES // 2
    assert prepare("regex", "日🙂é[^\\U0010ffff]").isascii()
