"""Stage ``inspect.openvino``: compile the model as it is served and compare the graph before and after.

Runs in a child process (see `build_engine.stages`).
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from build_engine.verification.openvino_runner import kv_precision

BROKEN_OPERATIONS = {"ReduceMean": 3, "Swish": 3, "Concat": 4}
"""Where `break_fusions` cuts: inside RMSNorm, after SwiGLU's activation, inside rotary embedding (tensor ranks)."""

PROMPT, STEPS, REPEATS = 32, 48, 3


def run(spec: dict[str, Any], report: Any) -> dict[str, Any]:
    """Describe the kernels of ``spec["model"]``; with ``spec["benchmark"]`` also time it with fusions broken."""
    import openvino as ov

    core = ov.Core()
    properties = {"KV_CACHE_PRECISION": kv_precision(core, spec["kv_cache"])}
    report(None, "compiling")
    result = describe(core, Path(spec["model"]), properties)
    if spec["benchmark"]:
        report(None, "timing")
        model = core.read_model(spec["model"])
        fused = core.compile_model(model, "CPU", properties)
        model = core.read_model(spec["model"])
        ranks = break_fusions(model)
        broken = core.compile_model(model, "CPU", properties)
        result["benchmark"] = {
            "tokens_per_second_fused": decode_rate(fused, []),
            "tokens_per_second_unfused": decode_rate(broken, ranks),
            "kernels_fused": sum(kernel_counts(fused).values()),
            "kernels_unfused": sum(kernel_counts(broken).values()),
        }
    return result


def describe(core: Any, path: Path, properties: dict[str, str]) -> dict[str, Any]:
    """Operations before, kernels after, with the operations that each kind of kernel carries the names of.

    The model is first rewritten to paged attention, as the serving pipeline does it.
    """
    model = core.read_model(path)
    before = operation_counts(model)
    merged = merged_counts(model)
    paged = True
    try:
        from openvino._offline_transformations import paged_attention_transformation

        paged_attention_transformation(model)
    except (ImportError, RuntimeError):
        paged = False
        model = core.read_model(path)
    types = {op.get_friendly_name(): op.get_type_name() for op in model.get_ops()}
    compiled = core.compile_model(model, "CPU", properties)
    kernels: Counter[tuple[str, str]] = Counter()
    carried: dict[tuple[str, str], Counter[str]] = {}
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        key = (_text(info, "layerType"), _text(info, "runtimePrecision"))
        if key[0] in ("Const", "Input", "Output"):
            continue
        kernels[key] += 1
        names = [name for name in _text(info, "originalLayersNames").split(",") if name in types]
        carried.setdefault(key, Counter()).update(types[name] for name in names)
    return {
        "paged_attention": paged,
        "operations_before": sum(before.values()),
        "kernels_after": sum(kernels.values()),
        "merged": dict(merged),
        "operations": dict(before.most_common()),
        "kernels": [
            {"kernel": kind, "precision": precision, "count": count, "operations": dict(carried[kind, precision])}
            for (kind, precision), count in kernels.most_common()
        ],
        "absorbed": absorbed(before, kernels),
    }


def operation_counts(model: Any) -> Counter[str]:
    skipped = {"Constant", "Parameter", "Result"}
    return Counter(op.get_type_name() for op in model.get_ops() if op.get_type_name() not in skipped)


def merged_counts(model: Any) -> Counter[str]:
    """How many products the builder merged out of which layers; their names tell (build_engine/openvino/merge.py)."""
    products = (op.get_friendly_name() for op in model.get_ops() if op.get_type_name() == "MatMul")
    leaves = (name.split("/", 1)[0].rpartition(".")[2] for name in products)
    return Counter(leaf for leaf in leaves if "+" in leaf)


PATTERNS = {
    "RMS": ("Power", "ReduceMean", "Sqrt", "Divide"),
    "RoPE": ("Slice", "Concat"),
    "FullyConnected": ("MatMul", "Subtract", "Swish"),
    "PagedAttention": ("ScaledDotProductAttention", "ReadValue", "Assign", "Broadcast"),
    "ScaledDotProductAttention": ("Broadcast",),
}
"""Which operations of the source graph disappear into which fused kernel of OpenVINO's CPU plugin."""

LEFT_AS = {"MatMul": ("MatMul",), "Concat": ("Concatenation",), "Slice": ("StridedSlice",), "Broadcast": ("Broadcast",)}
"""Kernel kinds that are the unfused form of an operation."""


def absorbed(before: Counter[str], kernels: Counter[tuple[str, str]]) -> list[dict[str, Any]]:
    """For each fused kernel: how many there are, and its operations' counts in the source graph and still alone."""
    by_kind: Counter[str] = Counter()
    for (kind, _), count in kernels.items():
        by_kind[kind] += count
    return [
        {
            "kernel": kind,
            "count": by_kind[kind],
            "operations": {
                name: {"before": before[name], "after": sum(by_kind[left] for left in LEFT_AS.get(name, (name,)))}
                for name in names
                if before[name]
            },
        }
        for kind, names in PATTERNS.items()
        if by_kind[kind]
    ]


def kernel_counts(compiled: Any) -> Counter[str]:
    kinds = (_text(node.get_rt_info(), "layerType") for node in compiled.get_runtime_model().get_ops())
    return Counter(kind for kind in kinds if kind not in ("Const", "Input", "Output"))


def break_fusions(model: Any) -> list[int]:
    """Put a reshape whose shape is a model input behind operations inside fusible patterns.

    The plugin has no switch for its graph optimisations; a reshape costs no copy, but no pattern matches across it,
    and because its shape is an input it cannot be optimised away. Returns the ranks of the inputs it added.
    """
    from openvino import opset13

    shapes: dict[int, Any] = {}
    for op in list(model.get_ops()):
        rank = BROKEN_OPERATIONS.get(op.get_type_name())
        if rank is None or op.output(0).get_partial_shape().rank.get_length() != rank:
            continue
        output = op.output(0)
        if rank not in shapes:
            shapes[rank] = opset13.parameter([rank], np.int64, name=f"shape_{rank}")
            shapes[rank].output(0).set_names({f"shape_{rank}"})
        targets = list(output.get_target_inputs())
        cut = opset13.reshape(output, shapes[rank], special_zero=True)
        for target in targets:
            target.replace_source_output(cut.output(0))
    model.add_parameters(list(shapes.values()))
    model.validate_nodes_and_infer_types()
    return sorted(shapes)


def decode_rate(compiled: Any, ranks: list[int]) -> float:
    """Tokens per second of single-token steps after a short prompt; the best of a few repeats."""
    names = {name for port in compiled.inputs for name in port.get_names()}
    request = compiled.create_infer_request()
    extra = {f"shape_{rank}": np.array([0] * (rank - 1) + [-1], dtype=np.int64) for rank in ranks}

    def step(start: int, stop: int) -> None:
        inputs = {
            "input_ids": np.full((1, stop - start), 7, dtype=np.int64),
            "attention_mask": np.ones((1, stop), dtype=np.int64),
            "position_ids": np.arange(start, stop, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, dtype=np.int32),
            **extra,
        }
        request.infer({name: value for name, value in inputs.items() if name in names})

    best = 0.0
    for _ in range(REPEATS):
        request.reset_state()
        step(0, PROMPT)
        started = time.perf_counter()
        for position in range(PROMPT, PROMPT + STEPS):
            step(position, position + 1)
        best = max(best, STEPS / (time.perf_counter() - started))
    return round(best, 1)


def _text(info: Any, key: str) -> str:
    value = info[key]
    return str(value.astype(str) if hasattr(value, "astype") else value)
