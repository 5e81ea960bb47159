"""The regression guard: it fails where something got slower, and says nothing of a machine that others use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import chat_cost, guard, guard_bounds, guard_ratios, measured
from bench.guard_bounds import Better, Bound, Measured, Verdict
from inflight.request.tokenizer import TextTokenizer
from inflight_tools.common.report import Failure
from inflight_tools.common.tiny_models import write_tokenizer
from inflight_tools.server.processes import is_alive


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """As much of an engine as preparing a request needs."""
    folder = tmp_path / "engine"
    folder.mkdir()
    write_tokenizer(folder, 300)
    (folder / "openvino_model.xml").touch()
    return folder


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What others use in one measurement after the other; nothing once the list is used up."""
    shares: list[float] = []

    def told(source: guard_ratios.Source, *arguments: Any) -> dict[str, Measured]:
        found = guard_ratios.measure(source, *arguments)
        return {name: replace(each, others=shares.pop(0) if shares else 0.0) for name, each in found.items()}

    monkeypatch.setattr(guard, "measure", told)
    return shares


def test_a_bound_knows_the_noise_of_its_runs() -> None:
    assert Bound(Better.HIGHER, [1.0, 1.0, 1.0]).limit == pytest.approx(0.9)
    assert Bound(Better.LOWER, [1.0, 1.0, 1.0]).limit == pytest.approx(1.1)
    assert Bound(Better.HIGHER, [0.8, 1.0, 1.1]).limit == pytest.approx(0.6)
    assert Bound(Better.LOWER, [0.9, 1.0, 1.3]).limit == pytest.approx(1.6)


@pytest.mark.parametrize(
    ("value", "others", "said"),
    [
        (0.95, 0.0, Verdict.HELD),
        (2.0, 0.05, Verdict.HELD),
        (0.8, 0.0, Verdict.REGRESSION),
        (0.8, 0.2, Verdict.DISTURBED),
        (0.95, 0.2, Verdict.DISTURBED),
    ],
)
def test_a_disturbed_machine_proves_nothing(value: float, others: float, said: Verdict) -> None:
    bound = Bound(Better.HIGHER, [1.0, 1.0])
    assert guard_bounds.verdict(Measured([value, 0.1, 9.0], others), bound, 0.1) is said


def test_a_regression_outweighs_what_could_not_be_told() -> None:
    assert guard_bounds.status([Verdict.HELD, Verdict.HELD]) == 0
    assert guard_bounds.status([Verdict.HELD, Verdict.DISTURBED]) == 2
    assert guard_bounds.status([Verdict.DISTURBED, Verdict.REGRESSION, Verdict.HELD]) == 1


def slowed(times: int) -> Callable[..., list[int]]:
    """`TextTokenizer.encode` that works so often."""
    encode = TextTokenizer.encode

    def again(self: TextTokenizer, *arguments: Any) -> list[int]:
        for _ in range(times - 1):
            encode(self, *arguments)
        return encode(self, *arguments)

    return again


def test_it_fails_when_preparing_a_request_gets_slower(
    engine: Path,
    tmp_path: Path,
    alone: list[float],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The real measurement of the real code: learnt, held, and with a double of it that is slower."""
    per_call = chat_cost.per_call
    monkeypatch.setattr(chat_cost, "REPEATS", 1)
    monkeypatch.setattr(chat_cost, "per_call", lambda do, calls: per_call(do, calls // 10))
    monkeypatch.setattr(guard, "wait_until_quiet", lambda *_: True)
    bounds = tmp_path / "bounds.json"
    options = ["--engine", str(engine), "--only", "preparation", "--bounds", str(bounds), "--repeats", "1"]
    for _ in range(2):
        assert guard.main([*options, "--learn"]) == 0
    content = json.loads(bounds.read_text(encoding="utf-8"))
    (ratios,) = content["processors"].values()
    assert len(ratios[guard_ratios.CHAT]["runs"]) == 2
    ratios[guard_ratios.CHAT]["runs"] = [2 * max(ratios[guard_ratios.CHAT]["runs"])]
    bounds.write_text(json.dumps(content), encoding="utf-8")  # wide: a test's machine does not stand still
    assert guard.main(options) == 0
    monkeypatch.setattr(TextTokenizer, "encode", slowed(20))  # against twice the worst
    assert guard.main(options) == 1
    assert "| REGRESSION |" in capsys.readouterr().out
    alone += [0.5, 0.5]  # measured once more, and disturbed again
    assert guard.main(options) == 2
    assert "| too disturbed to say |" in capsys.readouterr().out
    alone += [0.5, 0.0]
    assert guard.main(options) == 1, "the second time was quiet"


def test_bounds_of_a_disturbed_machine_are_not_written(
    engine: Path, tmp_path: Path, alone: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "wait_until_quiet", lambda *_: True)
    fake = guard_ratios.Source("preparation", {guard_ratios.CHAT: Better.LOWER}, lambda *_: {guard_ratios.CHAT: [1.0]})
    monkeypatch.setattr(guard, "SOURCES", (fake,))
    alone += [0.5, 0.5]
    bounds = tmp_path / "bounds.json"
    with pytest.raises(Failure, match="nothing is written"):
        guard.main(["--engine", str(engine), "--bounds", str(bounds), "--learn"])
    assert not bounds.exists()


@pytest.mark.parametrize(
    "content", ["", "[]", '{"format": 9, "processors": {}}', '{"processors": {"a": {"x": {"runs": []}}}}']
)
def test_other_files_are_no_bounds(content: str, tmp_path: Path) -> None:
    file = tmp_path / "bounds.json"
    with pytest.raises(Failure, match="cannot be read"):
        guard_bounds.read(file, "any")
    file.write_text(content, encoding="utf-8")
    with pytest.raises(Failure, match="no bounds of this script"):
        guard_bounds.read(file, "any")


def test_runs_of_another_processor_bound_nothing_here(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The committed file: six ratios of each processor that was measured; elsewhere no verdict, and nothing starts."""
    for processor, ratios in guard_bounds.runs_of(guard.BOUNDS).items():
        assert len(ratios) == len(guard_bounds.read(guard.BOUNDS, processor)) == 6
    monkeypatch.setattr(guard, "processor_key", lambda: "one that nobody has")
    with pytest.raises(Failure, match=r"on this processor \(one that nobody has\): measure it with --learn"):
        guard.main(["--engine", str(engine)])


def test_what_we_and_our_children_use_is_ours() -> None:
    """Else every benchmark would seem to be disturbed by its own servers."""
    before = measured.tree_cpu_s(os.getpid())
    burn = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    subprocess.run([sys.executable, "-c", burn], check=True, timeout=60)
    assert measured.tree_cpu_s(os.getpid()) - before >= 0.25


def test_what_has_outlived_its_parent_is_ours_as_well() -> None:
    """A server that is killed leaves its stub and engine to whoever takes orphans, with all that they have used."""
    burn = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    with measured.watched_tree():
        before = measured.tree_cpu_s(os.getpid())
        orphan = subprocess.Popen(["sh", "-c", '"$0" -c "$1" & echo $!', sys.executable, burn], stdout=subprocess.PIPE)
        assert orphan.stdout is not None
        pid = int(orphan.stdout.readline())
        orphan.wait(60)
        give_up = time.monotonic() + 60
        while is_alive(pid) and time.monotonic() < give_up:
            time.sleep(0.01)
        assert measured.tree_cpu_s(os.getpid()) - before >= 0.25
