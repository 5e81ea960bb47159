from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inflight.answer.reasoning import ReasoningForm, ReasoningSplitter, Stage, form_of_template, is_open, stage_of
from tests.unit.machines.strategies import budget, cuts

pytestmark = pytest.mark.fast


def split(pieces: list[str], opened: bool = False, form: ReasoningForm = ReasoningForm.THINK) -> tuple[str, str]:
    splitter = ReasoningSplitter(form, opened)
    parts = [splitter.push(piece) for piece in pieces] + [splitter.finish()]
    return "".join(part.thought for part in parts), "".join(part.answer for part in parts)


@pytest.mark.parametrize(
    ("text", "opened", "expected"),
    [
        ("<think>\nhm\n</think>\n\nYes.", False, ("hm", "Yes.")),
        ("\n<think>hm</think>Yes. </think>", False, ("hm", "Yes. </think>")),
        ("hm\n\nso\n</think>\n\nYes.\n", True, ("hm\n\nso", "Yes.\n")),
        ("<think>\n\n</think>\n\nYes.", False, ("", "Yes.")),
        ("Yes <think>no</think>", False, ("", "Yes <think>no</think>")),
        ("\n Yes", False, ("", "\n Yes")),
        ("<thin", False, ("", "<thin")),
        ("<think>still", False, ("still", "")),
        ("still </thi", True, ("still </thi", "")),
        ("", False, ("", "")),
    ],
)
def test_thoughts_and_answer(text: str, opened: bool, expected: tuple[str, str]) -> None:
    assert split([text], opened) == expected
    assert split(list(text), opened) == expected


def test_mistral_writes_brackets() -> None:
    assert split(["[THINK]a[/THI", "NK]b"], form=ReasoningForm.THINK_BRACKETS) == ("a", "b")


WORDS = ["<think>", "</think>", "<", "</", "think>", " ", "\n", "a", "é🙂"]


@given(st.data(), st.lists(st.sampled_from(WORDS), max_size=12).map("".join), st.booleans())
@budget(300)
def test_the_split_does_not_depend_on_how_the_text_was_cut(data: st.DataObject, text: str, opened: bool) -> None:
    assert split(data.draw(cuts(text)), opened) == split([text], opened)


@given(st.lists(st.sampled_from(WORDS), max_size=12).map("".join), st.booleans())
@budget(200)
def test_nothing_but_tags_and_white_space_goes(text: str, opened: bool) -> None:
    thought, answer = split([text], opened)
    assert "".join((thought + answer).split()) in {
        "".join(text.replace("</think>", "", count).replace("<think>", "", first).split())
        for count in (0, 1)
        for first in (0, 1)
    }


def test_what_the_template_and_the_prompt_show() -> None:
    assert form_of_template("{{ '<think>' }}…</think>") is ReasoningForm.THINK
    assert form_of_template("[THINK][/THINK]") is ReasoningForm.THINK_BRACKETS
    assert form_of_template("<|im_start|>") is ReasoningForm.NONE
    assert is_open("<|im_start|>assistant\n<think>\n", ReasoningForm.THINK)
    assert not is_open("<think>\n\n</think>\n\n", ReasoningForm.THINK)
    assert not is_open("<think>", ReasoningForm.NONE)
    assert not is_open("user: what does <think> do?\nassistant:", ReasoningForm.THINK)
    assert is_open("assistant:<think>well", ReasoningForm.THINK, "<think>well")
    assert not is_open("assistant:<think>well</think>so", ReasoningForm.THINK, "<think>well</think>so")


@pytest.mark.parametrize(
    ("prompt", "prefill", "stage"),
    [
        ("assistant\n<think>\n", "", Stage.WITHIN),
        ("assistant\n", "", Stage.BEFORE),
        ("assistant\n<think>\n\n</think>\n\n", "", Stage.BEHIND),
        ("<think>a</think>b", "<think>a</think>b", Stage.BEHIND),
        ("<think>a", "<think>a", Stage.WITHIN),
        ("Sure, ", "Sure, ", Stage.BEHIND),
    ],
)
def test_where_a_prompt_leaves_its_model(prompt: str, prefill: str, stage: Stage) -> None:
    assert stage_of(prompt, ReasoningForm.THINK, prefill) is stage
    assert stage_of(prompt, ReasoningForm.NONE, prefill) is Stage.BEHIND
