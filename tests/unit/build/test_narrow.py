"""Cutting wide products: every stored number stays what it was, and the outputs are the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

ov = pytest.importorskip("openvino")
from openvino import opset13 as op  # noqa: E402

from build_engine.openvino import narrow  # noqa: E402
from build_engine.openvino.merge import merge_projections  # noqa: E402
from tests.unit.build.test_merge import MLP, QKV, WIDTH, constants, linear, model_of, outputs, weights  # noqa: E402

pytestmark = pytest.mark.fast

PRODUCTS = len(QKV) + len(MLP)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(narrow, "WIDEST", WIDTH // 2)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("storage", ["int8", "int4"])
def test_columns_and_outputs_are_equal(storage: str, bias: bool) -> None:
    whole, cut = model_of(storage, bias), model_of(storage, bias)
    assert narrow.narrow_products(cut) == PRODUCTS
    assert [node.get_type_name() for node in cut.get_ops()].count("MatMul") == 2 * PRODUCTS
    x = np.random.default_rng(3).standard_normal((2, 3, WIDTH)).astype(np.float32)
    for before, after in zip(outputs(whole, x), outputs(cut, x), strict=True):
        assert np.abs(before).max() > 0.1
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-4 * np.abs(before).max())


def test_the_integers_of_the_parts_are_those_of_the_whole() -> None:
    whole, cut = model_of("int8", False), model_of("int8", False)
    narrow.narrow_products(cut)
    for name, rows in {**QKV, **MLP}.items():
        (stored,) = [data for _, data in constants(whole, name) if len(data) == rows * WIDTH]
        halves = [data for _, data in constants(cut, name) if len(data) == rows * WIDTH // 2]
        first, second = (np.frombuffer(half, np.uint8).reshape(rows, -1) for half in halves)
        assert np.hstack((first, second)).tobytes() == stored


def test_merged_layers_are_cut_as_well() -> None:
    model = model_of("int8", True)
    merge_projections(model)
    x = np.random.default_rng(3).standard_normal((2, 3, WIDTH)).astype(np.float32)
    before = outputs(model_of("int8", True), x)
    assert narrow.narrow_products(model) == 2
    for one, other in zip(before, outputs(model, x), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-4 * np.abs(one).max())


@pytest.mark.parametrize("storage", ["f32", "f16", "bf16"])
def test_what_is_no_integer_stays_whole(storage: str) -> None:
    assert narrow.narrow_products(model_of(storage, False)) == 0


def test_shared_weights_stay_whole() -> None:
    random = np.random.default_rng(7)
    source = op.parameter(ov.PartialShape([-1, -1, WIDTH]), np.float32, name="x")
    matrix = weights("int8", 24, random)
    both = [linear(source, f"mlp.{name}", matrix) for name in ("one", "other")]
    assert narrow.narrow_products(ov.Model([op.result(node) for node in both], [source])) == 0


def test_experts_and_odd_groups_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    assert narrow.narrow_products(model_of("int8", False, {"experts.0.down_proj": 24})) == 0
    monkeypatch.setattr(narrow, "WIDEST", WIDTH // 4)  # a quarter is half of int4's group
    model: Any = model_of("int4", False)
    assert narrow.narrow_products(model) == 0
    assert [node.get_type_name() for node in model.get_ops()].count("MatMul") == PRODUCTS


@pytest.mark.parametrize(
    ("width", "parts"), [(576, 1), (3072, 1), (4864, 2), (5632, 2), (8192, 4), (11008, 4), (14336, 8), (4099, 1)]
)
def test_how_many_parts(width: int, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(narrow, "WIDEST", 3072)
    assert narrow.parts_of(width) == parts
