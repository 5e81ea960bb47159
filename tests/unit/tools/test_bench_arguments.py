"""Benchmarks that are told what cannot be measured: one sentence and exit status 2, before anything starts."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import batching, delivery, fleet, oversized, peers, steps, tracing_cost
from inflight_tools.common.layout import REPOSITORY

SCRIPTS = REPOSITORY / "scripts"
CHILDREN = {"bench.bare_worker", "bench.peer_transformers"}  # started by a script, and told what to do in JSON
PROGRAMS = sorted(
    f"{file.parent.name}.{file.stem}"
    for folder in ("bench", "maintain")
    for file in (SCRIPTS / folder).glob("*.py")
    if "run_main(main)" in file.read_text(encoding="utf-8")
)
POSITIONALS = {"bench.fleet": ["events"], "maintain.make_model": ["0.5b"], "bench.steps": [], "bench.kernels": []}
ZERO = {"--seed", "--shared-prefix", "--retries", "--quiet", "--patience", "--hold-ms", "--load-ms", "--gap-ms"}
ZERO |= {"--overhead-ms", "--price-per-hour", "--only", "--stop-after", "--step-ms", "--sequence-ms", "--prefill-us"}
NAMED = ("bench.peers", "bench.roofline")  # whose engines are NAME=DIR: test_bench_roofline.py
NOT_NUMBERS = ("", "x", "-1", "nan", "inf", "1e99", "999999999999999999999")


class Parser(Exception):
    """What a script was about to parse its options with."""


def parser_of(program: str, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    """Its parser, taken from its `main` before anything is parsed."""

    def taken(self: argparse.ArgumentParser, *_: object) -> None:
        raise Parser(self)

    main = importlib.import_module(program).main
    with monkeypatch.context() as patched:
        patched.setattr(argparse.ArgumentParser, "parse_args", taken)
        with pytest.raises(Parser) as found:
            main([])
    parser = found.value.args[0]
    assert isinstance(parser, argparse.ArgumentParser)
    return parser


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As much of an engine, of a checkpoint and of other things as options ask for."""
    for name in ("tokenizer.json", "openvino_model.xml", "config.json", "engine.json"):
        (tmp_path / name).write_text("{}", encoding="utf-8")
    for name in ("gateway/inflight_gateway", "python_backend/inflight", "opentelemetry"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def options_of(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Those that take a value."""
    return (action for action in parser._actions if action.option_strings and action.nargs != 0)


def usable(program: str, parser: argparse.ArgumentParser, folder: Path) -> list[str]:
    """Options with which it could begin."""
    found = [f"steps={folder}"] if program in ("bench.steps", "bench.kernels") else POSITIONALS.get(program, [])
    known = {action.option_strings[-1] for action in options_of(parser)}
    if program == "maintain.soak":  # whose --engine is the name of one
        return found
    if program == "bench.peers":
        return [f"--engine=int8={folder}"]
    if program == "bench.roofline":
        return [f"--engine=int8={folder}"]
    if program == "bench.peer_weights":
        return [str(folder), "--bits=8", f"--output={folder / 'made'}"]
    return [*found, *(f"{name}={folder}" for name in ("--engine", "--checkpoint", "--repository") if name in known)]


def refused(parser: argparse.ArgumentParser, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence it says to these."""
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(arguments)
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert said.startswith("error: ")
    assert said.count("\n") == 1, said
    return said


def test_all_scripts_that_measure_are_here() -> None:
    """A new one is looked at by itself; one that does not end in a sentence at Ctrl-C is none."""
    found = {
        f"bench.{file.stem}"
        for file in (SCRIPTS / "bench").glob("*.py")
        if '__name__ == "__main__"' in file.read_text(encoding="utf-8")
    }
    assert found - CHILDREN <= set(PROGRAMS)
    assert {"maintain.soak", "maintain.fleet_soak", "maintain.fuzz_requests", "maintain.make_model"} <= set(PROGRAMS)


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_number_is_looked_at(
    program: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No option takes whatever int() or float() take."""
    parser = parser_of(program, monkeypatch)
    base = usable(program, parser, folder)
    parser.parse_args(base)
    for action in options_of(parser):
        name = action.option_strings[-1]
        assert action.type not in (int, float) or action.choices is not None, name
        free = action.type is None and action.choices is None  # a text, such as a name that a server is asked for
        if free or action.type is Path or action.help == argparse.SUPPRESS:
            continue
        for text in NOT_NUMBERS:
            if action.type is not None and name not in ("--output", "--json", "--bounds"):
                assert name in refused(parser, [*base, f"{name}={text}"], capsys)
        if action.metavar in ("N", "S", "X", "N,N", "R,R") and name not in ZERO:
            assert name in refused(parser, [*base, f"{name}=0"], capsys)
        elif name in ZERO and action.metavar != "A,B":
            parser.parse_args([*base, f"{name}=0"])


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_engine_or_a_place_that_is_not_there(
    program: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Known at once: not after an hour of measuring, when the figures are to be written."""
    parser = parser_of(program, monkeypatch)
    base = usable(program, parser, folder)
    (folder / "notes.txt").write_text("not to be lost", encoding="utf-8")
    for action in options_of(parser):
        name = action.option_strings[-1]
        if name in ("--engine", "--checkpoint") and action.choices is None and program not in NAMED:
            said = refused(parser, [*base, f"{name}={folder / 'nothing'}"], capsys)
            assert "there is no" in said
            assert str(folder / "nothing") in said
        if name in ("--output", "--json") and action.nargs != 0:
            assert "notes.txt" in refused(parser, [*base, f"{name}={folder / 'notes.txt'}"], capsys)
            assert "notes.txt" in refused(parser, [*base, f"{name}={folder / 'notes.txt' / 'new.json'}"], capsys)
            parser.parse_args([*base, f"{name}={folder / 'new' / 'place'}"])
            if action.metavar != "DIR" and Path(str(action.default)).suffix == ".json":
                assert "is a folder" in refused(parser, [*base, f"{name}={folder}"], capsys)
    assert (folder / "notes.txt").read_text(encoding="utf-8") == "not to be lost"


def test_a_single_wave_has_nothing_behind_its_warmup(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        delivery.main(["--waves", "1", "--engine", str(folder)])
    assert stopped.value.code == 2
    assert "from 2" in capsys.readouterr().err


def test_what_only_several_options_together_show(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = ["--engine", str(folder)]
    for main, arguments, word in (
        (batching.main, ["--system", "h200", "--workloads", "chat", "nothing", *engine], "'nothing' is none of"),
        (fleet.main, ["events", "--events", "an earthquake", *engine], "no event has 'an earthquake'"),
        (tracing_cost.main, ["--requests", "3", "--clients", "8", *engine], "at least --clients"),
        (steps.main, [f"a={folder}", f"a={folder}"], "the same name"),
        (peers.main, ["--tuned", "[1]"], "JSON object"),
        (delivery.main, ["--arms", "merged,nothing", *engine], "'nothing' is none of merged, one per token"),
        (oversized.main, ["--kinds", "chat,", *engine], "'' is none of text, chat, ids"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
        said = capsys.readouterr().err
        assert word in said
        assert said.count("\n") == 1, said


@pytest.mark.parametrize("content", ["[]", "{", '{"records": 1}', '{"records": [{"speed": 1}]}', '{"rows": []}'])
def test_records_of_something_else_are_not_added_to(content: str, tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    file.write_text(content, encoding="utf-8")
    command = [sys.executable, str(SCRIPTS / "bench" / "peers.py"), "--report", "--output", str(file)]
    with pytest.raises(Exception, match="is not a file of this benchmark"):
        peers.main(command[2:])
    assert file.read_text(encoding="utf-8") == content


def test_a_turn_asks_once_at_least() -> None:
    assert oversized.turn(lambda: 0.5, 1e-9) == [0.5]


def test_ctrl_c_is_one_word() -> None:
    """In the middle of a measurement, of a real program."""
    command = [sys.executable, str(SCRIPTS / "bench" / "dialects.py"), "--responses", "100000000"]
    environment: dict[str, Any] = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("| stream")  # it measures from here on
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
        assert process.wait(30) == 130
    assert said == "stopped\n"


def test_results_are_written_where_no_folder_is_yet(folder: Path) -> None:
    """`batching` and others wrote into a folder that had to be there."""
    plan = json.loads((batching.FOLDER / "workloads.json").read_text(encoding="utf-8"))
    assert plan["workloads"]
    with pytest.raises(SystemExit):
        batching.main(["--real", "--engine", str(folder / "nothing"), "--output", str(folder / "new")])
    assert not (folder / "new").exists()
