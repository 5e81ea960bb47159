"""Stop words that name special tokens: which become stop tokens, and which are looked for with marks."""

from __future__ import annotations

from pathlib import Path

import pytest

from inflight.request.stop_words import Stops, stops_of
from inflight.request.tokenizer import TextTokenizer
from tests.unit.machines.strategies import info, request
from tests.unit.machines.tokenizer_kinds import KINDS, write_folder

pytestmark = pytest.mark.fast

EOS_OF = {"byte_level": "<|eos|>", "byte_fallback": "</s>", "metaspace": "</s>", "word_piece": "[SEP]"}
BOS_OF = {"byte_level": "<|bos|>", "byte_fallback": "<s>", "metaspace": "<s>", "word_piece": "[CLS]"}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def tokenizer(kind: str, tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return TextTokenizer(write_folder(tmp_path_factory.mktemp("engine"), kind))


def of(tokenizer: TextTokenizer, *words: str, vocab_size: int = 1000, **values: object) -> Stops:
    engine = info(stop_token_ids=(900,), vocab_size=vocab_size)
    return stops_of(request(stop_words=list(words), **values), engine, tokenizer)


def test_a_special_token_becomes_a_stop_token(tokenizer: TextTokenizer, kind: str) -> None:
    eos = KINDS[kind]().token_to_id(EOS_OF[kind])
    for values in ({}, {"ignore_eos": True}, {"skip_special_tokens": False}):
        stops = of(tokenizer, EOS_OF[kind], **values)
        assert eos in stops.token_ids
        assert not stops.marks
        assert stops.strings == (EOS_OF[kind],), "ordinary tokens may spell it too"


@pytest.mark.parametrize("form", ["{}\n", "\n{}", "the dog{}", "{} ", "a{}b", "{}{}", "<{}>"])
def test_one_that_holds_a_special_token_beside_other_text_is_looked_for_with_a_mark(
    tokenizer: TextTokenizer, kind: str, form: str
) -> None:
    eos, bos = EOS_OF[kind], BOS_OF[kind]
    eos_id = KINDS[kind]().token_to_id(eos)
    word = form.format(*[eos, bos][: form.count("{}")])
    stops = of(tokenizer, word)
    assert stops.token_ids == (900,)
    expected = word.replace(eos, stops.marks[eos_id])
    if form.count("{}") == 2:
        expected = expected.replace(bos, stops.marks[KINDS[kind]().token_to_id(bos)])
    assert stops.strings == (word, expected)
    assert len(stops.marks) == form.count("{}")
    assert of(tokenizer, word, skip_special_tokens=False).strings == (word,), "it stands in the text"


def test_ordinary_stop_strings_stay_what_they_are(tokenizer: TextTokenizer, kind: str) -> None:
    words = ("the dog", "\n\n", "<|", "🙂", "</", "[SE", "<tool call>")
    assert of(tokenizer, *words) == Stops((900,), words)


def test_a_token_that_the_model_cannot_make_is_none_of_its_stop_tokens(tmp_path: Path) -> None:
    tokenizer = TextTokenizer(write_folder(tmp_path / "engine"))
    stops = stops_of(request(stop_words=["<|eos|>"]), info(vocab_size=1, stop_token_ids=(0,)), tokenizer)
    assert stops == Stops((0,), ("<|eos|>",))


def test_marks_differ_and_none_begins_inside_another(tokenizer: TextTokenizer, kind: str) -> None:
    marks = of(tokenizer, f"a{EOS_OF[kind]}", f"a{BOS_OF[kind]}").marks.values()
    assert len(set(marks)) == 2
    for mark in marks:
        high, low = mark
        assert 0xD800 <= ord(high) < 0xDC00 <= ord(low) < 0xE000
