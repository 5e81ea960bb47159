"""What a self-check takes for well, and that its checks find something to check."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from inflight_tools.selfcheck import serving as serving
from inflight_tools.selfcheck import trtllm as selfcheck_trtllm
from inflight_tools.selfcheck.kind import Setup
from inflight_tools.selfcheck.report import AGREEMENT_SLACK, PERPLEXITY_SLACK, EngineReport, Report, markdown
from tests.doubles.folders import write_checkpoint, write_engine

pytestmark = pytest.mark.fast

WELL: dict[str, Any] = {
    "checks": [serving.Check("it answers", True)],
    "agreement": {"measured": 0.95, "predicted": 0.97},
    "perplexity": {"measured": 12.0, "predicted": 12.1},
    "load": {"levels": []},
    "bench": {"note": "left out: trtllm-bench is not on PATH"},
}


def test_an_engine_that_did_all_of_it_is_well() -> None:
    assert EngineReport("x", "/x", **WELL).ok
    assert EngineReport("x", "/x").ok, "what was not asked for is no fault"


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"problem": "out of memory"}, "out of memory"),
        ({"checks": [serving.Check("a stop string cuts the text", False, "'abc'")]}, "cuts the text: 'abc'"),
        ({"agreement": {"measured": 0.0, "predicted": 0.97}}, r"agreement 0\.000 where 0\.970"),
        ({"agreement": {"measured": 0.97 - AGREEMENT_SLACK - 0.01, "predicted": 0.97}}, "agreement"),
        ({"agreement": {"measured": float("nan"), "predicted": 0.97}}, "agreement nan"),
        ({"agreement": {"problem": "No module named 'torch'"}}, "agreement: No module"),
        ({"perplexity": {"measured": 12.1 * (1 + PERPLEXITY_SLACK) + 0.1, "predicted": 12.1}}, "perplexity"),
        ({"perplexity": {"measured": 12.1 * (1 - PERPLEXITY_SLACK) - 0.1, "predicted": 12.1}}, "perplexity"),
        ({"perplexity": {"measured": float("nan"), "predicted": 12.1}}, "perplexity nan"),
        ({"perplexity": {"problem": "no logits"}}, "perplexity: no logits"),
        ({"load": {"problem": "no perf_analyzer"}}, "load: no perf_analyzer"),
        ({"bench": {"problem": "exit status 3"}}, "bench: exit status 3"),
    ],
)
def test_each_fault_is_one(values: dict[str, Any], fault: str) -> None:
    engine = EngineReport("x", "/x", **{**WELL, **values})
    report = Report({}, engines=[EngineReport("y", "/y"), engine])
    assert (engine.ok, report.ok) == (False, False)
    with pytest.raises(AssertionError, match=fault):
        raise AssertionError("; ".join(engine.faults()))
    assert "## Engine x: NOT well" in markdown(report)
    assert f"**{next(engine.faults())}**" in markdown(report)


@pytest.mark.parametrize("missing", ["measured", "predicted"])
def test_figures_without_their_counterpart_are_reported_and_not_judged(missing: str, tmp_path: Path) -> None:
    values = {
        part: {name: value for name, value in WELL[part].items() if name != missing}
        for part in ("agreement", "perplexity")
    }
    report = Report({"gpus": "none"}, engines=[EngineReport("x", "/x", **{**WELL, **values})])
    report.save(tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["ok"]


def test_facts_that_do_not_hold_or_were_not_compared() -> None:
    finding = {"what": "Request.streaming", "table": "bool", "installed": "missing"}
    facts = {"version": "1.2.1", "profile": "1.2", "checked": 9, "findings": [finding]}
    assert not Report({}, facts).ok
    assert "| Request.streaming | bool | missing |" in markdown(Report({}, facts))
    assert not Report({}, {"problem": "no tensorrt_llm"}).ok


NO_THROUGHPUT = "its report has no throughput: KeyError('performance')"


class Parrot:
    """Gives the same text to every request, whatever it forbids."""

    def __init__(self, text: str) -> None:
        self._text = text

    def text(self, **_: Any) -> str:
        return self._text

    def ask(self, **_: Any) -> Any:
        return SimpleNamespace(sequences={0: SimpleNamespace(text=self._text, finish_reason="length")})


@pytest.mark.parametrize("text", ["", "aaaaaaaaaaaa"])
def test_an_answer_without_a_place_to_stop_is_no_success(text: str) -> None:
    assert "nothing to stop at" in serving._stop(Parrot(text))  # type: ignore[arg-type]


def test_an_answer_without_a_word_to_forbid_is_no_success() -> None:
    assert "nothing to forbid" in serving._bad_words(Parrot("1 2 3"))  # type: ignore[arg-type]


def test_a_server_that_heeds_neither_is_noticed() -> None:
    parrot: Any = Parrot("hello over there, traveller")
    assert "traveller" in serving._stop(parrot)
    assert serving._bad_words(parrot) == "'hello' is in the answer"


def test_trtllm_bench_is_told_which_flow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left alone it takes the PyTorch flow, which cannot load an engine."""
    program = tmp_path / "trtllm-bench"
    program.write_text(f'#!/bin/sh\necho "$*" > {tmp_path}/said\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    engine = write_engine(tmp_path / "engine", tmp_path)
    checkpoint = write_checkpoint(tmp_path / "checkpoint", tmp_path)
    load = {"levels": [{"value": 8, "tokens_per_s": 5.0}, {"value": 1, "tokens_per_s": 1.0}]}
    selfcheck_trtllm.bench(Setup(tmp_path, tmp_path, (8,)), EngineReport("x", str(engine), load=load))
    said = (tmp_path / "said").read_text()
    assert f"--backend tensorrt --engine_dir {engine}" in said
    assert "--concurrency 8" in said, "the widest level that was measured"
    selfcheck_trtllm.bench(Setup(tmp_path, tmp_path, (8,)), EngineReport("x", str(checkpoint)))
    said = (tmp_path / "said").read_text()
    assert f"--model_path {checkpoint} " in said
    assert "--backend pytorch" in said
    assert "--engine_dir" not in said


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("echo boom >&2; exit 3", {"problem": "boom"}),
        ("exit 0", {"problem": "nothing was written"}),
        ('echo "{}" > "$(echo "$*" | sed s/.*report_json// | cut -d" " -f2)"', {"problem": NO_THROUGHPUT}),
    ],
)
def test_trtllm_bench_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, found: dict[str, str]
) -> None:
    program = tmp_path / "trtllm-bench"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    engine = write_engine(tmp_path / "engine", tmp_path)
    assert selfcheck_trtllm.bench(Setup(tmp_path, tmp_path, (8,)), EngineReport("x", str(engine))) == found
