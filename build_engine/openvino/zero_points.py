"""Take the zero points of 8-bit weights out of their products, for processors that make 32-bit numbers of integers.

There every weight costs a subtraction of its row's zero point before it is multiplied: a tenth of a step with few rows
of activations. But ``(q - z) * s`` is ``(q - 128) * s`` and a constant of the row, so the product is that of signed
integers without zero points, and for every row the sum of its activations times ``(128 - z) * s``: the same numbers,
rounded elsewhere. It is done after compression and merging, and before wide products are cut.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from build_engine.openvino.merge import EXPERTS, bias_of

LEAST = 4_000_000
"""Weights of a product that is worth two kernels more (docs/benchmarks/README.md, "Zero points")."""

_MIDDLE = 128


class NotFoldable(Exception):
    """Why a product keeps its zero points."""


def fold_zero_points(model: Any) -> int:
    """Change in place what can be of an ``openvino.Model``; of how many products the zero points were taken."""
    done = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() == "MatMul" and EXPERTS not in node.get_friendly_name():
            try:
                fold(node)
            except NotFoldable:
                continue
            done += 1
    model.validate_nodes_and_infer_types()
    return done


def fold(product: Any) -> None:
    """Take one MatMul's zero points out; raises `NotFoldable` before any change."""
    from openvino import opset13

    if product.get_attributes() != {"transpose_a": False, "transpose_b": True}:
        raise NotFoldable("its weights are not stored by output row")
    subtract, scale = compressed(product.input_value(1))
    stored, zero = (stored_bytes(side) for side in subtract.input_values())
    rows = stored.shape[0]
    if stored.ndim != 2 or zero.shape != (rows, 1) or scale.shape != (rows, 1):
        raise NotFoldable("its rows have no zero point and scale each")
    if stored.size < LEAST:
        raise NotFoldable("it is too small")
    if not leads_to_product(product):
        # OpenVINO GenAI gathers the last token of each prompt before this product alone: sums would be of all tokens.
        raise NotFoldable("it is the output layer")
    last, _ = bias_of(product) or (product, 0)  # the plugin adds a bias within the product
    consumers = list(last.output(0).get_target_inputs())
    integers = opset13.constant((stored ^ _MIDDLE).view(np.int8))
    subtract.output(0).replace(opset13.convert(integers, subtract.get_element_type()).output(0))
    term = (_MIDDLE - zero.astype(np.float32)) * scale.astype(np.float32)
    axis = opset13.constant(np.array([-1], dtype=np.int64))
    sums = opset13.reduce_sum(product.input_value(0), axis, keep_dims=True)
    total = opset13.add(last, opset13.multiply(sums, opset13.constant(term.reshape(rows))))
    for target in consumers:
        target.replace_source_output(total.output(0))


def compressed(weights: Any) -> tuple[Any, Any]:
    """The Subtract behind a product's ``weights`` ``(q - z) * s``, and s as an array [rows, 1]."""
    node = weights.get_node()
    if node.get_type_name() == "Convert" and len(weights.get_target_inputs()) == 1:
        weights = node.input_value(0)
        node = weights.get_node()
    if node.get_type_name() != "Multiply" or len(weights.get_target_inputs()) != 1:
        raise NotFoldable("its weights are not stored as integers of its own")
    subtract, scale = (value.get_node() for value in node.input_values())
    if subtract.get_type_name() != "Subtract" or len(subtract.output(0).get_target_inputs()) != 1:
        raise NotFoldable("its weights have no zero points of their own")
    if scale.get_type_name() != "Constant" or scale.get_element_type().get_type_name() not in ("f16", "f32"):
        raise NotFoldable("its scales are not stored")
    return subtract, scale.data


def stored_bytes(value: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The integers of 8 bits that ``value`` is made of."""
    node = value.get_node()
    if node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Constant" or node.get_element_type().get_type_name() != "u8":
        raise NotFoldable("its weights are not of 8 bits")
    values: np.ndarray[Any, np.dtype[np.uint8]] = node.data
    return values


def leads_to_product(product: Any) -> bool:
    """Whether another product follows: none does after the output layer."""
    seen = set()
    ahead = [product]
    while ahead:
        for output in ahead.pop().outputs():
            for target in output.get_target_inputs():
                node = target.get_node()
                if node.get_type_name() == "MatMul":
                    return True
                if (name := node.get_friendly_name()) not in seen:
                    seen.add(name)
                    ahead.append(node)
    return False
