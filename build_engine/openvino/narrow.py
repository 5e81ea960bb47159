"""Cut products of wide matrices into sums of narrower ones, for processors that make 32-bit numbers of stored integers.

On a Zen 3 a product of 2 to 64 rows of activations with more than 2048 columns of weights takes up to twice as long as
its operations would; likely because 64 rows of the matrix, as 32-bit numbers, no longer fit its second-level cache. The
columns are cut, not the rows: every part keeps its integers with the scale and zero point of their row (or group), and
the parts' products are added. It is done after compression and merging, on what they made.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from build_engine.openvino.merge import EXPERTS

WIDEST = 3072
"""Columns of a product that is left whole, and of the parts at most: narrower ones cost a single row more than others
gain (docs/benchmarks/README.md, "Wide products")."""

INTEGERS = frozenset({"u8", "i8", "u4", "i4"})


class NotCuttable(Exception):
    """Why a product stays whole."""


def narrow_products(model: Any) -> int:
    """Cut in place what can be cut of an ``openvino.Model``; how many products were."""
    done = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() == "MatMul" and EXPERTS not in node.get_friendly_name():
            try:
                cut(node)
            except NotCuttable:
                continue
            done += 1
    model.validate_nodes_and_infer_types()
    return done


def parts_of(width: int) -> int:
    """Into how many equal parts so many columns are cut: as few as can be, and a power of two; 1: not at all."""
    parts = 1
    while width // parts > WIDEST and width % (2 * parts) == 0:
        parts *= 2
    return parts


def cut(product: Any) -> None:
    """Replace one MatMul; raises `NotCuttable` before any change."""
    from openvino import opset13

    if product.get_attributes() != {"transpose_a": False, "transpose_b": True}:
        raise NotCuttable("its weights are not stored by output row")
    shape = product.input_value(1).get_partial_shape()
    if shape.is_dynamic or len(shape) != 2:
        raise NotCuttable("its weights are no matrix")
    width = int(shape[1].get_length())
    parts = parts_of(width)
    if parts == 1:
        raise NotCuttable("it is narrow enough")
    size = width // parts
    weights = [columns(product.input_value(1), each * size, width, size) for each in range(parts)]
    consumers = list(product.output(0).get_target_inputs())
    lengths = opset13.constant(np.full(parts, size, dtype=np.int64))
    pieces = opset13.variadic_split(product.input_value(0), opset13.constant(np.array(-1, dtype=np.int64)), lengths)
    total, *others = (opset13.matmul(pieces.output(each), matrix, False, True) for each, matrix in enumerate(weights))
    for number, part in enumerate((total, *others)):
        part.set_friendly_name(f"{product.get_friendly_name()}/{number + 1}")
    for part in others:
        total = opset13.add(total, part)
    for target in consumers:
        target.replace_source_output(total.output(0))


def columns(value: Any, start: int, width: int, size: int) -> Any:
    """What computes the columns from ``start`` on, ``size`` of ``width``, of what ``value`` does.

    ``value`` is a stored matrix or what compression put behind one. Raises `NotCuttable` for anything else.
    """
    from openvino import opset13

    node = value.get_node()
    kind = node.get_type_name()
    if kind == "Constant":
        return cut_constant(node, start, width, size)
    if len(value.get_target_inputs()) != 1:
        raise NotCuttable("its weights are shared")
    if kind == "Convert":
        return opset13.convert(columns(node.input_value(0), start, width, size), node.get_element_type())
    if kind in ("Subtract", "Multiply"):
        sides = [columns(side, start, width, size) for side in node.input_values()]
        return (opset13.subtract if kind == "Subtract" else opset13.multiply)(*sides)
    if kind == "Reshape":  # int4's groups become a row
        target = np.array([int(node.get_output_partial_shape(0)[0].get_length()), size], dtype=np.int64)
        return opset13.reshape(columns(node.input_value(0), start, width, size), opset13.constant(target), False)
    raise NotCuttable(f"its weights pass through {kind}")


def cut_constant(node: Any, start: int, width: int, size: int) -> Any:
    """A constant with those columns (or groups) of integers, scales or zero points; itself where a row has but one."""
    import openvino as ov

    shape, kind = list(node.get_output_shape(0)), node.get_element_type()
    if len(shape) < 2 or shape[1] == 1:
        return node
    if len(shape) == 2 and shape[1] == width and kind.get_type_name() not in INTEGERS:
        raise NotCuttable("its weights are no integers")
    unit, odd = divmod(width, shape[1])
    if odd or start % unit or size % unit:
        raise NotCuttable("its groups do not end where the parts do")
    values = node.data.reshape(-1).view(np.uint8)
    nibbles = kind.bitwidth == 4
    if nibbles:  # two in a byte, the lower half first
        values = np.stack((values & 15, values >> 4), axis=1)
    rows = values.reshape(-1)[: values.size if not nibbles else int(np.prod(shape, dtype=int))]
    kept = rows.reshape(shape[0], shape[1], -1)[:, start // unit : (start + size) // unit].reshape(-1)
    if nibbles:
        kept = np.append(kept, np.zeros(kept.size % 2, dtype=np.uint8)).reshape(-1, 2)
        kept = kept[:, 0] | kept[:, 1] << 4
    tensor = ov.Tensor(kind, ov.Shape([shape[0], size // unit, *shape[2:]]))
    tensor.data.reshape(-1).view(np.uint8)[:] = kept
    return ov.op.Constant(tensor, shared_memory=False)
