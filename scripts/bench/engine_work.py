"""What one step of an OpenVINO engine has to read and to compute, from its graph and its config.json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inflight_tools.common.report import Failure

_SCALE_BYTES = 8  # of 8-bit keys or values of a head: a scale and a zero point of four bytes each


@dataclass(frozen=True, slots=True)
class EngineWork:
    """`layers` and `head` are the weights (a multiplication each per token) of all layers and of the output layer,
    `weight_bytes` what they take with scales and zero points. `kv_bytes` is what a token's keys and values take in all
    layers, `pair` the multiplications for a query and a key in all of them.
    """

    layers: int
    head: int
    weight_bytes: int
    kv_bytes: float
    pair: int

    def step_bytes(self, batch: int, context: float) -> float:
        """Bytes that a step reads: every weight once, and keys and values so far (`context` tokens each)."""
        return self.weight_bytes + batch * context * self.kv_bytes

    def step_operations(self, batch: int, context: float) -> float:
        """Operations (a multiplication and an addition are two) of a step that makes a token for each of `batch`."""
        return 2.0 * batch * (self.layers + self.head + context * self.pair)

    def prefill_operations(self, tokens: int) -> float:
        """Operations of a prompt: the output layer sees its last token, and a token all before it."""
        return 2.0 * (tokens * self.layers + self.head + tokens * (tokens + 1) / 2 * self.pair)


def engine_work(folder: Path) -> EngineWork:
    """Raises `Failure` for a folder that is no engine, and for a mixture of experts: steps read what they choose."""
    import openvino as ov

    path = folder / "openvino_model.xml"
    if not (path.is_file() and (folder / "config.json").is_file()):
        raise Failure(f"{folder} is no OpenVINO engine: openvino_model.xml or config.json is missing.")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if any("expert" in name for name in config):
        raise Failure(f"{folder.name} is a mixture of experts, whose steps read no fixed share of the weights.")
    model = ov.Core().read_model(path)
    sizes: list[tuple[int, bool]] = []
    stored: dict[str, int] = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul":
            continue
        shape = node.input_value(1).get_partial_shape()
        if shape.is_dynamic or len(shape) != 2:
            continue  # not by weights
        count = shape[0].get_length() * shape[1].get_length()
        sizes.append((count, config["vocab_size"] in (shape[0].get_length(), shape[1].get_length())))
        stored.update((each.get_friendly_name(), each.get_byte_size()) for each in constants(node.input_value(1)))
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    layers = config["num_hidden_layers"]
    return EngineWork(
        layers=sum(count for count, is_head in sizes if not is_head),
        head=sum(count for count, is_head in sizes if is_head),
        weight_bytes=sum(stored.values()),
        kv_bytes=2 * layers * config.get("num_key_value_heads", heads) * (width + _SCALE_BYTES),
        pair=2 * layers * heads * width,
    )


def constants(value: Any) -> Iterator[Any]:
    """All constants that make up a stored matrix."""
    node = value.get_node()
    if node.get_type_name() == "Constant":
        yield node
    for below in node.input_values():
        yield from constants(below)
