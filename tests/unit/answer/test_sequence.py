from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inflight.answer.detokenizer import DetokenizerFactory
from inflight.answer.sequence import SequenceText
from inflight.request.stop_words import Stops
from tests.unit.machines.strategies import budget, cuts
from tests.unit.machines.tokenizer_kinds import KINDS, WITH_BYTE_TABLE, token_bytes

pytestmark = pytest.mark.fast

TEXTS = st.text("The lazy dog.\n🙂é日", min_size=1, max_size=24)
PROMPT = "a"
FACTORIES = {kind: DetokenizerFactory(make(), make().get_vocab_size()) for kind, make in KINDS.items()}


def sequence(kind: str, stops: Sequence[str]) -> SequenceText:
    return SequenceText(FACTORIES[kind].make(True, KINDS[kind]().encode(PROMPT).ids), Stops((), tuple(stops)))


def marked(kind: str, word: str, min_tokens: int = 0) -> SequenceText:
    """One that looks for `word`, in which the kind's end token may stand."""
    mark = "\ud800\udc01"
    stops = Stops((), (word.format(mark),), {end_of(kind): mark}, min_tokens)
    return SequenceText(FACTORIES[kind].make(True, KINDS[kind]().encode(PROMPT).ids), stops)


def end_of(kind: str) -> int:
    """The kind's end token, a special one."""
    ids = (KINDS[kind]().token_to_id(token) for token in ("<|eos|>", "</s>", "[SEP]"))
    return next(token_id for token_id in ids if token_id is not None)


def encode(kind: str, text: str) -> list[int]:
    return list(KINDS[kind]().encode(text, add_special_tokens=False).ids)


def certain_text(kind: str, ids: Sequence[int]) -> str:
    """The text of the ids after the prompt, without the bytes of an unfinished character at the end."""
    if kind in WITH_BYTE_TABLE:
        return token_bytes(kind, ids).decode("utf-8", "ignore")
    tokenizer = KINDS[kind]()
    prompt = tokenizer.encode(PROMPT).ids
    before, whole = tokenizer.decode(prompt), tokenizer.decode([*prompt, *ids])
    return str(whole[len(before) :])


def naive(kind: str, ids: Sequence[int], stops: Sequence[str]) -> tuple[str, int | None]:
    """(text, how many tokens it took until a stop string was whole), token by token and character by character."""
    read = ""
    for used in range(1, len(ids) + 1):
        text = certain_text(kind, ids[:used])
        for end in range(len(read) + 1, len(text) + 1):
            ending = [stop for stop in stops if text[:end].endswith(stop)]
            if ending:
                return text[: end - max(map(len, ending))], used
        read = text
    return read, None


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), text=TEXTS)
@budget(80)
def test_text_and_used_tokens_do_not_depend_on_how_the_tokens_were_cut(
    kind: str, data: st.DataObject, text: str
) -> None:
    ids = encode(kind, text)
    shown = certain_text(kind, ids)
    inside = st.integers(0, max(len(shown) - 1, 0)).flatmap(
        lambda start: st.integers(1, 6).map(lambda length: shown[start : start + length] or "x")
    )
    stops = data.draw(st.lists(inside | st.text("The dog🙂", min_size=1, max_size=4), max_size=3))
    one = sequence(kind, stops)
    emitted, used, stopped = "", 0, False
    for piece in data.draw(cuts(ids)):
        pushed = one.push(list(piece))
        emitted += pushed.text
        used += pushed.tokens_used
        stopped = pushed.stopped
        if stopped:
            break
        assert pushed.tokens_used == len(piece)
    if not stopped:
        emitted += one.finish()
    expected, end = naive(kind, ids, stops)
    assert (emitted, stopped) == (expected, end is not None)
    assert used == (len(ids) if end is None else end)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_behind_the_one_that_completed_the_stop_string_are_not_used(kind: str) -> None:
    ids = encode(kind, "The lazy dog sleeps. The lazy dog")
    pushed = sequence(kind, ["dog"]).push(ids)
    text, used = naive(kind, ids, ["dog"])
    assert pushed.stopped
    assert pushed.text == text
    assert pushed.text.strip() == "The lazy"
    assert pushed.tokens_used == used
    assert pushed.tokens_used < len(ids)


def test_the_same_token_may_hold_the_end_of_one_stop_string_and_more() -> None:
    """The token ".\\n" (or its parts) ends the answer at the point; what stands behind it never leaves."""
    ids = encode("byte_level", "dog.\n\n")
    pushed = sequence("byte_level", ["."]).push(ids)
    assert pushed.text == "dog"
    assert pushed.stopped


def test_a_half_character_at_the_end_is_dropped_and_held_text_is_not() -> None:
    ids = encode("byte_fallback", "the 日")
    one = sequence("byte_fallback", ["the end"])
    assert one.push(ids[:-1]).text + one.finish() == certain_text("byte_fallback", ids[:-1])


