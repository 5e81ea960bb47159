from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from build_engine import source
from build_engine.console import Console
from build_engine.errors import UserMistake
from build_engine.vocabulary import check_vocabulary
from tests.unit.build.test_config import write_config

pytestmark = pytest.mark.fast

ROWS = 4


def check(directory: Path, tokenizer: Any) -> str:
    """What is said about a model of four embeddings with this tokenizer.json."""
    write_config(directory, vocab_size=ROWS)
    (directory / "model.safetensors").write_bytes(b"w")
    if tokenizer is not None:
        text = tokenizer if isinstance(tokenizer, str) else json.dumps(tokenizer)
        (directory / "tokenizer.json").write_text(text, encoding="utf-8")
    said = io.StringIO()
    check_vocabulary(source.resolve(str(directory)), Console(said))
    return said.getvalue()


def tokenizer(vocabulary: Any, **added: int) -> dict[str, Any]:
    tokens = [{"content": f"<{name}>", "id": number} for name, number in added.items()]
    return {"model": {"vocab": vocabulary}, "added_tokens": tokens}


def test_a_tokenizer_that_fits(tmp_path: Path) -> None:
    assert check(tmp_path, tokenizer({"a": 0, "b": 1}, eos=3)) == ""
    assert check(tmp_path, tokenizer([["a", 0.0], ["b", -1.0]], pad=2)) == ""
    assert check(tmp_path, None) == ""


@pytest.mark.parametrize(
    "vocabulary", [{"a": 0, "b": 4}, {"a": 0, "b": 4, "<eos>": 3}, [["x", -1.0]] * 4 + [["b", -2.0]]]
)
def test_a_vocabulary_larger_than_the_model_is_refused(vocabulary: Any, tmp_path: Path) -> None:
    with pytest.raises(UserMistake, match=r"more than the 4 of the model .*'b', id 4"):
        check(tmp_path, tokenizer(vocabulary, eos=3))


def test_added_tokens_beyond_the_model_are_named(tmp_path: Path) -> None:
    said = check(tmp_path, tokenizer({"a": 0, "<pad>": 4}, eos=3, pad=4, image=5))
    assert "'<pad>' (id 4), '<image>' (id 5)" in said
    assert "<eos>" not in said


@pytest.mark.parametrize("content", ["{", "[]", '{"model": {"vocab": [1]}}', '{"model": 3}', '{"added_tokens": [{}]}'])
def test_a_damaged_tokenizer_is_one_sentence(content: str, tmp_path: Path) -> None:
    with pytest.raises(UserMistake, match="damaged"):
        check(tmp_path, content)
