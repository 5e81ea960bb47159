from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from inflight.errors import LoadError
from inflight.model.files import special_tokens, stop_token_ids
from inflight.model.tokenizer_classes import DEFAULTS, OF_MODEL_TYPE
from tests.unit.machines.tokenizer_kinds import write_folder

pytestmark = pytest.mark.fast

ENGINES = Path(__file__).resolve().parents[3] / "python_backend" / "inflight" / "engines"
ADDED = [{"content": "<s>", "id": 1}, {"content": "</s>", "id": 2}, {"content": "<|end|>", "id": 77}]


def write(folder: Path, **files: Any) -> Path:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"generation_config": {"eos_token_id": 5}}, (5,)),
        ({"generation_config": {"eos_token_id": [5, 0, 7]}}, (5, 0, 7)),
        ({"generation_config": {"eos_token_id": 5}, "config": {"eos_token_id": 6}}, (5,)),
        ({"generation_config": {"eos_token_id": None}, "config": {"eos_token_id": 6}}, (6,)),
        ({"generation_config": {"eos_token_id": []}, "config": {"eos_token_id": [6]}}, (6,)),
        ({"generation_config": {}, "config": {"eos_token_id": 6}}, (6,)),
        ({"config": {"eos_token_id": 6}}, (6,)),
        ({"generation_config": {"eos_token_id": None}, "config": {}, "tokenizer_config": {"eos_token": "</s>"}}, (2,)),
        ({"config": {"eos_token_id": None}, "tokenizer_config": {"eos_token": {"content": "<|end|>"}}}, (77,)),
        ({"tokenizer_config": {"eos_token": "</s>"}}, (2,)),
        ({"tokenizer_config": {"eos_token": "<nowhere>"}}, ()),
        ({"tokenizer_config": {"eos_token": None}}, ()),
        ({}, ()),
        # beyond a vocabulary of 100
        ({"generation_config": {"eos_token_id": [5, 100]}}, (5,)),
        ({"generation_config": {"eos_token_id": 100}, "config": {"eos_token_id": 99}}, (99,)),
        ({"config": {"eos_token_id": 4000}, "tokenizer_config": {"eos_token": "</s>"}}, (2,)),
    ],
)
def test_which_tokens_end_a_text(files: dict[str, Any], expected: tuple[int, ...], tmp_path: Path) -> None:
    assert stop_token_ids(write(tmp_path, tokenizer={"added_tokens": ADDED}, **files), 100) == expected


def test_an_end_beyond_the_vocabulary_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert stop_token_ids(write(tmp_path, generation_config={"eos_token_id": [5, 100]}), 100) == (5,)
    assert "generation_config.json" in caplog.text


@pytest.mark.parametrize("wrong", ["</s>", -1, True, 2.0, [5, "x"], [None], {"id": 5}])
@pytest.mark.parametrize("name", ["generation_config", "config"])
def test_what_is_no_token_id_fails_the_load(name: str, wrong: Any, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=rf"eos_token_id of {name}\.json is "):
        stop_token_ids(write(tmp_path, **{name: {"eos_token_id": wrong}}), 100)


def test_no_engine_reads_end_tokens_by_itself() -> None:
    """All of them go through this one function; the simulated one makes an end token of its own."""
    reading = {path.parent.name for path in ENGINES.rglob("*.py") if "stop_token_ids(folder" in path.read_text("utf-8")}
    assert reading == {"openvino", "vllm", "tensorrt_llm"}
    others = ('"eos_token_id"', '"eos_token"')
    assert not [path for path in ENGINES.rglob("*.py") if any(word in path.read_text("utf-8") for word in others)]


WORDS = {"bos_token": "<s>", "eos_token": "</s>"}
OTHERS = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}}


@pytest.mark.parametrize(
    ("config", "special"),
    [
        (WORDS, None),
        ({}, OTHERS),
        ({"bos_token": "<s>"}, {"eos_token": "</s>"}),
        (WORDS, OTHERS),
        ({"bos_token": None, "eos_token": None}, OTHERS),
        (WORDS, {"bos_token": None}),
        ({**WORDS, "added_tokens_decoder": {}}, OTHERS),
        ({"added_tokens_decoder": {}}, OTHERS),
        ({}, {}),
        ({}, None),
    ],
)
def test_special_tokens_are_those_that_transformers_finds(
    config: dict[str, Any], special: dict[str, Any] | None, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    write_folder(tmp_path)
    (tmp_path / "special_tokens_map.json").unlink(missing_ok=True)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    if special is not None:
        (tmp_path / "special_tokens_map.json").write_text(json.dumps(special))
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path).special_tokens_map
    assert special_tokens(tmp_path) == theirs


@pytest.mark.parametrize(
    ("config", "model"),
    [
        *(({"tokenizer_class": name}, {}) for name in DEFAULTS if name != "CodeLlamaTokenizer"),
        ({"tokenizer_class": "CohereTokenizerFast", "unk_token": None, "eos_token": "<end>"}, {}),
        ({"tokenizer_class": "LlamaTokenizer", "added_tokens_decoder": {}}, {}),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, {"model_type": "llama"}),
        *(({}, {"model_type": kind}) for kind in ("llama", "qwen3", "gemma2", "olmo2", "cohere2")),
    ],
)
def test_a_class_of_tokenizers_has_special_tokens_that_no_file_names(
    config: dict[str, Any], model: dict[str, Any], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    write_folder(tmp_path)
    (tmp_path / "special_tokens_map.json").unlink(missing_ok=True)
    write(tmp_path, tokenizer_config=config, config=model)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path).special_tokens_map
    theirs.pop("additional_special_tokens", None)
    assert special_tokens(tmp_path) == theirs


def test_every_model_type_has_the_class_that_transformers_gives_it() -> None:
    auto = pytest.importorskip("transformers.models.auto.tokenization_auto")
    theirs = {
        kind: next(name for name in reversed(auto.TOKENIZER_MAPPING_NAMES[kind]) if name) for kind in OF_MODEL_TYPE
    }
    assert {kind: name.removesuffix("Fast") for kind, name in theirs.items()} == OF_MODEL_TYPE


def test_the_end_token_of_special_tokens_map_ends_sequences(tmp_path: Path) -> None:
    added = [{"id": 77, "content": "<|im_end|>"}]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(OTHERS))
    assert stop_token_ids(tmp_path, 100) == (77,)


@pytest.mark.parametrize("content", ["{", "[]", "3"])
def test_a_broken_special_tokens_map_fails_the_load(content: str, tmp_path: Path) -> None:
    (tmp_path / "special_tokens_map.json").write_text(content)
    with pytest.raises(LoadError, match=r"special_tokens_map\.json"):
        special_tokens(tmp_path)
