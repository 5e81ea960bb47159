"""Compare every tensor of a checkpoint with the source's, each by its own rule.

Perplexity alone can miss a fault in one layer of many. The tensors cannot: dequantized, unsmoothed and put back into
the source's order, each row of a linear layer equals the source's up to what its recipe's rounding can make of it (a
bound that follows from the recipe's own steps, `Shard.step`), and norms, biases, routers and embeddings up to their
type's.
Scales of activations and of the KV cache follow from the ranges that the calibration saw.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch

from build_engine.tensorrt.reader import CAST, FP8_MAX, INT8_MAX, Shard
from build_engine.tensorrt.runner import CheckpointCandidate, KvScales, Layer

Source = Mapping[str, torch.Tensor]
Ranges = Mapping[str, float]
"""Largest absolute input of each linear layer, and largest key and value of each attention, by the source's names."""

SLACK = 1.1
"""What a row may be beyond the bound: scales are rounded to their own types too."""

SAME_SCALE = 0.01


@dataclass(slots=True)
class Comparison:
    """``error`` is the largest ``‖W − S‖ / ‖S‖`` of a layer and ``where`` its name; ``faults`` one phrase each."""

    error: float = -1.0
    where: str = ""
    faults: list[str] = field(default_factory=list)
    nearest: float = 0.0  # the largest share of its bound that a row without fault takes


@dataclass(frozen=True, slots=True)
class Vector:
    """A tensor that is stored as it is: norms, biases, routers."""

    name: str
    got: torch.Tensor
    expected: torch.Tensor


def compare(candidate: CheckpointCandidate, source: Source, ranges: Ranges | None = None) -> Comparison:
    """Every tensor of the candidate.

    Scales are compared with the calibration's ``ranges`` and with nothing else: what a layer is given on another text
    says little (inputs of SmolLM2's layer 11 reach 300 times further on some tokens than on most).
    """
    result = Comparison()
    for name, shard, expected in pairs(candidate, source):
        got = effective(shard)
        error = float((got - expected).norm() / expected.norm().clamp_min(1e-30))
        if not error <= result.error:
            result.error, result.where = error, name
        _judge_rows(result, name, shard, got, expected)
    for vector in vectors(candidate, source):
        _judge_vector(result, vector)
    result.faults += kv_faults(candidate, ranges)
    if ranges:
        result.faults += calibration_faults(candidate, ranges)
    return result


def worst_weight(candidate: CheckpointCandidate, source: Source) -> tuple[float, str]:
    """The largest relative error ``‖W − S‖ / ‖S‖`` over all linear layers and embeddings, and whose it is."""
    found = compare(candidate, source)
    return found.error, found.where


def _judge_rows(result: Comparison, name: str, shard: Shard, got: torch.Tensor, expected: torch.Tensor) -> None:
    step = shard.step if shard.prequant is None else shard.step * shard.prequant
    bound = (step + shard.relative * expected.abs()).expand_as(expected).norm(dim=-1)
    share = (got - expected).norm(dim=-1) / (bound * SLACK + 1e-6 * expected.abs().max() + 1e-30)
    worst = int(share.argmax()) if share.isfinite().all() else int((~share.isfinite()).long().argmax())
    if not float(share[worst]) <= 1.0:
        wrong = int((~(share <= 1.0)).sum())
        more = f" (and {wrong - 1} more)" if wrong > 1 else ""
        result.faults.append(
            f"row {worst} of {name}{more} is {float(share[worst]):.3g} times as far from the source's as its rounding "
            "can make it"
        )
    else:
        result.nearest = max(result.nearest, float(share[worst]))


def _judge_vector(result: Comparison, vector: Vector) -> None:
    got, expected = vector.got.float(), vector.expected.float()
    bound = CAST[torch.bfloat16] * SLACK * expected.abs() + 1e-6 * expected.abs().max() + 1e-30
    share = (got - expected).abs() / bound
    if not bool((share <= 1.0).all()):
        worst = int(torch.nan_to_num(share, nan=torch.inf).argmax())
        result.faults.append(
            f"{vector.name} has {float(got.flatten()[worst]):.4g} where the source has "
            f"{float(expected.flatten()[worst]):.4g} (element {worst})"
        )


def effective(shard: Shard) -> torch.Tensor:
    """The weight that applies to the layer's own input: smoothing factors multiplied back in."""
    return shard.weight if shard.prequant is None else shard.weight * shard.prequant


def of_expert(shard: Shard, expert: int) -> Shard:
    """One expert's part of a stacked layer."""
    step = shard.step if shard.step.dim() < 3 else shard.step[expert]
    return Shard(shard.weight[expert], None, shard.prequant, step=step, relative=shard.relative)


