"""Metrics into Triton's own /metrics."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import triton_python_backend_utils as pb_utils

from inflight.serving.metrics import exported

log = logging.getLogger("inflight.metrics")


class TritonSink:
    """One Triton metric per name and labels, made when it is first needed."""

    def __init__(self, model: str, version: str) -> None:
        self._labels = {"model": model, "version": version}
        self._metrics: dict[tuple[str, tuple[tuple[str, str], ...]], Any] = {}
        self._families: dict[str, Any] = {}
        kinds = {"counter": pb_utils.MetricFamily.COUNTER, "gauge": pb_utils.MetricFamily.GAUGE}
        for name, kind, text in exported():
            self._families[name] = pb_utils.MetricFamily(name=name, description=text, kind=kinds[kind])

    def add(self, name: str, labels: Mapping[str, str], amount: float) -> None:
        """Increase a counter."""
        self._metric(name, labels).increment(float(amount))

    def set(self, name: str, labels: Mapping[str, str], value: float) -> None:
        """Set a gauge."""
        self._metric(name, labels).set(float(value))

    def _metric(self, name: str, labels: Mapping[str, str]) -> Any:
        key = (name, tuple(labels.items()))
        metric = self._metrics.get(key)
        if metric is None:
            metric = self._families[name].Metric(labels={**self._labels, **labels})
            self._metrics[key] = metric
        return metric


def make_sink(model: str, version: str) -> TritonSink | None:
    """None when the server runs without metrics (`--allow-metrics=false`)."""
    try:
        return TritonSink(model, version)
    except pb_utils.TritonModelException as error:
        log.info("running without metrics: %s", error)
        return None
