"""The tokenizer that is made from GGUF metadata, on a small vocabulary of the same kind as the real one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, pre_tokenizers

from inflight_tools.common.fetch_model import write_tokenizer
from inflight_tools.common.report import Failure

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
    write_tokenizer(metadata, tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode("he12").tokens == ["he", "1", "2"]  # digits stand alone, although "12" is a token
    assert tokenizer.encode("he").tokens == ["he"]  # no BOS, no space before it
    assert tokenizer.encode("<|im_start|>he<|im_end|>").ids[::2] == [1, 2]
    for text in ("héllo 🎉\n", "  two  spaces", "٣ 3", "<|im_end|>"):
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_the_special_tokens_have_their_roles(metadata: dict[str, Any], tmp_path: Path) -> None:
    write_tokenizer(metadata, tmp_path)
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
    ("key", "value"),
    [("model", "llama"), ("pre", "default"), ("add_bos_token", True), ("add_space_prefix", True)],
)
def test_another_tokenizer_is_refused(metadata: dict[str, Any], tmp_path: Path, key: str, value: object) -> None:
    metadata[f"tokenizer.ggml.{key}"] = value
    with pytest.raises(Failure, match=rf"tokenizer\.ggml\.{key} = {value!r}"):
        write_tokenizer(metadata, tmp_path)
