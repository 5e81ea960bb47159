"""What a command leaves behind: nothing, unless it says so; and how a checkpoint's files are counted and called."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path

import pytest

from build_engine import fetch, source
from build_engine.errors import AccuracyFailure, Interrupted, StageFailure, UserMistake
from build_engine.interrupt import interruptible
from build_engine.weights_check import check_weights
from build_engine.work_folder import work_folder
from inflight_tools.common.tiny_models import write_config
from tests.harness.alone import in_a_process_of_its_own
from tests.tiny_weights import write_safetensors
from tests.unit.build.test_weights_check import HEAD, shapes_of, without

pytestmark = pytest.mark.fast

ROOT = Path(__file__).resolve().parents[3]
SHAPES = without(HEAD)(shapes_of())


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize(
    ("error", "left"),
    [
        (UserMistake("no"), False),
        (AccuracyFailure("too far"), False),  # 8 folders with a log that nobody named lay there once
        (StageFailure("it broke (log: {log})"), True),
        (StageFailure("it broke"), False),
        (Interrupted(2), False),
    ],
)
def test_a_log_is_left_where_the_sentence_names_it(error: BaseException, left: bool, temporary: Path) -> None:
    with pytest.raises(type(error)), work_folder() as work:  # noqa: PT012
        (work / "build.log").write_text("words")
        error.args = tuple(str(part).format(log=work) for part in error.args)
        raise error
    assert bool(list(temporary.iterdir())) is left


def test_the_log_of_a_bug_is_named(temporary: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), work_folder() as work:  # noqa: PT012
        (work / "build.log").write_text("words")
        raise ZeroDivisionError
    (folder,) = temporary.iterdir()
    assert str(folder) in capsys.readouterr().err


@in_a_process_of_its_own
def test_a_signal_in_code_whose_exceptions_are_lost_still_ends_the_command() -> None:
    class Thing:
        pass

    def stop(_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):  # the handler runs here, and what it raises is lost with the callback
            pass

    with pytest.raises(Interrupted), interruptible():  # noqa: PT012
        thing = Thing()
        reference = weakref.ref(thing, stop)
        del thing
        gc.collect()
        assert reference() is None
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_during_the_imports_ends_the_command_in_one_sentence() -> None:
    """A module that is imported early stands still, and the signal arrives there."""
    program = (
        "import sys, time, types, builtins\n"
        "real = builtins.__import__\n"
        "def slow(name, *rest):\n"
        "    if name == 'build_engine.cli':\n"
        "        print('importing', flush=True); time.sleep(30)\n"
        "    return real(name, *rest)\n"
        "builtins.__import__ = slow\n"
        "from build_engine.__main__ import run\n"
        "sys.exit(run())\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "python_backend"), str(ROOT)))}
    child = subprocess.Popen(
        [sys.executable, "-c", program, "plan", "x"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"importing\n"
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=20)
    assert (child.returncode, said) == (130, b"stopped; nothing was left behind\n")


def checkpoint(folder: Path) -> Path:
    write_config(folder)
    write_safetensors(folder / "model.safetensors", SHAPES)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_the_same_weights_in_another_form_are_not_counted_twice(tmp_path: Path) -> None:
    plain = source.resolve(str(checkpoint(tmp_path / "plain")))
    folder = checkpoint(tmp_path / "twice")
    write_safetensors(folder / "consolidated.safetensors", SHAPES)
    twice = source.resolve(str(folder))
    assert twice.weight_bytes == plain.weight_bytes
    assert [path.name for path in twice.files()] == [path.name for path in plain.files()]
    assert twice.sha256() == plain.sha256()


def test_only_the_usual_form_is_fetched() -> None:
    """As the hub's own library filters: what lies in folders and what Mistral adds stays there."""
    filters = pytest.importorskip("huggingface_hub.utils")
    names = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "consolidated.safetensors",
        "consolidated-00001-of-00002.safetensors",
        "original/model.safetensors",
        "tokenizer.json",
    ]
    patterns = [*source.CONFIG_FILES, *source.TOKENIZER_FILES, *source.WEIGHT_PATTERNS]
    kept = filters.filter_repo_objects(names, allow_patterns=patterns, ignore_patterns=fetch.TWICE)
    assert list(kept) == [names[0], names[1], names[2], names[-1]]


def test_a_snapshot_of_the_hub_is_called_by_its_model(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = tmp_path / "hub" / "models--some-org--A-Model" / "snapshots" / commit
    folder.parent.mkdir(parents=True)
    checkpoint(folder)
    assert source.resolve(str(folder)).name == "some-org/A-Model"
    (tmp_path / "link").symlink_to(folder)
    assert source.resolve(str(tmp_path / "link")).name == "some-org/A-Model"
    assert source.resolve(str(checkpoint(tmp_path / "snapshots"))).name == "snapshots"


def test_a_damaged_file_of_a_quantized_checkpoint_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "q"
    write_config(folder, quantization_config={"quant_method": "modelopt", "quant_algo": "FP8"})
    (folder / "model.safetensors").write_bytes(b"\xff" * 4000)
    with pytest.raises(UserMistake, match=r"model\.safetensors is damaged or was cut short"):
        check_weights(source.resolve(str(folder)))
