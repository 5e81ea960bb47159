"""Health, the pure part: facts of many models and of Triton → one verdict with its reason."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inflight.control.verdict import PATIENCE_S, ModelFacts, TritonFacts, judge

NOW = 1000.0


def model(name: str = "llm", age: float = 0.1, **changes: Any) -> ModelFacts:
    facts = {"ready": True, "health": "ready", "reason": "", "phase": "serving", **changes}
    return ModelFacts(name, NOW - age, **facts)


def triton(*names: str, age: float = 0.1, **changes: Any) -> TritonFacts:
    facts = {"live": True, "ready": True, "models": dict.fromkeys(names or ("llm",), True), **changes}
    return TritonFacts(NOW - age, **facts)


DRAINING = {"ready": False, "health": "draining", "reason": "the model is draining", "phase": "refusing"}
RESTARTING = {"ready": False, "health": "restarting", "reason": "the engine process 7 was lost"}
FAILED = {"ready": False, "health": "failed", "reason": "and it was restarted 5 times"}

CASES: list[tuple[str, TritonFacts, list[ModelFacts], list[str], bool, bool, str, str]] = [
    # what, Triton, models, wanted → live, ready, the reason, the word for HAProxy
    ("all well", triton(), [model()], ["llm"], True, True, "", "up"),
    ("drained", triton(), [model(**DRAINING)], [], True, False, "model llm: the model is draining", "drain"),
    ("restarting", triton(), [model(**RESTARTING)], [], True, False, "engine process 7 was lost", "down"),
    ("given up", triton(), [model(**FAILED)], [], False, False, "restarted 5 times", "down"),
    ("one of two", triton("a", "b"), [model("a"), model("b", **RESTARTING)], [], True, False, "model b: ", "down"),
    ("deaf model", triton(), [model(age=2.0)], [], True, False, "has not answered for 2.0 s", "down"),
    ("deaf Triton", triton(age=2.0), [model()], [], False, False, "Triton has not answered for 2.0 s", "down"),
    ("drains, deaf Triton", triton(age=2.0), [model(**DRAINING)], [], False, False, "is draining", "drain"),
    ("no Triton", TritonFacts(), [], [], False, False, "nothing answers as Triton", "down"),
    ("loading", TritonFacts(runs=True), [], ["llm"], True, False, "it is loading its models", "down"),
    ("ended", triton(runs=False), [model()], [], False, False, "tritonserver has ended", "down"),
    ("stopping", triton(stopping=True, runs=True), [model()], [], True, False, "is stopping", "drain"),
    ("nothing loaded", triton(models={}), [], [], True, False, "no model is loaded", "down"),
    (
        "wanted",
        triton("a", models={"a": True, "b": False}),
        [model("a")],
        ["b"],
        True,
        False,
        "model b: it is not",
        "down",
    ),
    ("killed", triton(), [], [], True, False, "model llm: its process is gone", "down"),
    ("unloading", triton(models={"llm": False}), [model()], ["llm"], True, False, "loaded or unloaded", "down"),
    ("unloading, not wanted", triton(models={"llm": False}), [model()], [], True, False, "no model is loaded", "down"),
    ("one unloading", triton("a", models={"a": True, "b": False}), [model("a"), model("b")], [], True, True, "", "up"),
    ("Triton itself", triton(ready=False), [model()], [], True, False, "Triton reports that it is not ready", "down"),
    ("namesakes", triton(), [model(), model(**DRAINING)], [], True, False, "model llm~1: ", "drain"),
]


@pytest.mark.parametrize(("what", "known", "models", "wanted", "live", "ready", "reason", "word"), CASES)
def test_a_verdict(
    what: str,
    known: TritonFacts,
    models: list[ModelFacts],
    wanted: list[str],
    live: bool,
    ready: bool,
    reason: str,
    word: str,
) -> None:
    verdict = judge(known, models, wanted, NOW)
    assert (verdict.live, verdict.ready) == (live, ready), what
    assert reason in verdict.reason
    assert verdict.agent_line().split()[0] == word


FACTS = st.builds(
    ModelFacts,
    st.sampled_from("abc"),
    st.floats(NOW - 3, NOW),
    st.booleans(),
    st.sampled_from(["ready", "restarting", "failed", "draining", "full"]),
    st.just("why"),
    st.sampled_from(["serving", "notice", "refusing", "drained"]),
)
TRITON = st.builds(
    TritonFacts,
    st.none() | st.floats(NOW - 3, NOW),
    st.booleans(),
    st.booleans(),
    st.dictionaries(st.sampled_from("abcd"), st.booleans()),
    st.none() | st.booleans(),
    st.booleans(),
)


@given(TRITON, st.lists(FACTS, max_size=4), st.sets(st.sampled_from("abcd")))
def test_ready_is_never_said_of_what_is_not_known_to_be(
    known: TritonFacts, models: list[ModelFacts], wanted: set[str]
) -> None:
    verdict = judge(known, models, wanted, NOW)
    assert verdict.ready == (not verdict.reason)
    assert "\n" not in verdict.agent_line()
    for key, each in verdict.models.items():
        assert each.ready == (not each.reason), key
    if any(each.ready for each in verdict.models.values()):  # who asks for one model alone relies on this
        assert known.asked_at is not None
        assert NOW - known.asked_at <= PATIENCE_S
        assert known.runs is not False
        assert not known.stopping
    if verdict.ready:
        assert known.asked_at is not None
        assert NOW - known.asked_at <= PATIENCE_S
        assert known.ready
        assert not known.stopping
        assert known.runs is not False
        fresh = {facts.name for facts in models if facts.ready and NOW - facts.asked_at <= PATIENCE_S}
        assert fresh & {name for name, ready in known.models.items() if ready}
        assert wanted <= fresh
        refusing = {facts.name for facts in models if not facts.ready}
        assert not refusing
        assert verdict.agent_line() == "up ready"
    later = judge(known, models, wanted, NOW + PATIENCE_S + 3.1)
    assert not later.ready
    assert not any(each.ready for each in later.models.values())


@pytest.mark.parametrize(
    ("known", "reason"),
    [
        (triton(age=2.0), "Triton has not answered for 2.0 s"),
        (triton(runs=False), "tritonserver has ended"),
        (triton(stopping=True), "the server is stopping"),
    ],
)
def test_no_model_is_ready_behind_a_triton_that_is_not_there(known: TritonFacts, reason: str) -> None:
    """Its process answers still: it is Triton that would take the requests."""
    verdict = judge(known, [model()], [], NOW)
    assert not verdict.models["llm"].ready
    assert verdict.models["llm"].reason == reason


def test_a_model_that_is_not_ready_says_so_in_its_own_place() -> None:
    verdict = judge(triton("a", "b"), [model("a"), model("b", **DRAINING)], [], NOW)
    assert {name: each["ready"] for name, each in verdict.as_json()["models"].items()} == {"a": True, "b": False}
    assert dataclasses.replace(verdict, leaving=False, reason="não\nhá " + "x" * 500).agent_line().isascii()
