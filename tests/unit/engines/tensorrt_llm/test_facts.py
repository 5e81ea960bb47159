"""The table of facts: where it comes from, and that differences between it and an installation are seen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from maintain import extract_signatures
from tests.doubles.folders import TABLES, environment

pytestmark = pytest.mark.fast

ROOT = Path(__file__).resolve().parents[4]
BINDINGS = """
// A registration in the form of nanobind's; /* comments */ and strings with "quotes, inside" are no trouble.
void init(nb::module_& m)
{
    nb::enum_<tle::Colour>(m, "Colour").value("RED", tle::Colour::kRED).value("BLUE", tle::Colour::kBLUE);
    auto getstate = [](tle::Box const& self) { return nb::make_tuple(self.getWidth(), self.getName()); };
    nb::class_<tle::Box>(m, "Box", nb::dynamic_attr())
        .def(nb::init<SizeType32, std::optional<tle::FloatType> const&, std::vector<tle::VecTokens>, tle::Colour>(),
            nb::arg("width"), nb::arg("weight") = nb::none(), // the comma, in this comment
            nb::kw_only(), nb::arg("words") = nb::none(), nb::arg("colour") = tle::Colour::kBLUE)
        .def_rw("width", &tle::Box::width)
        .def_prop_ro("weight", &tle::Box::getWeight)
        .def("open", &Box::open, nb::arg("how") = nb::none())
        .def_static("Small", &tle::Box::small)
        .def("__getstate__", getstate);
    auto lid = nb::class_<tle::Lid>(m, "Lid");
    nb::class_<tle::Lid::Handle>(lid, "Handle").def(nb::init<bool>(), nb::arg("round") = true);
    lid.def("__init__",
        [](tle::Lid& self, std::optional<bool> tight, std::chrono::milliseconds wait) { make(self); },
        nb::arg("tight") = nb::none(), nb::arg("wait"));
}
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "cpp" / "tensorrt_llm" / "nanobind" / "executor"
    folder.mkdir(parents=True)
    (folder / "request.cpp").write_text(BINDINGS)
    return tmp_path


def test_extraction(checkout: Path) -> None:
    found = extract_signatures.extract(checkout, {})
    assert (found["binding"], found["enums"]) == ("nanobind", {"Colour": ["RED", "BLUE"]})
    box = found["classes"]["Box"]
    assert box["init"] == [
        [
            {"name": "width", "type": "int"},
            {"name": "weight", "type": "float?", "default": None},
            {"name": "words", "type": "[[int]]", "keyword": True, "default": None},
            {"name": "colour", "type": "Colour", "keyword": True, "default": {"enum": "Colour.BLUE"}},
        ]
    ]
    assert box["dynamic"] is True
    assert (box["attributes"], box["methods"], box["statics"]) == (
        {"width": "rw", "weight": "ro"},
        {"open": [["how"]]},
        ["Small"],
    )
    assert found["classes"]["Lid"]["init"] == [
        [{"name": "tight", "type": "bool?", "default": None}, {"name": "wait", "type": "duration"}]
    ]
    assert found["classes"]["Lid.Handle"]["init"] == [[{"name": "round", "type": "bool", "default": True}]]


