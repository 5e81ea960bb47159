"""Alerts and recorded series (deploy/observability): a real promtool tries each, and each leads to the runbook."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from inflight.serving.metrics import FAMILIES, exported
from inflight_gateway.http.metrics import Metrics
from tests.harness.prometheus import program

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "deploy" / "observability"
GROUPS: list[dict[str, Any]] = yaml.safe_load((FOLDER / "rules.yml").read_text("utf-8"))["groups"]
RULES = [rule for group in GROUPS for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDED = {rule["record"]: rule for rule in RULES if "record" in rule}
TESTS: list[dict[str, Any]] = yaml.safe_load((FOLDER / "rules_test.yml").read_text("utf-8"))["tests"]


def promtool(*arguments: str) -> None:
    done = subprocess.run(
        [program("promtool"), *arguments], cwd=FOLDER, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_takes_the_configuration_and_its_rules() -> None:
    promtool("check", "config", "prometheus.yml")


def test_every_rule_does_what_its_histories_say() -> None:
    promtool("test", "rules", "rules_test.yml")


def test_every_alert_is_tried_firing_and_silent_and_every_recorded_series_has_a_value() -> None:
    cases = [case for test in TESTS for case in test.get("alert_rule_test", [])]
    fire = {case["alertname"] for case in cases if case["exp_alerts"]}
    silent = {case["alertname"] for case in cases if not case["exp_alerts"]}
    assert fire == silent == set(ALERTS)
    tried = " ".join(case["expr"] for test in TESTS for case in test.get("promql_expr_test", []))
    assert [name for name in RECORDED if name not in tried] == []


@pytest.mark.parametrize("name", ALERTS)
def test_alerts_say_how_bad_it_is_and_where_help_is(name: str) -> None:
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"]["summary"].endswith(".")
    assert rule["annotations"]["runbook"] == f"docs/operating.md#{name.lower()}"


def test_rules_speak_of_metrics_that_there_are() -> None:
    """A rule over a name that nobody exports never fires. The same holds for the values of labels."""
    gateway = set(re.findall(r"^# TYPE (\S+)", Metrics().text().decode(), re.MULTILINE))
    known = {name for name, _, _ in exported()} | gateway
    known |= {f"{name}_{part}" for name in gateway for part in ("bucket", "sum", "count")}
    text = " ".join(rule["expr"] for rule in RULES)
    named = set(re.findall(r"(?<![\w:])inflight_\w+", text)) - {"inflight"}
    assert sorted(named - known) == []
    assert set(re.findall(r"model:\w+:\w+", text)) <= set(RECORDED)
    values = {value for family in FAMILIES for value in family.values}
    for label in ("outcome", "kind"):
        for found in re.findall(rf'{label}=~?"([^"]+)"', text):
            assert set(found.split("|")) <= values, found
    jobs = {job["job_name"] for job in yaml.safe_load((FOLDER / "prometheus.yml").read_text("utf-8"))["scrape_configs"]}
    assert set(re.findall(r'job="([^"]+)"', text)) == jobs
