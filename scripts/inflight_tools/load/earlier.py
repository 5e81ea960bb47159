"""A level of a results.json as the figures it was written from. Pure.

Files of older releases have less: what is missing is not a number there, or nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from inflight_tools.common.resources import Usage
from inflight_tools.load.quantiles import Curves
from inflight_tools.load.stats import LevelResult, Percentiles, RunResult

_TIMES = ("ttft", "itl", "tpot", "latency")
_MEDIANS = tuple(f"{name}_p50" for name in _TIMES)


def read_level(level: Mapping[str, Any]) -> LevelResult:
    """The figures of one level. Raises ValueError, TypeError, AttributeError or KeyError for what is none."""
    load = str(level["load"])
    curves = level.get("curves") or {}
    return LevelResult(
        load=load,
        value=_number(level.get("value")),
        requests=int(level.get("requests") or 0),
        tokens=int(level.get("tokens") or 0),
        prompt_tokens=_number(level.get("prompt_tokens")),
        requests_per_s=_number(level.get("requests_per_s")),
        tokens_per_s=_number(level.get("tokens_per_s")),
        tokens_per_s_ci95=_maybe(level.get("tokens_per_s_ci95")),
        tokens_per_response=_number(level.get("tokens_per_response")),
        goodput_requests_per_s=_number(level.get("goodput_requests_per_s")),
        good_share=_number(level.get("good_share")),
        **{name: _percentiles(level.get(name) or {}) for name in _TIMES},
        cost_per_1000_tokens=_maybe(level.get("cost_per_1000_tokens")),
        usage=_usage(level.get("usage")),
        runs=[_run(run) for run in level["runs"]],
        curves=Curves(**{name: _numbers(curves.get(name)) for name in Curves.__dataclass_fields__}),
    )


def _run(run: Mapping[str, Any]) -> RunResult:
    return RunResult(
        requests=int(run.get("requests") or 0),
        tokens=int(run.get("tokens") or 0),
        steady_s=_number(run.get("steady_s")),
        requests_per_s=_number(run.get("requests_per_s")),
        tokens_per_s=_number(run.get("tokens_per_s")),
        goodput_requests_per_s=_number(run.get("goodput_requests_per_s")),
        **{name: _number(run.get(name)) for name in _MEDIANS},
        usage=_usage(run.get("usage")),
    )


def _usage(used: Mapping[str, Any] | None) -> Usage | None:
    if not used:
        return None
    memory = used.get("gpu_memory")
    return Usage(
        cpu_cores=_number(used.get("cpu_cores")),
        cpu_s_per_1000_tokens=_number(used.get("cpu_s_per_1000_tokens")),
        memory=int(used.get("memory") or 0),
        gpu_percent=_maybe(used.get("gpu_percent")),
        gpu_memory=None if memory is None else int(memory),
    )


def _percentiles(times: Mapping[str, Any]) -> Percentiles:
    return Percentiles(*(_number(times.get(name)) for name in Percentiles.__dataclass_fields__))


def _number(value: Any) -> float:
    """JSON has no NaN: null says that there was nothing to measure."""
    return math.nan if value is None else float(value)


def _maybe(value: Any) -> float | None:
    return None if value is None else float(value)


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values or ())
