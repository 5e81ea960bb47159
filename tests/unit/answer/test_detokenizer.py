"""Token ids to text, for a tokenizer of each kind: the pieces must add up to the library's decode of the whole."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from inflight.answer.detokenizer import DetokenizerFactory
from tests.unit.machines.strategies import budget, cuts
from tests.unit.machines.tokenizer_kinds import CORPUS, KINDS, WITH_BYTE_TABLE, token_bytes

pytestmark = pytest.mark.fast

ALPHABET = "The lazy dog,.\n\t 日本🙂👩‍👧🇩🇪e\u0301Üé€"
TEXTS = st.text(ALPHABET, min_size=1, max_size=30) | st.sampled_from(CORPUS)
PROMPTS = st.sampled_from(["Hello", "a b ", " x", "日本", "ends with a line\n", "🙂"])
KIND = pytest.mark.parametrize("kind", KINDS)
EXACT = pytest.mark.parametrize("kind", WITH_BYTE_TABLE)


def factory(kind: str) -> tuple[Tokenizer, DetokenizerFactory]:
    tokenizer = KINDS[kind]()
    if kind not in FACTORIES:
        FACTORIES[kind] = DetokenizerFactory(tokenizer, tokenizer.get_vocab_size())
    return tokenizer, FACTORIES[kind]


FACTORIES: dict[str, DetokenizerFactory] = {}


def pieces(kind: str, prompt: Sequence[int], chunks: Sequence[Sequence[int]], skip_special: bool = True) -> list[str]:
    detokenizer = factory(kind)[1].make(skip_special, prompt)
    return [detokenizer.push(list(chunk)) for chunk in chunks]


def added_by(tokenizer: Tokenizer, prompt: list[int], output: list[int], skip_special: bool = True) -> str:
    """What `output` adds to the decoded prompt, by the library's own decode of the whole."""
    before = tokenizer.decode(prompt, skip_special_tokens=skip_special)
    whole = tokenizer.decode([*prompt, *output], skip_special_tokens=skip_special)
    assert whole.startswith(before)
    return str(whole[len(before) :])


def test_which_kinds_have_a_byte_table() -> None:
    assert {kind for kind in KINDS if factory(kind)[1].exact} == set(WITH_BYTE_TABLE)


@KIND
@given(data=st.data(), prompt=PROMPTS, text=TEXTS)
@budget(80)
def test_pieces_add_up_to_the_librarys_decode_of_the_whole(
    kind: str, data: st.DataObject, prompt: str, text: str
) -> None:
    """No space lost or added where the prompt ends, none at a cut, and no broken character."""
    tokenizer, _ = factory(kind)
    prompt_ids = tokenizer.encode(prompt).ids
    output = tokenizer.encode(text, add_special_tokens=False).ids
    got = "".join(pieces(kind, prompt_ids, data.draw(cuts(output))))
    assert got == added_by(tokenizer, prompt_ids, output)
    assert "\ufffd" not in got


@EXACT
@given(data=st.data(), text=TEXTS)
@budget(80)
def test_a_sequence_cut_off_in_the_middle_of_a_character_loses_only_that_character(
    kind: str, data: st.DataObject, text: str
) -> None:
    """The library gives up the whole run of bytes before the cut; what was streamed cannot be taken back."""
    tokenizer, _ = factory(kind)
    prompt = tokenizer.encode("a").ids
    output = tokenizer.encode(text, add_special_tokens=False).ids
    output = output[: data.draw(st.integers(0, len(output)))]
    got = "".join(pieces(kind, prompt, data.draw(cuts(output))))
    assert got == token_bytes(kind, output).decode("utf-8", "ignore")


@KIND
@given(data=st.data())
@budget(100)
def test_random_tokens_give_the_same_text_however_they_are_cut(kind: str, data: st.DataObject) -> None:
    """Also bytes that are no text at all, special tokens and the rows a model has beyond its tokenizer."""
    tokenizer, _ = factory(kind)
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=24))
    skip_special = data.draw(st.booleans())
    prompt = tokenizer.encode("The dog").ids
    one_by_one = pieces(kind, prompt, [[token_id] for token_id in ids], skip_special)
    assert "".join(pieces(kind, prompt, data.draw(cuts(ids)), skip_special)) == "".join(one_by_one)


@EXACT
@given(data=st.data())
@budget(100)
def test_random_bytes_that_are_no_text_become_replacement_characters_and_spare_the_rest(
    kind: str, data: st.DataObject
) -> None:
    tokenizer, _ = factory(kind)
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=24))
    got = "".join(pieces(kind, tokenizer.encode("a").ids, [ids]))
    whole = token_bytes(kind, ids).decode("utf-8", "replace")
    assert whole.startswith(got)
    missing = whole[len(got) :]  # Python counts an impossible beginning such as ED A0 as one replacement per byte
    assert len(missing) <= 3, "only the bytes of one unfinished character may be missing"
    assert set(missing) <= {"\ufffd"}


