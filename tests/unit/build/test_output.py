from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from build_engine import preflight
from build_engine.errors import UserMistake
from build_engine.output import OutputDirectory, sweep

pytestmark = pytest.mark.fast


def listing(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def fill(out: OutputDirectory, text: str = "new") -> None:
    (out.path / "engine.json").write_text(text)


def test_output_appears_only_at_commit(tmp_path: Path) -> None:
    target = tmp_path / "a" / "engine"
    with OutputDirectory(target) as out:
        fill(out)
        assert not target.exists()
        out.commit()
    assert listing(target) == ["engine.json"]
    assert listing(tmp_path / "a") == ["engine"]


def test_nothing_remains_of_a_failed_build(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), OutputDirectory(tmp_path / "engine") as out:  # noqa: PT012
        fill(out)
        raise RuntimeError
    assert listing(tmp_path) == []


def test_existing_output_is_kept_unless_forced(tmp_path: Path) -> None:
    target = tmp_path / "engine"
    target.mkdir()
    (target / "engine.json").write_text("old")
    with pytest.raises(UserMistake, match="--force"), OutputDirectory(target):
        pass
    with OutputDirectory(target, force=True) as out:
        fill(out)
        assert (target / "engine.json").read_text() == "old"
        out.commit()
    assert (target / "engine.json").read_text() == "new"
    assert listing(tmp_path) == ["engine"]


def test_force_keeps_the_old_engine_when_the_build_fails(tmp_path: Path) -> None:
    target = tmp_path / "engine"
    target.mkdir()
    (target / "engine.json").write_text("old")
    with pytest.raises(RuntimeError), OutputDirectory(target, force=True) as out:  # noqa: PT012
        fill(out)
        raise RuntimeError
    assert (target / "engine.json").read_text() == "old"
    assert listing(tmp_path) == ["engine"]


def test_force_never_replaces_what_is_no_engine(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "home")
    (tmp_path / "file").write_text("")
    for name in ("home", "link", "file"):
        with pytest.raises(UserMistake, match="not an engine directory"), OutputDirectory(tmp_path / name, force=True):
            pass
    assert listing(tmp_path / "home") == ["thesis.txt"]


def test_exchange_falls_back_to_two_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Libc:
        @staticmethod
        def renameat2(*_: object) -> int:
            return -1

    monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: Libc)
    monkeypatch.setattr("ctypes.get_errno", lambda: errno.EINVAL)
    target = tmp_path / "engine"
    target.mkdir()
    (target / "engine.json").write_text("old")
    with OutputDirectory(target, force=True) as out:
        fill(out)
        out.commit()
    assert (target / "engine.json").read_text() == "new"
    assert listing(tmp_path) == ["engine"]


def test_leftover_of_a_killed_build_is_swept(tmp_path: Path) -> None:
    leftover = tmp_path / ".engine.building-abc"
    (leftover / "engine").mkdir(parents=True)
    (leftover / ".lock").write_text("")
    other = tmp_path / ".other.building-abc"
    other.mkdir()
    with OutputDirectory(tmp_path / "engine") as out:
        assert not leftover.exists()
        fill(out)
        out.commit()
    assert listing(tmp_path) == [".other.building-abc", "engine"]


def test_a_running_build_of_the_same_output_is_respected(tmp_path: Path) -> None:
    running = tmp_path / ".engine.building-abc"
    running.mkdir()
    lock = os.open(running / ".lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        with pytest.raises(UserMistake, match="another build"), OutputDirectory(tmp_path / "engine"):
            pass
    finally:
        os.close(lock)
    assert running.exists()


def test_a_second_build_leaves_the_first_alone_in_every_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another build of the same output sweeps while this one makes its directory, just before it is locked."""
    lock = fcntl.flock
    swept: list[list[Path]] = []

    def flock(descriptor: int, how: int) -> None:
        if not how & fcntl.LOCK_NB and not swept:
            swept.append(sweep(tmp_path / "engine"))
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with OutputDirectory(tmp_path / "engine") as out:
        fill(out)
        with pytest.raises(UserMistake, match="another build"):
            sweep(tmp_path / "engine")
        out.commit()
    assert swept == [[]]
    assert listing(tmp_path) == ["engine"]


def test_what_was_killed_before_it_had_a_lock_is_swept_later(tmp_path: Path) -> None:
    fresh, old = tmp_path / ".engine.making-a", tmp_path / ".engine.making-b"
    for folder in (fresh, old):
        folder.mkdir()
    os.utime(old, (0, 0))
    assert sweep(tmp_path / "engine") == [old]
    assert fresh.exists()


def test_a_directory_that_cannot_be_made_whole_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    open_before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(UserMistake, match="No locks available"), OutputDirectory(tmp_path / "engine"):
        pass
    assert listing(tmp_path) == []
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_disk_and_memory_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UserMistake, match="of disk under"):
        preflight.check_disk(tmp_path / "not" / "yet", 1 << 60, "this build")
    preflight.check_disk(tmp_path, 1, "this build")
    with pytest.raises(UserMistake, match=r"needs 2 GB of memory and 1 GB are available"):
        preflight.check_memory(2_000_000_000, "this build", available=1_000_000_000)
    assert preflight.available_memory() > 0
