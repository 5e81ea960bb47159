"""How long a sequence may be on OpenVINO: by the manifest, and no longer than the graph is right."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from inflight import manifest
from inflight.engines.openvino.engine import OpenVinoEngine
from tests.unit.machines.tokenizer_kinds import write_folder

CONFIG = {
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "vocab_size": 300,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": 1024,
}
LONGROPE = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}


def load(folder: Path, monkeypatch: pytest.MonkeyPatch, built_for: int, **config: Any) -> int:
    """The longest sequence of an engine whose manifest says `built_for`."""
    write_folder(folder, "byte_level")
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}), encoding="utf-8")
    manifest.write(
        folder,
        manifest.Manifest(
            target="openvino",
            source=manifest.Source(name="a model", architecture="Phi3ForCausalLM", sha256="0"),
            quantization=manifest.Quantization(algorithm="int8", kv_cache="int8", recipe="int8"),
            parallelism=manifest.Parallelism(),
            limits=manifest.Limits(max_seq_len=built_for),
            requires=manifest.Requires(),
            verification=None,
            files=[],
            built=manifest.Built(by="an older release", command="", date="", seconds=0.0),
        ),
    )
    monkeypatch.setattr(OpenVinoEngine, "_load", lambda *_: MagicMock())
    return OpenVinoEngine(folder, {}, 0).info.max_seq_len


def test_an_engine_built_before_longrope_was_known_is_cut_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        length = load(tmp_path, monkeypatch, 1024, rope_scaling=LONGROPE, original_max_position_embeddings=600)
    assert length == 600
    assert "sequences end at 600 tokens instead of 1024" in caplog.text


@pytest.mark.parametrize("config", [{}, {"rope_scaling": LONGROPE, "original_max_position_embeddings": 600}])
def test_an_engine_within_its_limits_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, config: dict[str, Any]
) -> None:
    with caplog.at_level(logging.WARNING):
        assert load(tmp_path, monkeypatch, 512, **config) == 512
    assert caplog.text == ""
