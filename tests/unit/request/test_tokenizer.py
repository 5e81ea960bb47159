from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inflight.errors import LoadError, RequestError
from inflight.request.tokenizer import TextTokenizer, _longest_token
from tests.unit.machines.strategies import budget
from tests.unit.machines.tokenizer_kinds import KINDS, WITH_BYTE_TABLE, write_folder

pytestmark = pytest.mark.fast

BOS = {"byte_level": "<|bos|>", "byte_fallback": "<s>", "metaspace": "<s>", "word_piece": "[CLS]"}
KIND = pytest.mark.parametrize("kind", KINDS)


def bos_id(kind: str) -> int:
    return int(KINDS[kind]().token_to_id(BOS[kind]))


@pytest.fixture
def tokenizer(kind: str, tmp_path: Path) -> TextTokenizer:
    return TextTokenizer(write_folder(tmp_path, kind))


@KIND
def test_a_bos_is_added_once(kind: str, tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode("The dog", True)
    assert ids[0] == bos_id(kind)
    assert ids.count(ids[0]) == 1
    assert tokenizer.encode("The dog", False) == ids[1:]


@KIND
def test_a_text_that_begins_with_bos_does_not_get_a_second(kind: str, tokenizer: TextTokenizer) -> None:
    """What a front end's chat template writes, tokenized again by us."""
    with_bos = tokenizer.encode(BOS[kind] + "The dog", True)
    assert with_bos.count(bos_id(kind)) == 1
    assert with_bos[0] == bos_id(kind)
    assert with_bos == tokenizer.encode(BOS[kind] + "The dog", False)


@KIND
def test_a_bos_alone_is_one_token(kind: str, tokenizer: TextTokenizer) -> None:
    assert tokenizer.encode(BOS[kind], True) == [bos_id(kind)]


@KIND
def test_two_bos_that_the_client_wrote_stay_two(kind: str, tokenizer: TextTokenizer) -> None:
    assert tokenizer.encode(BOS[kind] * 2 + "dog", True).count(bos_id(kind)) == 2


@KIND
def test_a_text_that_begins_with_a_repeated_word_keeps_both(kind: str, tokenizer: TextTokenizer) -> None:
    assert tokenizer.encode("dog dog dog", False) == tokenizer.encode("dog dog dog", True)[1:]
    assert tokenizer.encode("aaaa", False) == tokenizer.encode("aaaa", True)[1:]


def test_a_tokenizer_that_adds_nothing_is_left_alone(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = TextTokenizer(folder)
    assert tokenizer.encode("<|bos|><|bos|>dog", True) == tokenizer.encode("<|bos|><|bos|>dog", False)
    assert tokenizer.encode("aa", True) == tokenizer.encode("aa", False)
    assert tokenizer.encode("", True) == []


def test_truncation_and_padding_of_the_training_are_switched_off(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    library = KINDS["byte_level"]().from_file(str(folder / "tokenizer.json"))
    library.enable_truncation(max_length=3)
    library.enable_padding(length=50)
    library.save(str(folder / "tokenizer.json"))
    assert 3 < len(TextTokenizer(folder).encode("The lazy dog sleeps.", True)) < 50


def test_special_tokens_of_both_forms_are_read(tmp_path: Path) -> None:
    tokens = TextTokenizer(write_folder(tmp_path)).special_tokens
    assert tokens == {"bos_token": "<|bos|>", "eos_token": "<|eos|>"}


def test_a_folder_without_tokenizer_config_still_serves(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    (folder / "tokenizer_config.json").unlink()
    tokenizer = TextTokenizer(folder)
    assert tokenizer.special_tokens == {}
    assert tokenizer.encode("<|bos|>dog", True).count(0) == 1


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["{", "[]", "3", ""])
def test_a_broken_file_fails_the_load_with_one_sentence(name: str, content: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    (folder / name).write_text(content)
    with pytest.raises(LoadError) as caught:
        TextTokenizer(folder)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ids", [[-1], [5, 1000], [5, 2**31 - 1]])
def test_ids_outside_the_vocabulary_are_refused(ids: list[int], tmp_path: Path) -> None:
    tokenizer = TextTokenizer(write_folder(tmp_path))
    tokenizer.check_ids([0, 999], 1000)
    with pytest.raises(RequestError, match="input_ids"):
        tokenizer.check_ids(ids, 1000)


def test_other_threads_go_on_while_a_long_text_is_tokenized(tmp_path: Path) -> None:
    """Those that send tokens to everybody else need the interpreter too."""
    tokenizer = TextTokenizer(write_folder(tmp_path))
    text = "0123456789" * 20_000
    for long_work in (lambda: tokenizer.encode(text, False), lambda: tokenizer.count(text)):
        began, turns = time.monotonic(), 0
        thread = threading.Thread(target=long_work)
        thread.start()
        while thread.is_alive():
            time.sleep(0.001)
            turns += 1
        took = time.monotonic() - began
        assert turns > 10, f"{turns} turns in {took:.2f} s"


@pytest.mark.parametrize("kind", WITH_BYTE_TABLE)
@given(text=st.text(st.sampled_from("thequickbrown fox\n09é本🙂<>|"), min_size=1, max_size=60))
@budget(100)
def test_no_token_stands_for_more_bytes_than_the_longest(kind: str, text: str) -> None:
    """But for those of an unknown character, which have no byte table."""
    library = KINDS[kind]()
    ids = library.encode(text, add_special_tokens=False).ids
    unknown = library.token_to_id("<unk>")
    if unknown not in ids:
        assert len(text.encode()) <= len(ids) * _longest_token(library)


def test_the_longest_token_may_be_an_added_one(tmp_path: Path) -> None:
    library = KINDS["byte_level"]()
    assert _longest_token(library) == max(len(token) for token in library.get_vocab())
    folder = write_folder(tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    content["added_tokens"].append({**content["added_tokens"][-1], "id": 421, "content": "é" * 50})
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    assert TextTokenizer(folder).longest_token == 100
