"""Every command of the README is run by something, and its picture shows what is there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from tests.harness.pages import ASKS_A_SERVER, ROOT, SERVES, commands

# What runs each command that asks no running server: a test, or the program of CI. A benchmark's test runs it with
# smaller figures; that the README's own arguments exist is checked below.
RUN_BY = {
    "./scripts/quickstart.sh": (
        "tests/integration/test_quickstart.py::test_the_second_run_answers_within_seconds_and_stops_its_server"
    ),
    "./scripts/test.sh": ".ci/run",
    SERVES: "tests/integration/test_readme.py::served",
    ".venv/bin/python scripts/bench/overhead.py --concurrency 1,8,32,64 --repeats 3": (
        "tests/integration/test_bench_ratios.py::test_most_of_the_engine_reaches_the_client"
    ),
    ".venv/bin/python scripts/bench/peers.py": (
        "tests/unit/tools/test_bench_peers.py::test_a_peer_is_started_stopped_woken_and_ended"
    ),
}
BENCHMARKS = [command for command in RUN_BY if "scripts/bench/" in command]


def test_every_command_is_run_by_something() -> None:
    told = {command for command in commands("README.md") if not ASKS_A_SERVER.match(command)}
    assert told == set(RUN_BY), "name what runs it in RUN_BY, or take the command out of the README"


@pytest.mark.parametrize("command", RUN_BY)
def test_what_runs_it_names_it(command: str) -> None:
    path, _, test = RUN_BY[command].partition("::")
    text = (ROOT / path).read_text("utf-8")
    assert not test or f"def {test}(" in text
    script = next((word for word in command.split() if word.endswith((".py", ".sh"))), "SERVES")
    assert script in text or script.rsplit("/", 1)[-1].removesuffix(".py") in text


@pytest.mark.parametrize("command", BENCHMARKS)
def test_a_benchmark_has_the_options_that_the_readme_gives_it(command: str) -> None:
    _, script, *options = shlex.split(command)
    done = subprocess.run(
        [sys.executable, ROOT / script, *options, "--help"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    wrong = subprocess.run(
        [sys.executable, ROOT / script, "--no-such-option"], capture_output=True, text=True, timeout=60, check=False
    )
    assert wrong.returncode != 0


def test_the_picture_shows_rooms_and_engines_that_are_there() -> None:
    page = ElementTree.parse(ROOT / "docs" / "request.svg")
    texts = [(element.text or "").strip() for element in page.iter() if element.tag.endswith(("}text", "}tspan"))]
    rooms = {text.rstrip("/") for text in texts if re.fullmatch(r"\w+/", text)}
    package = ROOT / "python_backend" / "inflight"
    assert {"request", "serving", "answer", "engines", "engine_process", "guides"} == rooms
    assert all((package / room).is_dir() for room in rooms)
    engines = {path.parent.name for path in (package / "engines").glob("*/__init__.py")}
    assert engines <= set(texts)
    assert "control.py" in texts
    assert "Triton's Python stub: model.py, triton/" in texts


def test_every_text_of_the_picture_stands_on_a_filled_box() -> None:
    """So a dark page can show it as well as a light one."""
    page = ElementTree.parse(ROOT / "docs" / "request.svg")
    boxes = [element.attrib for element in page.iter() if element.tag.endswith("}rect")]
    sides = [[float(box[side]) for side in ("x", "y", "width", "height")] for box in boxes]
    texts = [element.attrib for element in page.iter() if element.tag.endswith("}text")]
    assert len(texts) > 30
    for text in texts:
        at_x, at_y = float(text["x"]), float(text["y"])
        assert any(x <= at_x <= x + width and y < at_y < y + height for x, y, width, height in sides), text
    style = next(element.text or "" for element in page.iter() if element.tag.endswith("}style"))
    for box in boxes:
        assert re.search(rf"\.{box['class']} {{ fill: #[def][0-9a-f]{{5}};", style), box
