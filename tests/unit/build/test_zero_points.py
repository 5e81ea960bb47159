"""Taking zero points out of products: the integers stay what they were, less 128, and the outputs are the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

ov = pytest.importorskip("openvino")
from openvino import opset13 as op  # noqa: E402

from build_engine.openvino import narrow, zero_points  # noqa: E402
from build_engine.openvino.merge import merge_projections  # noqa: E402
from tests.unit.build.test_merge import MLP, QKV, WIDTH, constants, linear, outputs, stored, weights  # noqa: E402

pytestmark = pytest.mark.fast

SMALLEST = min(QKV.values()) * WIDTH


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zero_points, "LEAST", SMALLEST)


def followed(products: list[Any], source: Any) -> Any:
    """A model in which another product comes behind each of these, so that none is the output layer."""
    ends = []
    for node in products:
        width = int(node.get_output_partial_shape(0)[2].get_length())
        ends.append(op.result(op.matmul(op.relu(node), op.constant(np.eye(width, dtype=np.float32)), False, True)))
    return ov.Model(ends, [source])


def model_of(storage: str, bias: bool, names: dict[str, int] | None = None) -> Any:
    random = np.random.default_rng(7)
    source = op.parameter(ov.PartialShape([-1, -1, WIDTH]), np.float32, name="x")
    products = []
    for name, rows in (names or {**QKV, **MLP}).items():
        node = linear(source, name, weights(storage, rows, random))
        if bias:
            node = op.add(node, op.convert(stored(ov.Type.f16, [1, 1, rows], random), "f32"))
        products.append(node)
    return followed(products, source)


def x() -> Any:
    """Activations whose sums are far from 0, so that a term that is left out shows."""
    return np.random.default_rng(3).standard_normal((2, 3, WIDTH)).astype(np.float32) + 1


def assert_equal(before: Any, after: Any) -> None:
    for one, other in zip(outputs(before, x()), outputs(after, x()), strict=True):
        assert np.abs(one).max() > 0.1
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-4 * np.abs(one).max())


@pytest.mark.parametrize("bias", [False, True])
def test_integers_and_outputs_are_equal(bias: bool) -> None:
    whole, folded = model_of("int8", bias), model_of("int8", bias)
    assert zero_points.fold_zero_points(folded) == len(QKV) + len(MLP)
    assert "Subtract" not in [node.get_type_name() for node in folded.get_ops()]
    for name, rows in {**QKV, **MLP}.items():
        before, after = (
            next(data for _, data in constants(model, name) if len(data) == rows * WIDTH) for model in (whole, folded)
        )
        signed = np.frombuffer(before, np.uint8).astype(np.int16) - 128
        assert np.frombuffer(after, np.int8).tolist() == signed.tolist()
    assert_equal(whole, folded)


def test_a_bias_stays_beside_its_product() -> None:
    """There the plugin adds it within the product's kernel."""
    folded = model_of("int8", True)
    zero_points.fold_zero_points(folded)
    products = [node for node in folded.get_ordered_ops() if "mlp" in node.get_friendly_name()]
    assert len(products) == len(MLP)
    for node in products:
        (target,) = node.output(0).get_target_inputs()
        other = target.get_node().input_value(1 - target.get_index()).get_node()
        assert (target.get_node().get_type_name(), other.get_type_name()) == ("Add", "Convert")


def test_merged_layers_are_folded_and_then_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(narrow, "WIDEST", WIDTH // 2)
    model = model_of("int8", True)
    merge_projections(model)
    assert zero_points.fold_zero_points(model) == 2
    assert narrow.narrow_products(model) == 2
    assert_equal(model_of("int8", True), model)


@pytest.mark.parametrize("storage", ["f32", "f16", "bf16", "int4"])
def test_what_is_not_of_8_bits_stays(storage: str) -> None:
    assert zero_points.fold_zero_points(model_of(storage, False)) == 0


def test_the_output_layer_stays() -> None:
    """OpenVINO GenAI gathers each prompt's last token before it: a sum beside it would be of other tokens."""
    source = op.parameter(ov.PartialShape([-1, -1, WIDTH]), np.float32, name="x")
    head = linear(source, "lm_head", weights("int8", 40, np.random.default_rng(7)))
    capped = op.multiply(op.tanh(head), op.constant(np.float32(30)))
    assert zero_points.fold_zero_points(ov.Model([op.result(capped)], [source])) == 0


def test_small_products_and_experts_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    assert zero_points.fold_zero_points(model_of("int8", False, {"experts.0.down_proj": 24})) == 0
    monkeypatch.setattr(zero_points, "LEAST", SMALLEST + 1)
    assert zero_points.fold_zero_points(model_of("int8", False)) == len(QKV) + len(MLP) - 2


def test_shared_weights_stay() -> None:
    source = op.parameter(ov.PartialShape([-1, -1, WIDTH]), np.float32, name="x")
    matrix = weights("int8", 24, np.random.default_rng(7))
    both = [linear(source, f"mlp.{name}", matrix) for name in ("one", "other")]
    assert zero_points.fold_zero_points(followed(both, source)) == 0


@pytest.mark.parametrize("zero_shape", [[1, 1], []])
def test_one_zero_point_for_all_rows_stays(zero_shape: list[int]) -> None:
    random = np.random.default_rng(7)
    source = op.parameter(ov.PartialShape([-1, -1, WIDTH]), np.float32, name="x")
    zero = op.convert(op.constant(np.full(zero_shape, 7, dtype=np.uint8)), "f32")
    integers = op.convert(stored(ov.Type.u8, [24, WIDTH], random), "f32")
    matrix = op.multiply(op.subtract(integers, zero), op.constant(np.ones((24, 1), dtype=np.float32)))
    assert zero_points.fold_zero_points(followed([linear(source, "mlp.one", matrix)], source)) == 0


def test_activations_of_two_dimensions_keep_them() -> None:
    answers = []
    for folded in (False, True):
        source = op.parameter(ov.PartialShape([-1, WIDTH]), np.float32, name="x")
        node = op.relu(linear(source, "mlp.one", weights("int8", 24, np.random.default_rng(7))))
        end = op.matmul(node, op.constant(np.eye(24, dtype=np.float32)), False, True)
        model = ov.Model([op.result(end)], [source])
        if folded:
            assert zero_points.fold_zero_points(model) == 1
        answers.append(outputs(model, x()[0])[0])
    assert answers[0].shape == answers[1].shape == (3, 24)
    np.testing.assert_allclose(answers[1], answers[0], rtol=1e-5, atol=1e-4 * np.abs(answers[0]).max())