@EXACT
@pytest.mark.parametrize("text", ["🙂", "👩‍👩‍👧", "🇩🇪", "e\u0301", "日本", "한국"])
def test_a_character_leaves_whole(kind: str, text: str) -> None:
    """Token by token every piece is complete text, and every code point is there as soon as its last byte is."""
    tokenizer, _ = factory(kind)
    prompt = tokenizer.encode("a").ids
    output = tokenizer.encode(text, add_special_tokens=False).ids
    got = pieces(kind, prompt, [[token_id] for token_id in output])
    assert "".join(got).strip(" ") == text
    assert all("\ufffd" not in piece for piece in got)
    assert got[-1], "the last token completes the last character, so text must leave with it"


def test_byte_fallback_emits_nothing_before_the_fourth_byte() -> None:
    tokenizer, _ = factory("byte_fallback")
    output = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "🙂".encode()]
    assert pieces("byte_fallback", tokenizer.encode("a").ids, [[one] for one in output]) == ["", "", "", "🙂"]


@KIND
def test_the_space_between_prompt_and_answer_is_kept(kind: str) -> None:
    tokenizer, _ = factory(kind)
    prompt = tokenizer.encode("The lazy").ids
    whole = tokenizer.encode("The lazy dog sleeps").ids
    assert whole[: len(prompt)] == prompt
    assert "".join(pieces(kind, prompt, [[one] for one in whole[len(prompt) :]])) == " dog sleeps"


@pytest.mark.parametrize(
    "kind",
    [
        "byte_level",
        "word_piece",
        "byte_fallback",
        "metaspace",
    ],
)
def test_an_answer_to_a_bare_bos_begins_as_the_whole_decode_does(kind: str) -> None:
    """A prompt given as ids may be nothing but the BOS; then the answer's first word is the first word of all."""
    tokenizer, _ = factory(kind)
    bos = tokenizer.encode("").ids
    output = tokenizer.encode("The dog", add_special_tokens=False).ids
    assert "".join(pieces(kind, bos, [output])) == added_by(tokenizer, bos, output) == "The dog"


@KIND
def test_an_answer_that_goes_on_within_a_word_gets_no_space(kind: str) -> None:
    tokenizer, _ = factory(kind)
    whole = tokenizer.encode("ab" if kind == "word_piece" else "dogdog").ids
    assert "".join(pieces(kind, whole[:-1], [whole[-1:]])) == added_by(tokenizer, whole[:-1], whole[-1:])
    assert " " not in "".join(pieces(kind, whole[:-1], [whole[-1:]]))


@KIND
def test_special_tokens_are_left_out_or_shown(kind: str) -> None:
    tokenizer, made = factory(kind)
    special = max(made.special_ids)
    prompt = tokenizer.encode("a").ids
    tail = tokenizer.encode("dog", add_special_tokens=False).ids
    token = tokenizer.id_to_token(special)
    assert token not in "".join(pieces(kind, prompt, [[special], tail]))
    assert token in "".join(pieces(kind, prompt, [[special], tail], skip_special=False))


def test_an_added_token_with_a_space_in_it_is_shown_as_it_is() -> None:
    tokenizer, _ = factory("byte_level")
    token_id = tokenizer.token_to_id("<tool call>")
    assert pieces("byte_level", [5], [[token_id]]) == ["<tool call>"]


def test_rows_of_the_model_beyond_the_tokenizer_are_no_text() -> None:
    tokenizer = KINDS["byte_level"]()
    size = tokenizer.get_vocab_size()
    detokenizer = DetokenizerFactory(tokenizer, size + 64).make(True, [])
    assert detokenizer.push([size, size + 63]) == ""
    assert detokenizer.push(tokenizer.encode("dog", add_special_tokens=False).ids) == "dog"


@KIND
@given(data=st.data(), text=TEXTS)
@budget(40)
def test_going_back_to_a_snapshot_and_on_again_gives_the_same_text(kind: str, data: st.DataObject, text: str) -> None:
    tokenizer, made = factory(kind)
    output = tokenizer.encode(text, add_special_tokens=False).ids
    cut = data.draw(st.integers(0, len(output)))
    detokenizer = made.make(True, tokenizer.encode("a").ids)
    detokenizer.push(output[:cut])
    state = detokenizer.snapshot()
    rest = detokenizer.push(output[cut:])
    detokenizer.push(output)
    detokenizer.restore(state)
    assert detokenizer.push(output[cut:]) == rest


def test_a_window_over_a_long_answer_stays_small_and_exact() -> None:
    """The fallback must not decode the whole answer again for every token."""
    tokenizer, made = factory("word_piece")
    output = tokenizer.encode(" ".join(CORPUS[:3]) * 20, add_special_tokens=False).ids
    prompt = tokenizer.encode("The").ids
    detokenizer = made.make(True, prompt)
    got = "".join(detokenizer.push([token_id]) for token_id in output)
    assert len(output) > 1000
    assert got == added_by(tokenizer, prompt, output)
    assert len(detokenizer.snapshot()[0]) < 64


def test_a_run_of_tokens_without_text_does_not_make_the_window_grow() -> None:
    tokenizer, made = factory("word_piece")
    detokenizer = made.make(True, tokenizer.encode("The").ids)
    assert detokenizer.push([max(made.special_ids)] * 500) == ""
    assert detokenizer.push(tokenizer.encode("dog", add_special_tokens=False).ids) == " dog"
    assert len(detokenizer.snapshot()[0]) < 64
