"""What an engine process that cannot load tells the operator, and under which environment it loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from inflight.engine_process.launch import EngineProcess
from inflight.engines.python import foreign_environment, own_environment
from inflight.engines.spec import WorkerSpec
from inflight.errors import LoadError
from inflight.model.files import path_of, text_of
from inflight_tools.common.layout import BACKEND_SOURCE
from tests.unit.machines.tokenizer_kinds import byte_level


def refusal(folder: Path, options: dict[str, Any]) -> str:
    process = EngineProcess(WorkerSpec("simulated", text_of(folder), options, 0))
    try:
        with pytest.raises(LoadError) as refused:
            process.start(60.0, lambda: False)
    finally:
        process.kill()
    return str(refused.value)


def test_an_error_that_nobody_has_foreseen_is_one_sentence_and_the_log_has_the_rest(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    said = refusal(tmp_path, {"load_ms": 1e30})  # time.sleep refuses it
    assert said.startswith("an error came up that nobody has foreseen (OverflowError: ")
    assert said.endswith("); the log above has its traceback.")
    assert "\n" not in said
    assert "Traceback" in capfd.readouterr().err


def test_what_the_engine_says_beyond_ascii_arrives(tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    assert refusal(tmp_path, {"fail_load": "Größe: 你好."}) == "Größe: 你好."


@pytest.mark.parametrize("variable", ["LC_ALL", "LANG"])
def test_an_engine_directory_beyond_ascii_is_found_whatever_the_locale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv("PYTHONUTF8", "0")
    monkeypatch.setenv(variable, "C")
    folder = tmp_path / "modèle"
    folder.mkdir()
    byte_level().save(str(folder / "tokenizer.json"))
    process = EngineProcess(WorkerSpec("simulated", text_of(folder), {}, 0))
    try:
        assert process.start(60.0, lambda: False).name == "simulated"
    finally:
        process.kill()


def test_every_process_of_ours_takes_utf_8_for_the_encoding_of_files() -> None:
    assert own_environment()["PYTHONUTF8"] == foreign_environment(Path("/usr/bin/python3"), None)["PYTHONUTF8"] == "1"


@pytest.mark.parametrize("text", ["plain", "modèle", "你好/x", "a b"])
def test_a_path_and_its_text_are_one(text: str) -> None:
    assert text_of(path_of(text)) == text


def test_a_path_is_utf_8_where_python_takes_ascii_for_the_encoding_of_names(tmp_path: Path) -> None:
    """As in Triton's stub, under every locale."""
    (tmp_path / "modèle").mkdir()
    program = f"""
import sys
from inflight.model.files import is_folder, path_of, text_of
assert sys.getfilesystemencoding() == "ascii"
name = {str(tmp_path / "modèle")!a}
assert is_folder(path_of(name))
assert text_of(path_of(name)) == name
"""
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(BACKEND_SOURCE)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60)


@pytest.mark.parametrize("text", ["\0", "a\0b", "\ud800", "x" * 5000])
def test_what_can_be_no_path_refuses_the_load(text: str) -> None:
    with pytest.raises(LoadError, match="cannot be the name of a file"):
        path_of(text)