def test_extraction_by_command(checkout: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    command = [
        sys.executable,
        str(ROOT / "scripts" / "maintain" / "extract_signatures.py"),
        str(checkout),
        "--release",
        "9.9",
    ]
    for said in ("Colour: new; Box: new; Lid: new; Lid.Handle: new", "unchanged"):
        done = subprocess.run(
            [*command, "--source", "x", "--write", str(table)], capture_output=True, text=True, timeout=60, check=True
        )
        assert done.stdout == f"9.9: 3 classes, {said}\n"
    sources = json.loads(table.read_text(encoding="utf-8"))["releases"]["9.9"]["sources"]
    assert sources["Lid.Handle"] == {"file": "request.cpp", "at": "x", "how": "extracted"}
    empty = subprocess.run([*command[:2], str(table.parent / "cpp"), *command[3:]], capture_output=True, timeout=60)
    assert empty.returncode == 1
    assert b"is it TensorRT-LLM" in empty.stderr


PYBIND = """
void init(pybind11::module_& m)
{
    py::class_<tle::Box>(m, "Box")
        .def(py::init<bool>(), py::arg("round") = true)
        .def("open", &tle::Box::open)
        .def(py::pickle(boxGetstate, boxSetstate));
}
"""


def test_files_that_are_brought_one_by_one(checkout: Path, tmp_path: Path) -> None:
    """Only their rows change, each with its own commit; what pybind11 pickles with is no method."""
    table, page = tmp_path / "table.json", tmp_path / "page.md"
    program = [sys.executable, str(ROOT / "scripts" / "maintain" / "extract_signatures.py"), "--write", str(table)]
    subprocess.run([*program, str(checkout), "--release", "9.9", "--source", "x"], timeout=60, check=True)
    (tmp_path / "other.cpp").write_text(PYBIND, encoding="utf-8")
    given = ["--release", "9.9", "--file", f"executorConfig.cpp={tmp_path / 'other.cpp'}@abc"]
    done = subprocess.run([*program, *given], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "9.9: 1 classes, Box: changed\n"
    release = json.loads(table.read_text(encoding="utf-8"))["releases"]["9.9"]
    assert release["classes"]["Box"]["methods"] == {"open": [[]]}
    assert release["sources"]["Box"] == {"file": "executorConfig.cpp", "at": "abc", "how": "extracted"}
    assert release["sources"]["Lid"]["at"] == "x"
    page.write_text(
        "before\n<!-- rows: written by scripts/maintain/extract_signatures.py -->\n<!-- /rows -->\n", "utf-8"
    )
    subprocess.run([*program, "--report", str(page)], timeout=60, check=True)
    assert "| 9.9 | Box | executorConfig.cpp | abc | extracted |" in page.read_text(encoding="utf-8")
    wrong = subprocess.run([*program, "--file", "x.cpp=y"], capture_output=True, text=True, timeout=60)
    assert wrong.returncode == 1
    assert "give --release" in wrong.stderr


def test_the_committed_report_is_that_of_the_table() -> None:
    page = (ROOT / "docs" / "engines" / "tensorrt_llm_facts.md").read_text(encoding="utf-8")
    table = json.loads((TABLES / "signatures.json").read_text(encoding="utf-8"))
    assert extract_signatures.between_marks(page, extract_signatures.report(table)) == page
    for release in table["releases"].values():
        assert set(release["sources"]) == {*release["enums"], *release["classes"]}
        assert all(each["file"] and each["at"] and each["how"] for each in release["sources"].values())


def test_what_no_source_tells_of_a_release_is_not_judged(tmp_path: Path) -> None:
    code = "import tensorrt_llm.bindings.executor as e; e.KvCacheConfig.attention_dp_events_gather_period_ms = 5"
    assert facts(tmp_path, "1.0", code=code)["findings"] == []


def test_the_table_says_where_each_release_comes_from() -> None:
    table = json.loads((TABLES / "signatures.json").read_text())
    assert all(entry["source"] for entry in table["constants"].values())
    assert all("@" in release["source"] for release in table["releases"].values())
    profiles = json.loads((TABLES / "profiles.json").read_text())
    assert all(profile["source"] for profile in profiles.values())
    known = table["releases"]["1.2"]["classes"]
    for profile in profiles.values():
        for fact in [*profile.get("drop", ()), *profile.get("rename", {})]:
            owner, _, name = fact.rpartition(".")
            assert name in {item["name"] for init in known[owner]["init"] for item in init}


def facts(tmp_path: Path, profile: str, *, code: str = "") -> dict[str, Any]:
    """What the self-check finds in an installation; `code` is run before it."""
    target = tmp_path / "facts.json"
    program = f"import runpy, sys; {code or 'pass'}; sys.argv = ['x', {str(target)!r}]\n"
    program += "try:\n    runpy.run_module('inflight_tools.selfcheck.facts', run_name='__main__')\n"
    program += "except SystemExit:\n    pass\n"
    given = {**os.environ, **environment(tmp_path / "site", profile)}
    given["PYTHONPATH"] += os.pathsep + str(ROOT / "scripts")
    subprocess.run([sys.executable, "-c", program], env=given, timeout=60, check=True, capture_output=True)
    found: dict[str, Any] = json.loads(target.read_text())
    return found


@pytest.mark.parametrize("profile", ["0.21", "1.0", "1.1", "1.2", "1.3"])
def test_every_profile_agrees_with_the_table(tmp_path: Path, profile: str) -> None:
    found = facts(tmp_path, profile)
    assert (found["profile"], found["findings"]) == (profile, [])


def test_differences_are_found(tmp_path: Path) -> None:
    code = (
        "import tensorrt_llm.bindings.executor as e; del e.Request.cache_salt_id; del e.FinishReason; "
        "old = e.KvCacheConfig.__init__; "
        "e.KvCacheConfig.__init__ = lambda self, *a, **k: (old(self, *a, **k), "
        "object.__setattr__(self, 'onboard_blocks', False))[0]; "
        "e.KvCacheConfig.__init__.__doc__ = old.__doc__.replace('use_uvm', 'use_managed')"
    )
    found = {finding["what"]: finding for finding in facts(tmp_path, "1.2", code=code)["findings"]}
    assert found["FinishReason"]["installed"] == "missing"
    assert found["Request.cache_salt_id"]["installed"] == "missing"
    assert found["default of KvCacheConfig.onboard_blocks"] == {
        "what": "default of KvCacheConfig.onboard_blocks",
        "table": "True",
        "installed": "False",
    }
    assert "not in its signature" in found["KvCacheConfig.use_uvm of the constructor"]["installed"]
