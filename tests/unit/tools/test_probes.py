"""What only a running library shows: the table, the questions, and that one which hangs or crashes ends no other."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from inflight_tools.common.layout import SCRIPTS
from inflight_tools.selfcheck import gpu_selfcheck, serving
from inflight_tools.selfcheck import trtllm as selfcheck_trtllm
from inflight_tools.selfcheck.kind import Setup
from inflight_tools.selfcheck.probes import ASKED_ELSEWHERE, PROBES
from inflight_tools.selfcheck.report import Report
from inflight_tools.selfcheck.serving import Check
from tests.doubles import tables
from tests.doubles.folders import environment, write_engine
from tests.unit.build import trtllm_build_standin as standin
from tests.unit.machines.tokenizer_kinds import write_folder

SPAWN = """
import os, time
class Communicator:
    def Spawn(self, *_, **__):
        {what}
class MPI:
    COMM_SELF = Communicator()
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    """The stand-in as the installed TensorRT-LLM 1.2, trtllm-build, and an mpi4py that spawns."""
    for name, value in environment(tmp_path / "site", "1.2").items():
        monkeypatch.setenv(name, value)
    spawns(tmp_path, monkeypatch, "return type('Child', (), {'Disconnect': lambda self: None})()")
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "trtllm-build"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} {standin.__file__} "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    return Setup(tmp_path, tmp_path, (8,))


