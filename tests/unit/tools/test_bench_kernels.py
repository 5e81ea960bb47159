"""Where a step goes, out of the plugin's counters."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace

import pytest

from bench.kernels import by_kernel, kernel, since, summary


def counter(node_type: str, name: str, ms: float, status: str = "Status.EXECUTED") -> SimpleNamespace:
    """As OpenVINO gives them."""
    taken = timedelta(milliseconds=ms)
    return SimpleNamespace(node_type=node_type, exec_type="jit", node_name=name, real_time=taken, status=status)


def test_products_are_told_apart_by_their_layer() -> None:
    name = "__module.model.layers.0.mlp.gate_proj+up_proj/ov_ext::linear/MatMul"
    assert kernel("FullyConnectedCompressed", "jit", name) == "gate_proj+up_proj (jit)"
    assert kernel("FullyConnected", "jit", "__module.lm_head/ov_ext::linear/MatMul") == "output layer (jit)"
    assert kernel("RMS", "jit", "x") == "RMS (jit)"


def test_kernels_are_summed_and_what_is_between_them_is_what_is_left() -> None:
    counters = [counter("RMS", "a", 1), counter("RMS", "b", 2), counter("RoPE", "c", 1)]
    step = by_kernel([*counters, counter("Reshape", "d", 9, "Status.NOT_RUN")])
    assert step == {"RMS (jit)": (2, 3.0), "RoPE (jit)": (1, 1.0)}
    told = summary([5.0, 6.0, 7.0], step)
    assert told["step_ms"] == 6.0
    assert told["between_ms"] == 2.0
    assert [(row["kernel"], row["count"], row["share"]) for row in told["kernels"]] == [
        ("RMS (jit)", 2, 0.5),
        ("RoPE (jit)", 1, round(1 / 6, 4)),
    ]


def test_means_over_everything_become_means_over_the_last_steps() -> None:
    # Two slow steps of 10 ms, then three of 2 ms: the plugin says 10, then (20 + 6) / 5.
    assert since({"RMS": (1, 10.0)}, {"RMS": (1, 5.2)}, 2, 3) == {"RMS": (1, pytest.approx(2.0))}
