"""The tokenizer that is made from GGUF metadata, on a small vocabulary of the same kind as the real one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, pre_tokenizers

from build_engine.errors import UserMistake
from build_engine.gguf_files.tokenizer import write_tokenizer

pytestmark = pytest.mark.fast

_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture
def metadata() -> dict[str, Any]:
    """Every byte is a token, and two merges."""
    tokens = [*_SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "12", "he"]
    return {
        "llama.context_length": 128,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * len(_SPECIAL) + [1] * (len(tokens) - len(_SPECIAL)),
        "tokenizer.ggml.merges": ["1 2", "h e"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.chat_template": "{{ messages }}",
    }


def test_it_tokenizes_as_the_metadata_says(metadata: dict[str, Any], tmp_path: Path) -> None:
    write_tokenizer(metadata, tmp_path, "x.gguf", 128)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode("he12").tokens == ["he", "1", "2"]  # digits stand alone, although "12" is a token
    assert tokenizer.encode("he").tokens == ["he"]  # no BOS, no space before it
    assert tokenizer.encode("<|im_start|>he<|im_end|>").ids[::2] == [1, 2]
    for text in ("héllo 🎉\n", "  two  spaces", "٣ 3", "<|im_end|>"):
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_the_special_tokens_have_their_roles(metadata: dict[str, Any], tmp_path: Path) -> None:
    write_tokenizer(metadata, tmp_path, "x.gguf", 128)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["eos_token"], config["pad_token"], config["unk_token"]) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
        "<|endoftext|>",
    )
    assert config["add_bos_token"] is False
    assert config["chat_template"] == "{{ messages }}"


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [("model", "bert", "a tokenizer of the kind bert"), ("pre", "brand-new", "splits words as brand-new does")],
)
def test_another_tokenizer_is_refused(
    metadata: dict[str, Any], tmp_path: Path, key: str, value: str, says: str
) -> None:
    metadata[f"tokenizer.ggml.{key}"] = value
    with pytest.raises(UserMistake, match=says):
        write_tokenizer(metadata, tmp_path, "x.gguf", 128)


def test_ends_are_added_where_the_metadata_ask_for_them(metadata: dict[str, Any], tmp_path: Path) -> None:
    metadata |= {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    write_tokenizer(metadata, tmp_path, "x.gguf", 128)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode("he").tokens == ["<|im_start|>", "he", "<|im_end|>"]


@pytest.mark.parametrize(("pre", "words"), [("qwen2", ["1", "2", "3", "4"]), ("llama-bpe", ["123", "4"])])
def test_digits_stand_alone_or_in_threes(metadata: dict[str, Any], tmp_path: Path, pre: str, words: list[str]) -> None:
    metadata["tokenizer.ggml.pre"] = pre
    write_tokenizer(metadata, tmp_path, "x.gguf", 128)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    split = tokenizer.pre_tokenizer.pre_tokenize_str("1234 he's\n\n x")
    assert [word for word, _ in split] == [*words, "Ġhe", "'s", "ĊĊ", "Ġx"]


def test_sentence_pieces_merge_by_score_and_fall_back_to_bytes(tmp_path: Path) -> None:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "ab", "▁ab", "ba"]
    scores = [0.0] * 259 + [-10.0, -11.0, -12.0, -2.0, -3.0, -1.0]
    said = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": [2, 3, 3, *([6] * 256), *([1] * 6)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    write_tokenizer(said, tmp_path, "x.gguf", 128)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode("ab").tokens == ["<s>", "▁ab"]
    assert tokenizer.encode("aba").tokens == ["<s>", "▁", "a", "ba"]  # ba is the best pair
    assert tokenizer.encode("é").tokens == ["<s>", "▁", "<0xC3>", "<0xA9>"]
    for text in ("ab é ab", "  a"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