def spawns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """An mpi4py whose COMM_SELF.Spawn does `what`."""
    package = tmp_path / "mpi" / "mpi4py"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text(SPAWN.replace("{what}", what), encoding="utf-8")
    (package / "MPI.py").write_text("from mpi4py import MPI as _M\nCOMM_SELF = _M.COMM_SELF\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "mpi"), prepend=os.pathsep)


def names(checks: list[Check], *, ok: bool) -> list[str]:
    return [check.name for check in checks if check.ok == ok]


DOUBLE = Path(tables.__file__).parent / "trtllm_double" / "llm.py"
OTHERWISE = set() if "get_stats_async" in DOUBLE.read_text(encoding="utf-8") else {"llm_surface"}
LIBRARY = [probe.name for probe in PROBES if not probe.of_engine]
OF_ENGINE = [probe.name for probe in PROBES if probe.of_engine]


@pytest.mark.fast
def test_the_table_of_the_document() -> None:
    text = tables.DOCUMENTS["running"].read_text(encoding="utf-8")
    begin, end = tables.between(text, "running")
    assert text[begin:end].rstrip("\n") == tables.running_table(), "run python -m tests.doubles.tables --write"


@pytest.mark.fast
def test_every_row_names_a_question_that_exists() -> None:
    source = Path(serving.__file__).read_text(encoding="utf-8")
    checks = set(re.findall(r'^        "([^"]+)": lambda|checks\["([^"]+)"\]', source, re.MULTILINE))
    known = {name for pair in checks for name in pair if name}
    assert len({probe.name for probe in PROBES}) == len(PROBES)
    for _, read_in, part in ASKED_ELSEWHERE:
        assert read_in
        kind, _, asked = part.partition(": ")
        assert set(re.split(r", | and ", kind.partition(" of ")[0])) <= {*gpu_selfcheck.PARTS, "nothing"}, part
        if kind == "contract":
            assert {name.strip() for name in asked.split(",")} <= known, part


@pytest.mark.fast
def test_the_load_is_measured_by_a_script_that_is_there() -> None:
    """It was looked for beside the module that starts it, so that no self-check measured anything."""
    source = Path(gpu_selfcheck.__file__).read_text(encoding="utf-8")
    assert 'SCRIPTS / "load_test.py"' in source
    assert (SCRIPTS / "load_test.py").is_file()


@pytest.mark.fast
def test_a_recipe_that_the_gpu_cannot_have_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for by name, it is tried, and its refusal is in the report."""
    every = list(gpu_selfcheck.RECIPES)
    for shown, wanted in ((["10.0"], ["none", "fp8"]), (["8.0"], ["none", "int8-sq"]), ([], every)):
        monkeypatch.setattr(gpu_selfcheck, "compute_capabilities", lambda shown=shown: shown)
        report = Report({})
        assert gpu_selfcheck.recipes_to_build(gpu_selfcheck.parse([]), report) == wanted
        assert len(report.machine) == 3 - len(wanted)
        asked = gpu_selfcheck.parse(["--recipes", "int8-sq"])
        assert gpu_selfcheck.recipes_to_build(asked, report) == ["int8-sq"]


@pytest.mark.full
def test_the_library_is_as_assumed(installed: Setup) -> None:
    checks = selfcheck_trtllm.probe(installed, None)
    assert set(names(checks, ok=False)) == OTHERWISE, checks
    assert [check.name for check in checks] == LIBRARY


@pytest.mark.fast
def test_an_engine_is_as_assumed(installed: Setup, tmp_path: Path) -> None:
    engine = write_engine(tmp_path / "engine", write_folder(tmp_path / "tokenizer"), max_seq_len=64, max_input_len=63)
    checks = selfcheck_trtllm.probe(installed, engine)
    assert names(checks, ok=False) == [], checks
    assert names(checks, ok=True) == OF_ENGINE


@pytest.mark.fast
def test_a_question_that_crashes_is_a_fault_and_the_rest_is_asked(
    installed: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawns(tmp_path, monkeypatch, "os.kill(os.getpid(), 9)")
    checks = selfcheck_trtllm.probe(installed, None)
    assert set(names(checks, ok=False)) == {"spawn", *OTHERWISE}
    assert sorted(check.name for check in checks) == sorted(LIBRARY)


@pytest.mark.full
def test_a_question_that_hangs_is_a_fault_and_the_rest_is_asked(
    installed: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawns(tmp_path, monkeypatch, "time.sleep(120)")
    monkeypatch.setattr(selfcheck_trtllm, "PROBE_S", 12)
    checks = selfcheck_trtllm.probe(installed, None)
    (fault,) = [check for check in checks if check.name == "spawn"]
    assert (fault.ok, fault.note) == (False, "its process ended: took longer than 12 s")
    assert sorted(check.name for check in checks) == sorted(LIBRARY)


@pytest.mark.full
def test_a_library_that_is_otherwise_is_told(installed: Setup, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A shape that is taken, a flag that is unknown, an exception: each is its own fault."""
    site = tmp_path / "site"
    (tmp_path / "bin" / "trtllm-build").write_text("#!/bin/sh\necho usage: --max_batch_size\n", encoding="utf-8")
    rules = next(site.rglob("rules.py"), None) or Path(tables.__file__).parent / "trtllm_double" / "rules.py"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "patch"), prepend=os.pathsep)
    (tmp_path / "patch").mkdir()
    shutil.copy(rules, tmp_path / "patch" / "original_rules.py")
    (tmp_path / "patch" / "sitecustomize.py").write_text(
        "import sys, importlib.abc\n"
        "class Finder(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name != 'trtllm_double.surface':\n"
        "            return None\n"
        "        import trtllm_double.rules as rules\n"
        "        rules.CONSTRUCTORS.clear(); rules.METHODS.pop('RuntimeDefaults')\n"
        "        return None\n"
        "sys.meta_path.insert(0, Finder())\n",
        encoding="utf-8",
    )
    checks = {check.name: check for check in selfcheck_trtllm.probe(installed, None)}
    assert {name for name, check in checks.items() if not check.ok} == {
        "lora_shapes",
        "runtime_defaults",
        "compiler_flags",
        *OTHERWISE,
    }
    assert checks["lora_shapes"].note == "a third dimension is taken"
    assert checks["runtime_defaults"].note == "a copy of it is taken"
    assert "--max_input_len" in checks["compiler_flags"].note


@pytest.mark.full
@pytest.mark.parametrize("profile", ["0.21", "1.0", "1.1", "1.3"])
def test_every_release_is_as_assumed(
    profile: str, installed: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a release has not is said, and is no fault."""
    for name, value in environment(tmp_path / profile, profile).items():
        monkeypatch.setenv(name, value)
    spawns(tmp_path, monkeypatch, "return type('Child', (), {'Disconnect': lambda self: None})()")
    checks = selfcheck_trtllm.probe(installed, None)
    assert names(checks, ok=False) == [], checks


@pytest.mark.full
def test_mpi_really_spawns(installed: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real mpi4py and OpenMPI 4."""
    if shutil.which("mpirun") is None:
        pytest.skip("mpirun is missing: apt-get install openmpi-bin")
    shutil.rmtree(tmp_path / "mpi")
    checks = {check.name: check for check in selfcheck_trtllm.probe(installed, None)}
    assert checks["spawn"].ok, checks["spawn"].note