def naive_after(kind: str, ids: Sequence[int], stops: Sequence[str], min_tokens: int) -> tuple[str, int | None]:
    """`naive`, but that no stop string counts that ends in the text of the first `min_tokens` tokens."""
    read = certain_text(kind, ids[:min_tokens])
    for used in range(min_tokens + 1, len(ids) + 1):
        text = certain_text(kind, ids[:used])
        for end in range(len(read) + 1, len(text) + 1):
            ending = [stop for stop in stops if text[:end].endswith(stop)]
            if ending:
                return text[: end - max(map(len, ending))], used
        read = text
    return certain_text(kind, ids), None


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), text=TEXTS)
@budget(80)
def test_min_tokens_hold_back_stop_strings_however_the_tokens_were_cut(
    kind: str, data: st.DataObject, text: str
) -> None:
    ids = encode(kind, text)
    shown = certain_text(kind, ids)
    inside = st.integers(0, max(len(shown) - 1, 0)).flatmap(
        lambda start: st.integers(1, 6).map(lambda length: shown[start : start + length] or "x")
    )
    stops = data.draw(st.lists(inside, min_size=1, max_size=3))
    least = data.draw(st.integers(0, len(ids) + 1))
    one = SequenceText(FACTORIES[kind].make(True, KINDS[kind]().encode(PROMPT).ids), Stops((), tuple(stops), {}, least))
    emitted, used, stopped = "", 0, False
    for piece in data.draw(cuts(ids)):
        pushed = one.push(list(piece))
        emitted += pushed.text
        used += pushed.tokens_used
        stopped = pushed.stopped
        if stopped:
            break
    if not stopped:
        emitted += one.finish()
    expected, end = naive_after(kind, ids, stops, least)
    assert (emitted, stopped) == (expected, end is not None)
    assert used == (len(ids) if end is None else end)
    assert end is None or used > least


def test_a_stop_string_that_begins_within_min_tokens_and_ends_behind_them_counts() -> None:
    ids = encode("byte_level", "a dog")
    one = SequenceText(FACTORIES["byte_level"].make(True, ids), Stops((), ("dog",), {}, len(ids) - 1))
    assert one.push(ids).text == "a "
    one = SequenceText(FACTORIES["byte_level"].make(True, ids), Stops((), ("dog",), {}, len(ids)))
    assert one.push([*ids, *ids]).text == "a doga "


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("around", [(0, 3), (3, 0), (3, 3), (0, 1)], ids=str)
def test_a_special_token_in_a_stop_string_is_found_and_never_shown(kind: str, around: tuple[int, int]) -> None:
    first, second = encode(kind, "the dog"), encode(kind, " lazy dog")
    before = certain_text(kind, first)
    after = certain_text(kind, [*first, *second])[len(before) :]
    word = before[len(before) - around[0] :] + "{}" + after[: around[1]]
    ids = [*first, end_of(kind), *second]
    pushed = marked(kind, word).push(ids)
    assert pushed.stopped
    assert pushed.text == before[: len(before) - around[0]]
    assert len(first) < pushed.tokens_used < len(ids)
    one, text, used = marked(kind, word), "", 0
    for token_id in ids:
        part = one.push([token_id])
        text, used = text + part.text, used + 1
        if part.stopped:
            break
    assert (text, used) == (pushed.text, pushed.tokens_used)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("word", ["{0}{0}", "{0}zzz", "zzz{0}"])
def test_a_special_token_that_completes_no_stop_string_changes_nothing(kind: str, word: str) -> None:
    ids = [*encode(kind, "the dog"), end_of(kind), *encode(kind, " lazy dog"), end_of(kind)]
    one = marked(kind, word)
    pushed = one.push(ids)
    assert not pushed.stopped
    assert pushed.text + one.finish() == certain_text(kind, ids)


MARK = "\ud800\udc01"


def marked_text(kind: str, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text in which every end token leaves its mark."""
    pieces, before = [], ""
    for used, token_id in enumerate(ids, 1):
        text = certain_text(kind, ids[:used])
        pieces.append(text[len(before) :] + (MARK if token_id == end_of(kind) else ""))
        before = text
    return pieces


@pytest.mark.parametrize("kind", WITH_BYTE_TABLE)
@given(data=st.data(), texts=st.lists(TEXTS, min_size=1, max_size=4))
@budget(60)
def test_marked_stop_strings_do_not_depend_on_how_the_tokens_were_cut(
    kind: str, data: st.DataObject, texts: list[str]
) -> None:
    ids = [token_id for text in texts for token_id in (*encode(kind, text), end_of(kind))]
    pieces = marked_text(kind, ids)
    whole = "".join(pieces)
    places = [place for place in range(len(whole)) if whole.startswith(MARK, place)]
    place = data.draw(st.sampled_from(places))
    start = data.draw(st.integers(max(0, place - 4), place))
    stop = whole[start : place + len(MARK) + data.draw(st.integers(0, 4))]
    if stop.endswith("\ud800") or stop.startswith("\udc01"):
        return  # half a mark
    least = data.draw(st.integers(0, len(ids)))
    stops = Stops((), (stop,), {end_of(kind): MARK}, least)
    one = SequenceText(FACTORIES[kind].make(True, KINDS[kind]().encode(PROMPT).ids), stops)
    emitted, used, stopped = "", 0, False
    for piece in data.draw(cuts(ids)):
        pushed = one.push(list(piece))
        emitted += pushed.text
        used += pushed.tokens_used
        stopped = pushed.stopped
        if stopped:
            break
    if not stopped:
        emitted += one.finish()
    expected, end = whole, len(ids)
    for count in range(least + 1, len(ids) + 1):
        read, text = "".join(pieces[: count - 1]), "".join(pieces[:count])
        found = text.find(stop, max(0, len(read) - len(stop) + 1))
        if found >= 0:
            expected, end = text[:found], count
            break
    assert (emitted, used) == (expected.replace(MARK, ""), end)
    assert "\ud800" not in emitted


def test_what_could_still_become_such_a_stop_string_is_held_back() -> None:
    ids = encode("byte_level", "dog")
    one = marked("byte_level", "dog{}!")
    assert one.push(ids).text == ""
    assert one.push([1]).text == ""
    assert one.push(encode("byte_level", "?")).text == "dog?"
    assert one.finish() == ""
