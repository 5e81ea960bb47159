"""model.py at load: whatever is in the way, Triton gets one sentence that it can take, and nothing stays behind."""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from inflight.errors import LoadError, sendable
from inflight_tools.common.layout import BACKEND_SOURCE


class Refused(Exception):
    """Triton's `TritonModelException`."""


Model = Callable[[], Any]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    """`TritonPythonModel` as the stub imports it, in front of a Triton of mocks."""
    triton = MagicMock()
    triton.TritonModelException = Refused
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", triton)
    for name in ("inflight.triton.io", "inflight.triton.metrics"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec = importlib.util.spec_from_file_location("the_stubs_model", BACKEND_SOURCE / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: Model = module.TritonPythonModel
    yield made
    for name in ("inflight.triton.io", "inflight.triton.metrics"):
        sys.modules.pop(name, None)


def args(folder: Path | str, config: str | None = None, **parameters: str) -> dict[str, str]:
    values = {name: {"string_value": value} for name, value in parameters.items()}
    return {
        "model_name": "llm",
        "model_version": "1",
        "model_repository": str(folder),
        "model_config": json.dumps({"parameters": values}) if config is None else config,
    }


def refusal(model: Model, given: dict[str, str]) -> str:
    with pytest.raises(Refused) as refused:
        model().initialize(given)
    said = str(refused.value)
    assert said.encode("utf-8")  # Triton ends the process over what cannot be
    assert "\n" not in said
    assert said.startswith("model llm cannot be loaded: ")
    return said.removeprefix("model llm cannot be loaded: ")


def test_a_refusal_is_its_sentence(model: Model, tmp_path: Path) -> None:
    assert refusal(model, args(tmp_path)).startswith("there is no engine directory 'engine'")


@pytest.mark.parametrize("name", ["modèle", "\ud800", "a\0b", "\udcc3\udca8"])
def test_no_name_ends_the_process(model: Model, tmp_path: Path, name: str) -> None:
    assert refusal(model, args(tmp_path, engine_dir=name))
    assert refusal(model, args(f"{tmp_path}/{name}"))


def test_what_nobody_has_foreseen_is_one_sentence_and_the_log_has_the_rest(
    model: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        said = refusal(model, args(tmp_path, config="{"))
    assert "nobody has foreseen (JSONDecodeError" in said
    assert "Traceback" in caplog.text


def test_a_package_that_is_missing_is_said(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "inflight.backend.starting", None)
    assert "install requirements/serve.txt" in refusal(model, args(tmp_path))


def test_a_package_that_is_missing_while_the_engine_loads_ends_the_engine(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starting = MagicMock()
    monkeypatch.setattr("inflight.backend.starting.Starting", lambda *_: starting)
    monkeypatch.setitem(sys.modules, "inflight.backend.model", None)
    assert "install requirements/serve.txt" in refusal(model, args(tmp_path))
    starting.supervisor.launch.assert_called_once_with()
    starting.stop.assert_called_once_with()


def test_a_model_that_cannot_be_operated_is_not_served(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = MagicMock()
    monkeypatch.setattr("inflight.backend.starting.Starting", MagicMock())
    monkeypatch.setattr("inflight.backend.model.Backend", lambda *_: backend)

    def taken(*_: object) -> None:
        raise LoadError("its control socket is another user's.")

    monkeypatch.setattr("inflight.control.open_control", taken)
    assert refusal(model, args(tmp_path)) == "its control socket is another user's."
    backend.stop.assert_called_once_with()


def test_what_cannot_be_left_in_order_does_not_hide_the_reason(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = MagicMock()
    backend.stop.side_effect = RuntimeError("cannot join thread")
    monkeypatch.setattr("inflight.backend.starting.Starting", MagicMock())
    monkeypatch.setattr("inflight.backend.model.Backend", lambda *_: backend)
    monkeypatch.setattr("inflight.control.open_control", MagicMock(side_effect=LoadError("the reason.")))
    assert refusal(model, args(tmp_path)) == "the reason."


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("plain", "plain"),
        ("modèle", "modèle"),
        ("mod\udcc3\udca8le", "modèle"),
        ("a\udcffb", "a\ufffdb"),
        ("\ud800x", "?x"),
    ],
)
def test_what_triton_is_handed_is_utf_8(text: str, sent: str) -> None:
    assert sendable(text) == sent