def pairs(candidate: CheckpointCandidate, source: Source) -> Iterator[tuple[str, Shard, torch.Tensor]]:
    """Every layer's part on every rank with the source's weights that it must equal."""
    vocabulary = int(candidate.config["vocab_size"])
    table = source["model.embed_tokens.weight"].float()
    rows = min(vocabulary, table.shape[0])
    cast = CAST[torch.bfloat16]
    yield "the embedding", Shard(candidate.embedding[:rows], relative=cast), table[:rows]
    head = torch.cat([effective(part) for part in candidate.head])
    target = source.get("lm_head.weight", table).float()
    yield "lm_head", Shard(head[:rows], relative=cast), target[:rows]
    for index, layer in enumerate(candidate.layers):
        yield from _attention_pairs(candidate, source, index, layer)
        yield from _mlp_pairs(candidate, source, index, layer)


def _attention_pairs(
    candidate: CheckpointCandidate, source: Source, index: int, layer: Layer
) -> Iterator[tuple[str, Shard, torch.Tensor]]:
    size, base = candidate.head_size, f"model.layers.{index}.self_attn"
    out = source[f"{base}.o_proj.weight"].float()
    for rank in range(candidate.ranks):
        q_rows = slice(rank * candidate.heads * size, (rank + 1) * candidate.heads * size)
        yield f"layer {index} qkv", layer.qkv[rank], _qkv(candidate, source, base, "weight", rank)
        yield f"layer {index} attention output", layer.dense[rank], out[:, q_rows]


