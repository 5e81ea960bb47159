"""Merge linear layers that read the same input: query, key and value into one matrix, gate and up into one.

A decode step at batch 1 spends its time per layer, not per byte, so fewer and larger matrix products are faster. The
weights are concatenated along the output dimension and the product is split again: every output keeps its own row,
scale and zero point, so no number changes. It is done after compression, on what compression made, because then the
data-aware recipes see the layers that their patterns expect, and quantized rows stay what they are by construction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SETS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names, within one module, of the layers that become one. Phi-3's are merged in the checkpoint already."""

EXPERTS = "expert"
"""Part of the names of a mixture's experts, which are left alone: each is a product over its own tokens."""

DECOMPRESSION = frozenset({"Convert", "Subtract", "Multiply"})
"""Operations between a stored weight and its matrix product that treat every output row by itself."""


class NotMergeable(Exception):
    """Why layers stay apart, in one phrase."""


@dataclass(slots=True)
class Merged:
    """How many of each set were merged, and how many were left apart for which reason (keyed by one phrase)."""

    done: Counter[str] = field(default_factory=Counter)
    apart: Counter[str] = field(default_factory=Counter)


def merge_projections(model: Any) -> Merged:
    """Merge in place what `SETS` names in every module of an ``openvino.Model``, compressed or not."""
    result = Merged()
    for members, layers in groups(model):
        name = "+".join(members)
        try:
            if len(layers) < len(members):
                raise NotMergeable("some of them are missing")
            if EXPERTS in layers[0].get_friendly_name():
                raise NotMergeable("experts are not merged")
            merge(layers, members)
        except NotMergeable as reason:
            result.apart[f"{name}: {reason}"] += 1
        else:
            result.done[name] += 1
    model.validate_nodes_and_infer_types()
    return result


def groups(model: Any) -> Iterator[tuple[tuple[str, ...], list[Any]]]:
    """For each module and each of `SETS` with any member in it: the members' names and those products found."""
    modules: dict[str, dict[str, Any]] = {}
    for op in model.get_ordered_ops():
        if op.get_type_name() == "MatMul":
            parent, _, leaf = op.get_friendly_name().split("/", 1)[0].rpartition(".")
            modules.setdefault(parent, {})[leaf] = op
    for found in modules.values():
        for members in SETS:
            layers = [found[name] for name in members if name in found]
            if layers:
                yield members, layers


def merge(layers: Sequence[Any], members: Sequence[str]) -> None:
    """Make the first of ``layers`` (MatMul nodes) compute all of them; raises `NotMergeable` before any change."""
    from openvino import opset13

    first = layers[0]
    if any(layer.input_value(0) != first.input_value(0) for layer in layers):
        raise NotMergeable("they read different inputs")
    if any(layer.get_attributes() != {"transpose_a": False, "transpose_b": True} for layer in layers):
        raise NotMergeable("their weights are not stored by output row")
    sizes = [rows(layer) for layer in layers]
    read = [(first, 1)]
    changes = list(widened([(layer, 1) for layer in layers], sizes, 2))
    biases = [bias for bias in map(bias_of, layers) if bias is not None]
    lasts = list(layers)
    # The plugin adds a bias within the product; behind the split each addition would be a kernel of its own.
    if len(biases) == len(layers):
        lasts = [node for node, _ in biases]
        read.append(biases[0])
        changes += widened(biases, sizes, None)
    consumers = [list(node.output(0).get_target_inputs()) for node in lasts]
    for node, port, tensor in changes:
        node.input(port).replace_source_output(constant(tensor).output(0))
    for node, port in read:
        infer_shapes(node.input_value(port).get_node())
        node.validate_and_infer_types()
    axis, lengths = np.array(-1, dtype=np.int64), np.array(sizes, dtype=np.int64)
    split = opset13.variadic_split(lasts[0], opset13.constant(axis), opset13.constant(lengths))
    for index, targets in enumerate(consumers):
        for target in targets:
            target.replace_source_output(split.output(index))
    # The name says what was merged; `inspect` counts by it.
    first.set_friendly_name(first.get_friendly_name().replace(f".{members[0]}/", f".{'+'.join(members)}/", 1))


def rows(layer: Any) -> int:
    """The layer's number of outputs."""
    shape = layer.input_value(1).get_partial_shape()
    if shape.is_dynamic or len(shape) != 2:
        raise NotMergeable("their weights are not matrices")
    return int(shape[0].get_length())


