"""A damaged engine directory, or a parameter without sense, is one sentence for the operator, never a traceback."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from inflight import manifest
from inflight.backend.model import Backend
from inflight.backend.starting import Starting
from inflight.engines.factory import create_engine
from inflight.engines.openvino.engine import OpenVinoEngine
from inflight.engines.spec import WorkerSpec
from inflight.errors import LoadError
from inflight.model.parameters import model_parameters, parse_model_config
from tests.harness.damage import FILES, ODD, copy_files, damage
from tests.unit.machines.tokenizer_kinds import byte_level

DIRECTORIES = 1000
SHARES = 5  # tests that share them, so that a failure names its part of them


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small engine directory in which nothing is wrong; its texts are not ASCII."""
    folder = tmp_path_factory.mktemp("whole") / "engine"
    folder.mkdir()
    byte_level().save(str(folder / "tokenizer.json"))
    eos = byte_level().token_to_id("<|eos|>")
    files: dict[str, Any] = {
        "tokenizer_config.json": {"bos_token": "<|bos|>", "eos_token": {"content": "<|eos|>"}, "name": "Größe"},
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": byte_level().get_vocab_size(),
            "max_position_embeddings": 512,
            "hidden_size": 64,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "num_hidden_layers": 2,
        },
        "generation_config.json": {
            "eos_token_id": eos,
            "do_sample": True,
            "temperature": 0.7,
            "top_k": 40,
            "top_p": 1.0,
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    template = "{# Grüße, 你好 #}{% for m in messages %}<|{{ m.role }}|>{{ m['content'] }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    manifest.write(
        folder,
        manifest.Manifest(
            target="openvino",
            source=manifest.Source(name="größe", architecture="LlamaForCausalLM", sha256="0"),
            quantization=manifest.Quantization(algorithm="int8", kv_cache="u8", recipe="int8"),
            parallelism=manifest.Parallelism(),
            limits=manifest.Limits(max_seq_len=512),
            requires=manifest.Requires(),
            verification=None,
            files=[],
            built=manifest.Built(by="test", command="", date="", seconds=0.0),
        ),
    )
    return folder


def load(folder: Path, monkeypatch: pytest.MonkeyPatch, **parameters: str) -> None:
    """What a load does before OpenVINO reads the weights: here, and in the engine process. Raises `LoadError`."""
    config = parse_model_config(parameters)
    starting = Starting(config, folder.parent)
    Backend(config, folder.parent, starting=starting)
    with monkeypatch.context() as without_weights:
        without_weights.setattr(OpenVinoEngine, "_load", lambda *_: MagicMock())
        for engine in {starting.engine, "simulated"} & {"openvino", "simulated"}:
            create_engine(WorkerSpec(engine, str(folder), {}, 0))


def check_sentence(error: LoadError, what: str) -> None:
    said = str(error)
    assert 20 < len(said) < 700, what
    assert "\n" not in said, what
    assert "Traceback" not in said, what


def test_the_whole_one_loads(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(whole, monkeypatch)


@pytest.mark.parametrize("share", range(SHARES))
def test_a_damaged_file_is_one_sentence(
    whole: Path, tmp_path: Path, share: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = 0
    for number in range(share, DIRECTORIES, SHARES):
        folder = tmp_path / str(number) / "engine"
        copy_files(whole, folder)
        what = damage(folder, number, (*FILES, "engine.json"))
        try:
            load(folder, monkeypatch)
        except LoadError as error:
            check_sentence(error, what)
            refused += 1
        except BaseException as error:  # noqa: BLE001 — the tokenizers library has panics
            pytest.fail(f"{what}: {type(error).__name__}: {error}")
        shutil.rmtree(folder.parent, ignore_errors=True)
    assert refused > DIRECTORIES / SHARES / 4  # else the damage is none


@pytest.mark.parametrize("name", ["tokenizer_config.json", "config.json", "generation_config.json", "engine.json"])
def test_an_odd_value_anywhere_is_one_sentence(
    whole: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = json.loads((whole / name).read_text(encoding="utf-8"))
    folder = tmp_path / "engine"
    copy_files(whole, folder)
    for key, odd in itertools.product(content, ODD):
        (folder / name).write_text(json.dumps({**content, key: odd}), encoding="utf-8")
        what = f"{name}: {key!r} is {odd!r:.40}"
        try:
            load(folder, monkeypatch)
        except LoadError as error:
            check_sentence(error, what)
        except BaseException as error:  # noqa: BLE001 — as above
            pytest.fail(f"{what}: {type(error).__name__}: {error}")


@pytest.mark.parametrize("number", range(200))
def test_a_parameter_without_sense_is_one_sentence(whole: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random_ = random.Random(number)
    name = random_.choice([*model_parameters()])
    odd = random_.choice(
        [*map(str, ODD), "[" * 100_000, '{"a": ' + "9" * 5000 + "}", "/\0", "n" * 300, "~", "é/è", '{"x": 1}']
    )
    try:
        load(whole, monkeypatch, **{name: odd})
    except LoadError as error:
        check_sentence(error, f"{name} = {odd!r:.60}")
