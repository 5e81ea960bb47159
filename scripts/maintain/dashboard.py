"""The Grafana dashboard as a table of panels: what generate.py writes to deploy/observability/grafana/dashboards."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

SOURCE = {"type": "prometheus", "uid": "inflight"}  # the uid in provisioning/datasources
_COLUMNS, _HEIGHT = 24, 8
_M = 'model=~"$model"'
_BUILD = "release, engine, engine_version, source, quantization"
_LEFT = "rate(inflight_gateway_cancelled_total[$__rate_interval])"


@dataclasses.dataclass(frozen=True, slots=True)
class Panel:
    """One picture: `queries` are (expression, legend)."""

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    about: str = ""


def _quantiles(name: str) -> tuple[tuple[str, str], ...]:
    rate = f"sum by (model, le) (rate({name}_bucket{{{_M}}}[$__rate_interval]))"
    return tuple(
        (f"histogram_quantile({share}, {rate})", f"{{{{model}}}} p{100 * share:g}") for share in (0.5, 0.95, 0.99)
    )


def _p95(name: str) -> tuple[tuple[str, str], ...]:
    rate = f"rate({name}_bucket[$__rate_interval])"
    return ((f"histogram_quantile(0.95, sum by (le) ({rate}))", "p95"),)


def _share(part: str, whole: str, legend: str) -> tuple[tuple[str, str], ...]:
    return ((f"{part} / {whole}", legend),)


def _rate(name: str, by: str = "model", labels: str = _M) -> str:
    return f"sum by ({by}) (rate({name}{{{labels}}}[$__rate_interval]))"


def _stat(title: str, expression: str, unit: str = "short", about: str = "") -> Panel:
    return Panel(title, ((expression, ""),), unit, "stat", 4, about)


ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Is it up",
        (
            _stat("Servers that answer", 'sum(up{job="inflight"})'),
            _stat("Engines that take requests", f"sum(inflight_engine_up{{{_M}}})"),
            _stat("Draining", f"sum(inflight_draining{{{_M}}})"),
            _stat("Alerts that fire", 'count(ALERTS{alertname=~"Inflight.*",alertstate="firing"}) or vector(0)'),
            _stat("Load", "max(model:inflight_load:ratio)", "percentunit", "Above 100 % requests wait."),
            _stat("Not served", "max(model:inflight_requests_failed:ratio_rate5m) or vector(0)", "percentunit"),
        ),
    ),
    (
        "Requests",
        (
            Panel("How requests end", ((_rate("inflight_requests_total", "outcome"), "{{outcome}}"),), "reqps"),
            Panel(
                "Running and waiting",
                (
                    (f"inflight_requests_running{{{_M}}}", "{{instance}} {{model}} running"),
                    (f"inflight_requests_waiting{{{_M}}}", "{{instance}} {{model}} waiting"),
                    (f'inflight_limit{{kind="running",{_M}}}', "{{instance}} {{model}} limit"),
                ),
            ),
            Panel(
                "Oldest waiting request",
                ((f"inflight_oldest_waiting_seconds{{{_M}}}", "{{instance}} {{model}}"),),
                "s",
            ),
        ),
    ),
    (
        "How fast",
        (
            Panel("Time to first token", _quantiles("inflight_time_to_first_token_seconds"), "s"),
            Panel("Time between tokens", _quantiles("inflight_inter_token_latency_seconds"), "s"),
            Panel("Time in the queue", _quantiles("inflight_queue_time_seconds"), "s"),
            Panel("Whole answers", _quantiles("inflight_request_latency_seconds"), "s"),
            Panel(
                "Tokens in one response",
                _share(
                    _rate("inflight_tokens_per_response_sum"), _rate("inflight_tokens_per_response_count"), "{{model}}"
                ),
            ),
            Panel(
                "Tokens a second",
                (
                    (_rate("inflight_generation_tokens_total"), "{{model}} generated"),
                    (_rate("inflight_prompt_tokens_total"), "{{model}} of prompts"),
                ),
            ),
        ),
    ),
    (
        "Memory and caches",
        (
            Panel(
                "KV cache held",
                ((f"inflight_kv_cache_usage_ratio{{{_M}}}", "{{instance}} {{model}}"),),
                "percentunit",
            ),
            Panel(
                "Prompt tokens found in the cache",
                _share(
                    _rate("inflight_prefix_cache_hit_tokens_total", "model, instance"),
                    _rate("inflight_prompt_tokens_total", "model, instance"),
                    "{{instance}} {{model}}",
                ),
                "percentunit",
                about="A server that has just started, or whose sessions went elsewhere, begins at 0.",
            ),
            Panel(
                "Drafted tokens that were accepted",
                _share(
                    _rate("inflight_speculative_tokens_total", labels=f'kind="accepted",{_M}'),
                    _rate("inflight_speculative_tokens_total", labels=f'kind="draft",{_M}'),
                    "{{model}}",
                ),
                "percentunit",
            ),
        ),
    ),
    (
        "Engines and cost",
        (
            Panel(
                "Restarts of engines",
                ((f"increase(inflight_engine_restarts_total{{{_M}}}[1h])", "{{instance}} {{model}}"),),
            ),
            Panel(
                "What is served",
                ((f"count by (model, {_BUILD}) (inflight_build_info{{{_M}}} == 1)", ""),),
                kind="table",
            ),
            Panel(
                "Cost of a million tokens",
                (("model:inflight_cost_per_million_tokens:rate5m", "{{model}}"),),
                about="Empty without the model parameter price_per_hour.",
            ),
        ),
    ),
    (
        "Gateway",
        (
            Panel(
                "Answers",
                ((_rate("inflight_gateway_requests_total", "route, status", ""), "{{route}} {{status}}"),),
                "reqps",
            ),
            Panel(
                "Time to first token",
                _p95("inflight_gateway_time_to_first_token_seconds"),
                "s",
            ),
            Panel(
                "Under way, and clients that left",
                (
                    ("sum by (instance) (inflight_gateway_requests_in_flight)", "{{instance}} under way"),
                    (f"sum by (instance) ({_LEFT})", "{{instance}} left in a second"),
                ),
            ),
            Panel("Tokens a second", ((_rate("inflight_gateway_tokens_total", "kind", ""), "{{kind}}"),)),
            Panel(
                "Time between tokens",
                _p95("inflight_gateway_inter_token_latency_seconds"),
                "s",
            ),
        ),
    ),
)


def dashboard_text() -> str:
    """The dashboard as Grafana reads it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS:
        heading = {"type": "row", "title": title, "collapsed": False, "panels": []}
        panels.append({**heading, **_place(panels, 0, top, _COLUMNS, 1)})
        top += 1
        left = 0
        for panel in row:
            if left + panel.width > _COLUMNS:
                left, top = 0, top + _HEIGHT
            panels.append({**_panel(panel), **_place(panels, left, top, panel.width, _HEIGHT)})
            left += panel.width
        top += _HEIGHT
    model = {
        "name": "model",
        "label": "Model",
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": "label_values(inflight_engine_up, model)", "refId": "model"},
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }
    content = {
        "uid": "inflight",
        "title": "Inflight",
        "description": "Written by scripts/maintain/generate.py from scripts/maintain/dashboard.py. Do not edit.",
        "schemaVersion": 39,
        "tags": ["inflight"],
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "30s",
        "templating": {"list": [model]},
        "panels": panels,
    }
    return json.dumps(content, indent=1) + "\n"


def _place(before: list[dict[str, Any]], left: int, top: int, width: int, height: int) -> dict[str, Any]:
    return {"id": len(before) + 1, "gridPos": {"x": left, "y": top, "w": width, "h": height}}


def _panel(panel: Panel) -> dict[str, Any]:
    at_once = panel.kind == "table"
    targets = [
        {
            "refId": chr(ord("A") + number),
            "datasource": SOURCE,
            "expr": expression,
            "legendFormat": legend or "__auto",
            **({"instant": True, "format": "table"} if at_once else {}),
        }
        for number, (expression, legend) in enumerate(panel.queries)
    ]
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    found: dict[str, Any] = {
        "type": panel.kind,
        "title": panel.title,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": targets,
    }
    if panel.about:
        found["description"] = panel.about
    return found
