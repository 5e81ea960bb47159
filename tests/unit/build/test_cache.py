from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from build_engine.cache import StageCache

pytestmark = pytest.mark.fast

SPEC = {"recipe": "fp8", "staged": "/one/place", "output": "/another"}


class Work:
    def __init__(self, output: Path, text: str = "weights") -> None:
        self.output, self.text, self.times = output, text, 0

    def __call__(self) -> dict[str, Any]:
        self.times += 1
        (self.output / "weights.bin").write_text(self.text)
        return {"answer": self.times}


def run(cache: StageCache, output: Path, spec: dict[str, Any] | None = None, source: str = "s") -> tuple[int, bool]:
    output.mkdir(exist_ok=True)
    (output / "tokenizer.json").write_text("{}")
    work = Work(output)
    result, found = cache.run("stage", spec or SPEC, source, output, work)
    assert result["answer"] == 1
    assert (output / "weights.bin").read_text() == "weights"
    return work.times, found


def test_a_finished_stage_is_not_done_again(tmp_path: Path) -> None:
    cache = StageCache(tmp_path / "cache")
    assert run(cache, tmp_path / "a") == (1, False)
    assert run(cache, tmp_path / "b", {**SPEC, "staged": "/moved"}) == (0, True)
    assert os.stat(tmp_path / "a" / "weights.bin").st_ino == os.stat(tmp_path / "b" / "weights.bin").st_ino
    assert [path.name for path in sorted((tmp_path / "cache").iterdir())[0].iterdir()].count("tokenizer.json") == 0


@pytest.mark.parametrize("change", [{"recipe": "int8"}, {"group_size": 64}])
def test_other_inputs_are_other_entries(tmp_path: Path, change: dict[str, Any]) -> None:
    cache = StageCache(tmp_path / "cache")
    run(cache, tmp_path / "a")
    assert run(cache, tmp_path / "b", {**SPEC, **change}) == (1, False)
    assert run(cache, tmp_path / "c", source="another checkpoint") == (1, False)


def test_an_altered_entry_is_not_used(tmp_path: Path) -> None:
    cache = StageCache(tmp_path / "cache")
    run(cache, tmp_path / "a")
    (tmp_path / "a" / "weights.bin").write_text("altered")  # the same file as the entry's, by link
    (tmp_path / "a" / "weights.bin").unlink()
    assert run(cache, tmp_path / "b") == (1, False)


def test_a_failed_stage_leaves_no_entry(tmp_path: Path) -> None:
    cache = StageCache(tmp_path / "cache")
    (tmp_path / "a").mkdir()

    def fail() -> dict[str, Any]:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        cache.run("stage", SPEC, "s", tmp_path / "a", fail)
    assert run(cache, tmp_path / "a") == (1, False)


def test_old_entries_make_room(tmp_path: Path) -> None:
    cache = StageCache(tmp_path / "cache", limit_bytes=250)
    for name in "abc":
        run(cache, tmp_path / name, {**SPEC, "recipe": name})
        for entry in (tmp_path / "cache").iterdir():
            os.utime(entry, (entry.stat().st_mtime - 10,) * 2)
    assert len(list((tmp_path / "cache").iterdir())) < 3
    assert run(cache, tmp_path / "d", {**SPEC, "recipe": "c"}) == (0, True)


def test_trouble_with_the_cache_does_not_fail_a_build(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert run(StageCache(tmp_path / "file" / "cache"), tmp_path / "a") == (1, False)
    assert run(StageCache(None), tmp_path / "b") == (1, False)
