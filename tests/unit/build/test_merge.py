"""Merging query, key and value, and gate and up: every stored row and every output stays what it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

ov = pytest.importorskip("openvino")
from openvino import opset13 as op  # noqa: E402

from build_engine.openvino.merge import merge_projections  # noqa: E402

pytestmark = pytest.mark.fast

WIDTH, GROUP = 32, 16
QKV = {"self_attn.q_proj": 24, "self_attn.k_proj": 8, "self_attn.v_proj": 8}
MLP = {"mlp.gate_proj": 40, "mlp.up_proj": 40}
STORED = ("f32", "f16", "bf16", "int8", "int4")


def stored(kind: Any, shape: list[int], random: np.random.Generator) -> Any:
    """A constant of any type with random bytes (finite ones for floating-point types)."""
    if kind in (ov.Type.f32, ov.Type.f16):
        values = random.standard_normal(shape).astype(np.float32 if kind == ov.Type.f32 else np.float16)
        return op.constant(values)
    tensor = ov.Tensor(kind, ov.Shape(shape))
    data = tensor.data.reshape(-1)
    if kind == ov.Type.bf16:  # the upper halves of float32
        exact = random.standard_normal(data.size).astype(np.float32).view(np.uint32)
        data.view(np.uint16)[:] = (exact >> 16).astype(np.uint16)
    else:
        data.view(np.uint8)[:] = random.integers(0, 256, data.view(np.uint8).size, dtype=np.uint8)
    return ov.op.Constant(tensor, shared_memory=False)


def weights(storage: str, rows: int, random: np.random.Generator) -> Any:
    """A weight matrix [rows, WIDTH] as the export or the compression leaves it."""
    if storage == "f32":
        return stored(ov.Type.f32, [rows, WIDTH], random)
    if storage in ("f16", "bf16"):
        return op.convert(stored(getattr(ov.Type, storage), [rows, WIDTH], random), "f32")
    grouped = storage == "int4"
    shape, kind = ([rows, WIDTH // GROUP, GROUP], ov.Type.u4) if grouped else ([rows, WIDTH], ov.Type.u8)
    narrow = [*shape[:-1], 1]
    zero = op.convert(stored(kind, narrow, random), "f16")
    scaled = op.multiply(
        op.subtract(op.convert(stored(kind, shape, random), "f16"), zero), stored(ov.Type.f16, narrow, random)
    )
    if grouped:
        scaled = op.reshape(scaled, op.constant(np.array([rows, WIDTH], dtype=np.int64)), special_zero=False)
    return op.convert(scaled, "f32")


def linear(source: Any, name: str, matrix: Any) -> Any:
    node = op.matmul(source, matrix, False, True)
    node.set_friendly_name(f"__module.model.layers.0.{name}/ov_ext::linear/MatMul")
    return node


def model_of(storage: str, bias: bool, names: dict[str, int] | None = None) -> Any:
    random = np.random.default_rng(7)
    source = op.parameter(ov.PartialShape([-1, -1, WIDTH]), np.float32, name="x")
    results = []
    for name, rows in (names or {**QKV, **MLP}).items():
        node = linear(source, name, weights(storage, rows, random))
        if bias and "self_attn" in name:
            vector = stored(ov.Type.f16, [1, 1, rows], random)
            node = op.add(node, op.convert(vector, "f32"))
        results.append(op.result(op.relu(node)))
    return ov.Model(results, [source])


def constants(model: Any, part: str) -> list[tuple[str, bytes]]:
    """Type and bytes of all constants below the products whose name holds ``part``, product by product."""
    found = []

    def below(node: Any, path: str) -> None:
        if node.get_type_name() == "Constant":
            found.append((path, node.data.reshape(-1).view(np.uint8).tobytes()))
        for port, value in enumerate(node.input_values()):
            below(value.get_node(), f"{path}/{node.get_type_name()}.{port}")

    for node in model.get_ordered_ops():
        if node.get_type_name() == "MatMul" and part in node.get_friendly_name():
            below(node.input_value(1).get_node(), "")
    return [each for each in found if "Reshape.1" not in each[0]]


def outputs(model: Any, x: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    answer = compiled([x])
    return [np.array(answer[index]) for index in range(len(compiled.outputs))]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("storage", STORED)
def test_rows_and_outputs_are_equal(storage: str, bias: bool) -> None:
    apart, merged = model_of(storage, bias), model_of(storage, bias)
    found = merge_projections(merged)
    assert dict(found.done) == {"q_proj+k_proj+v_proj": 1, "gate_proj+up_proj": 1}
    assert not found.apart
    kinds = [node.get_type_name() for node in merged.get_ops()]
    assert kinds.count("MatMul") == 2
    assert kinds.count("Add") == (1 if bias else 0)
    for members, whole in ((QKV, "q_proj+k_proj+v_proj"), (MLP, "gate_proj+up_proj")):
        parts = [dict(constants(apart, name)) for name in members]
        for path, data in constants(merged, whole):
            assert data == b"".join(part[path] for part in parts), f"{whole}: other rows in {path}"
    x = np.random.default_rng(3).standard_normal((2, 3, WIDTH)).astype(np.float32)
    for before, after in zip(outputs(apart, x), outputs(merged, x), strict=True):
        assert np.abs(before).max() > 0.1
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-4 * np.abs(before).max())


def apart_because(model: Any) -> list[str]:
    operations = [node.get_friendly_name() for node in model.get_ordered_ops()]
    found = merge_projections(model)
    assert [node.get_friendly_name() for node in model.get_ordered_ops()] == operations, "refused, and changed"
    assert not found.done
    return [reason.split(": ", 1)[1] for reason in found.apart]


def test_what_stays_apart_and_why() -> None:
    experts = {"mlp.experts.3.gate_proj": 40, "mlp.experts.3.up_proj": 40}
    assert apart_because(model_of("bf16", False, experts)) == ["experts are not merged"]
    assert apart_because(model_of("bf16", False, {"self_attn.q_proj": 24})) == ["some of them are missing"]
    already = {"self_attn.qkv_proj": 40, "mlp.gate_up_proj": 80, "mlp.down_proj": 32}
    assert apart_because(model_of("bf16", False, already)) == []

    random = np.random.default_rng(0)
    source = op.parameter(ov.PartialShape([-1, -1, WIDTH]), np.float32, name="x")

    def pair(gate: Any, up: Any, other: Any = None) -> Any:
        nodes = [linear(source, "mlp.gate_proj", gate), linear(other or source, "mlp.up_proj", up)]
        return ov.Model([op.result(node) for node in nodes], [source])

    plain = weights("bf16", 8, random)
    assert apart_because(pair(plain, weights("bf16", 8, random), op.relu(source))) == ["they read different inputs"]
    assert apart_because(pair(plain, weights("f32", 8, random))) == ["their weights are stored in different ways"]
    assert apart_because(pair(plain, weights("f16", 8, random))) == ["their weights are stored in different precisions"]
    assert apart_because(pair(plain, plain)) == ["their weights are shared with other layers"]