def bias_of(layer: Any) -> tuple[Any, int] | None:
    """The addition that alone follows ``layer``, and which of its inputs is a stored vector; None if there is none."""
    targets = list(layer.output(0).get_target_inputs())
    if len(targets) != 1 or targets[0].get_node().get_type_name() != "Add":
        return None
    add = targets[0].get_node()
    port = 1 - targets[0].get_index()
    source = add.input_value(port).get_node()
    if source.get_type_name() == "Convert":
        source = source.input_value(0).get_node()
    return (add, port) if source.get_type_name() == "Constant" else None


Change = tuple[Any, int, Any]
"""A node, one of its inputs, and the tensor that it shall read there."""


def widened(places: Sequence[tuple[Any, int]], sizes: Sequence[int], rank: int | None) -> Iterator[Change]:
    """What to change so that the first of ``places`` (a node and an input each) reads the rows of all of them.

    ``rank`` is that of the weights where they are read, whose first dimension is the output; None stands for a bias
    vector. The first layer's operations stay as they are, with their attributes, and only their constants change.
    """
    values = [node.input_value(port) for node, port in places]
    nodes = [value.get_node() for value in values]
    kind = nodes[0].get_type_name()
    if any(node.get_type_name() != kind for node in nodes):
        raise NotMergeable("their weights are stored in different ways")
    if kind == "Constant":
        tensor = concatenated(nodes, sizes, rank)
        if tensor is not None:
            yield *places[0], tensor
        return
    if any(len(value.get_target_inputs()) != 1 for value in values):
        raise NotMergeable("their weights are shared with other layers")
    if any(node.get_attributes() != nodes[0].get_attributes() for node in nodes):
        raise NotMergeable("their weights are stored in different precisions")
    if kind == "Reshape":  # int4's groups become a row
        yield from widened([(node, 0) for node in nodes], sizes, len(nodes[0].input_value(0).get_partial_shape()))
        yield nodes[0], 1, row_shape(nodes, sizes)
    elif kind in DECOMPRESSION:
        for port in range(len(nodes[0].inputs())):
            yield from widened([(node, port) for node in nodes], sizes, rank)
    else:
        raise NotMergeable(f"their weights pass through {kind}")


def concatenated(nodes: Sequence[Any], sizes: Sequence[int], rank: int | None) -> Any:
    """The constants' rows one after the other, byte by byte; None where all hold one and the same scalar."""
    import openvino as ov

    kind, shapes = nodes[0].get_element_type(), [list(node.get_output_shape(0)) for node in nodes]
    if any(node.get_element_type() != kind for node in nodes):
        raise NotMergeable("their weights are stored in different precisions")
    data = [np.atleast_1d(node.data).reshape(-1).view(np.uint8) for node in nodes]
    if all(np.prod(shape, dtype=int) == 1 for shape in shapes) and len({part.tobytes() for part in data}) == 1:
        return None
    axis = len(shapes[0]) - 1 if rank is None else 0
    for shape, size in zip(shapes, sizes, strict=True):
        vector = rank is None and shape[:-1] == [1] * (len(shape) - 1)
        if not shape or shape[axis] != size or not (vector or len(shape) == rank):
            raise NotMergeable("their weights or scales are not stored by output row")
        if shape[:axis] + shape[axis + 1 :] != shapes[0][:axis] + shapes[0][axis + 1 :]:
            raise NotMergeable("their groups differ")
        if np.prod(shape, dtype=int) * kind.bitwidth % 8:
            raise NotMergeable("their packed rows do not end at whole bytes")
    whole = list(shapes[0])
    whole[axis] = sum(sizes)
    tensor = ov.Tensor(kind, ov.Shape(whole))
    # Types that numpy lacks (bfloat16, 4 bits) come as views of another type: only their bytes mean anything here.
    tensor.data.reshape(-1).view(np.uint8)[:] = np.concatenate(data)
    return tensor


def row_shape(nodes: Sequence[Any], sizes: Sequence[int]) -> Any:
    """The target shape of a reshape from groups to rows, for all rows."""
    import openvino as ov

    sources = [node.input_value(1).get_node() for node in nodes]
    if any(source.get_type_name() != "Constant" for source in sources):
        raise NotMergeable("their weights change shape")
    shapes = [source.data.tolist() for source in sources]
    if any(shape != [size, shapes[0][-1]] for shape, size in zip(shapes, sizes, strict=True)):
        raise NotMergeable("their weights change shape")
    return ov.Tensor(np.array([sum(sizes), shapes[0][-1]], dtype=sources[0].data.dtype))


def infer_shapes(node: Any) -> None:
    """Infer the shapes of ``node`` anew, those of its inputs first."""
    for value in node.input_values():
        infer_shapes(value.get_node())
    if node.get_type_name() != "Constant":
        node.validate_and_infer_types()


def constant(tensor: Any) -> Any:
    """A constant node with a copy of ``tensor``."""
    import openvino as ov

    return ov.op.Constant(tensor, shared_memory=False)