def _qkv(candidate: CheckpointCandidate, source: Source, base: str, kind: str, rank: int) -> torch.Tensor:
    """A rank's rows of query, key and value."""
    size = candidate.head_size
    query, key, value = (source[f"{base}.{part}_proj.{kind}"].float() for part in "qkv")
    first = rank * (key.shape[0] // size) // candidate.ranks
    q_rows = slice(rank * candidate.heads * size, (rank + 1) * candidate.heads * size)
    kv_rows = slice(first * size, (first + candidate.kv_heads) * size)
    return torch.cat((query[q_rows], key[kv_rows], value[kv_rows]))


def _mlp_pairs(
    candidate: CheckpointCandidate, source: Source, index: int, layer: Layer
) -> Iterator[tuple[str, Shard, torch.Tensor]]:
    base, ranks = f"model.layers.{index}", candidate.ranks

    def parts(names: tuple[str, str, str], rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        gate, up, down = (source[name].float() for name in names)
        width = gate.shape[0] // ranks
        part = slice(rank * width, (rank + 1) * width)
        return gate[part], up[part], down[:, part]

    for rank in range(ranks):
        if layer.experts is None:
            gate, up, down = parts(mlp_names(f"{base}.mlp"), rank)
            yield f"layer {index} gate", layer.gate[rank], gate
            yield f"layer {index} up", layer.up[rank], up
            yield f"layer {index} down", layer.down[rank], down
            continue
        for expert, names in enumerate(expert_names(source, base)):
            gate, up, down = parts(names, rank)
            name = f"layer {index} expert {expert}"
            yield f"{name} up and gate", of_expert(layer.experts.up_gate[rank], expert), torch.cat((up, gate))
            yield f"{name} down", of_expert(layer.experts.down[rank], expert), down
        if layer.experts.shared_switch is not None:
            gate, up, down = parts(mlp_names(f"{base}.mlp.shared_expert"), rank)
            name = f"layer {index} shared expert"
            yield f"{name} up and gate", layer.experts.shared_up_gate[rank], torch.cat((up, gate))
            yield f"{name} down", layer.experts.shared_down[rank], down


def mlp_names(base: str) -> tuple[str, str, str]:
    return f"{base}.gate_proj.weight", f"{base}.up_proj.weight", f"{base}.down_proj.weight"


def vectors(candidate: CheckpointCandidate, source: Source) -> Iterator[Vector]:
    """Everything that is stored as it is."""
    yield Vector("the final norm", candidate.final_norm, source["model.norm.weight"])
    for index, layer in enumerate(candidate.layers):
        base, name = f"model.layers.{index}", f"layer {index}"
        yield Vector(f"{name} input norm", layer.input_norm, source[f"{base}.input_layernorm.weight"])
        yield Vector(f"{name} post norm", layer.post_norm, source[f"{base}.post_attention_layernorm.weight"])
        for part, norm in (("q", layer.query_norm), ("k", layer.key_norm)):
            if norm is not None:
                yield Vector(f"{name} {part} norm", norm, source[f"{base}.self_attn.{part}_norm.weight"])
        for rank in range(candidate.ranks):
            yield from _biases(candidate, source, index, layer, rank)
        if layer.experts is not None:
            routers = (f"{base}.block_sparse_moe.gate.weight", f"{base}.mlp.gate.weight")
            router = next(source[each] for each in routers if each in source)
            yield Vector(f"{name} router", layer.experts.router, router)
            if layer.experts.shared_switch is not None:
                switch = source[f"{base}.mlp.shared_expert_gate.weight"]
                yield Vector(f"{name} shared expert's gate", layer.experts.shared_switch, switch)


def _biases(candidate: CheckpointCandidate, source: Source, index: int, layer: Layer, rank: int) -> Iterator[Vector]:
    base, name = f"model.layers.{index}", f"layer {index}"
    qkv = layer.qkv[rank].bias
    if qkv is not None:
        yield Vector(f"{name} qkv bias", qkv, _qkv(candidate, source, f"{base}.self_attn", "bias", rank))
    dense = layer.dense[rank].bias
    if dense is not None:
        yield Vector(f"{name} attention output bias", dense, source[f"{base}.self_attn.o_proj.bias"])
    for part, shards in (("gate", layer.gate), ("up", layer.up), ("down", layer.down)):
        bias = shards[rank].bias if shards else None
        if bias is None:
            continue
        whole = source[f"{base}.mlp.{part}_proj.bias"]
        rows = slice(None) if part == "down" else slice(rank * len(bias), (rank + 1) * len(bias))
        yield Vector(f"{name} {part} bias", bias, whole[rows])


def kv_faults(candidate: CheckpointCandidate, ranges: Ranges | None) -> Iterator[str]:
    """The scale for keys and values together is the larger of both; each follows from what the calibration saw."""
    top = FP8_MAX if candidate.kv_algo == "FP8" else INT8_MAX
    for index, layer in enumerate(candidate.layers):
        for rank, scales in enumerate(layer.kv_scales):
            larger = float(torch.maximum(scales.key, scales.value))
            if not _near(float(scales.both), larger):
                yield (
                    f"layer {index} has a scale of {float(scales.both):.4g} for the KV cache on rank {rank}, where the "
                    f"larger of those for keys and values is {larger:.4g}"
                )
            yield from _kv_range_faults(candidate, ranges or {}, index, scales, top)


def _kv_range_faults(
    candidate: CheckpointCandidate, ranges: Ranges, index: int, scales: KvScales, top: float
) -> Iterator[str]:
    least = 1.0 if candidate.kv_algo == "FP8" else 0.0  # ModelOpt writes no smaller one for e4m3
    for part, scale in (("k", scales.key), ("v", scales.value)):
        seen = ranges.get(f"model.layers.{index}.self_attn.{part}_bmm")
        if seen is not None and not _near(float(scale), max(least, seen / top)):
            yield (
                f"layer {index} has a scale of {float(scale):.4g} for its {part} cache, and the calibration's range "
                f"makes {max(least, seen / top):.4g}"
            )


def calibration_faults(candidate: CheckpointCandidate, ranges: Ranges) -> Iterator[str]:
    """Scales of activations are the calibration's ranges over the largest value of their type. Of smoothed inputs the
    range is that behind the smoothing; layers merged into one have the largest of theirs.
    """
    for name, shard, modules in activations(candidate):
        seen = [ranges[module] for module in modules if module in ranges]
        if shard.activation_scale is None or not seen:
            continue
        top = INT8_MAX if shard.activation_kind == "int8" else FP8_MAX
        scale, wanted = float(shard.activation_scale), max(seen) / top
        if not _near(scale, wanted):
            yield f"{name} has an activation scale of {scale:.4g}, and the calibration's range makes {wanted:.4g}"


def activations(candidate: CheckpointCandidate) -> Iterator[tuple[str, Shard, list[str]]]:
    """Every layer with the source's modules whose input it has."""
    for index, layer in enumerate(candidate.layers):
        base = f"model.layers.{index}"
        attention = [f"{base}.self_attn.{part}_proj" for part in "qkv"]
        for rank in range(candidate.ranks):
            yield f"layer {index} qkv", layer.qkv[rank], attention
            yield f"layer {index} attention output", layer.dense[rank], [f"{base}.self_attn.o_proj"]
            if layer.experts is None:
                for part, shards in (("gate", layer.gate), ("up", layer.up), ("down", layer.down)):
                    yield f"layer {index} {part}", shards[rank], [f"{base}.mlp.{part}_proj"]
            else:
                yield f"layer {index} experts' up and gate", layer.experts.up_gate[rank], []
                yield f"layer {index} experts' down", layer.experts.down[rank], []


def _near(left: float, right: float) -> bool:
    return abs(left - right) <= SAME_SCALE * max(abs(left), abs(right))


def expert_names(source: Source, base: str) -> list[tuple[str, str, str]]:
    """Names of gate, up and down of each expert, as Mixtral or as Qwen spells them."""
    found: list[tuple[str, str, str]] = []
    while True:
        index = len(found)
        mixtral = f"{base}.block_sparse_moe.experts.{index}"
        if f"{mixtral}.w1.weight" in source:
            found.append((f"{mixtral}.w1.weight", f"{mixtral}.w3.weight", f"{mixtral}.w2.weight"))
        elif f"{base}.mlp.experts.{index}.gate_proj.weight" in source:
            found.append(mlp_names(f"{base}.mlp.experts.{index}"))
        else:
            return found
