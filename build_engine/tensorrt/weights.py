"""Compare what a checkpoint's weights mean with the source's weights, layer by layer.

Perplexity alone can miss a fault in one layer of many. The weights cannot: dequantized, unsmoothed and put back into
the source's order, each linear layer must equal the source's up to the rounding of its recipe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from build_engine.tensorrt.reader import Shard
from build_engine.tensorrt.runner import CheckpointCandidate

Source = Mapping[str, torch.Tensor]


def worst_weight(candidate: CheckpointCandidate, source: Source) -> tuple[float, str]:
    """The largest relative error ``‖W − S‖ / ‖S‖`` over all linear layers and embeddings, and whose it is."""
    worst, where = -1.0, ""
    for name, shard, expected in pairs(candidate, source):
        got = effective(shard)
        error = float((got - expected).norm() / expected.norm().clamp_min(1e-30))
        if not error <= worst:
            worst, where = error, name
    return worst, where


def effective(shard: Shard) -> torch.Tensor:
    """The weight that applies to the layer's own input: smoothing factors multiplied back in."""
    return shard.weight if shard.prequant is None else shard.weight * shard.prequant


def pairs(candidate: CheckpointCandidate, source: Source) -> Iterator[tuple[str, Shard, torch.Tensor]]:
    """Every layer's part on every rank with the source's weights that it must equal."""
    ranks, size = candidate.ranks, candidate.head_size
    vocabulary = int(candidate.config["vocab_size"])
    table = source["model.embed_tokens.weight"].float()
    rows = min(vocabulary, table.shape[0])
    yield "the embedding", Shard(candidate.embedding[:rows]), table[:rows]
    head = torch.cat([effective(part) for part in candidate.head])
    target = source.get("lm_head.weight", table).float()
    yield "lm_head", Shard(head[:rows]), target[:rows]
    for index, layer in enumerate(candidate.layers):
        base = f"model.layers.{index}"

        def weight(name: str, base: str = base) -> torch.Tensor:
            return source[f"{base}.{name}.weight"].float()

        query, key, value = (weight(f"self_attn.{part}_proj") for part in "qkv")
        out = weight("self_attn.o_proj")
        stored = key.shape[0] // size
        for rank in range(ranks):
            q_rows = slice(rank * candidate.heads * size, (rank + 1) * candidate.heads * size)
            first = rank * stored // ranks
            kv_rows = slice(first * size, (first + candidate.kv_heads) * size)
            joined = torch.cat((query[q_rows], key[kv_rows], value[kv_rows]))
            yield f"layer {index} qkv", layer.qkv[rank], joined
            yield f"layer {index} attention output", layer.dense[rank], out[:, q_rows]
        if layer.experts is None:
            gate, up, down = (weight(f"mlp.{part}_proj") for part in ("gate", "up", "down"))
            width = gate.shape[0] // ranks
            for rank in range(ranks):
                part = slice(rank * width, (rank + 1) * width)
                yield f"layer {index} gate", layer.gate[rank], gate[part]
                yield f"layer {index} up", layer.up[rank], up[part]
                yield f"layer {index} down", layer.down[rank], down[:, part]
            continue
        names = expert_names(source, base)
        for rank in range(ranks):
            for expert, (gate_name, up_name, down_name) in enumerate(names):
                gate, up, down = (source[name].float() for name in (gate_name, up_name, down_name))
                width = gate.shape[0] // ranks
                part = slice(rank * width, (rank + 1) * width)
                into, back = layer.experts.up_gate[rank], layer.experts.down[rank]
                joined = torch.cat((up[part], gate[part]))
                yield (
                    f"layer {index} expert {expert} up and gate",
                    Shard(into.weight[expert], None, into.prequant),
                    joined,
                )
                yield (
                    f"layer {index} expert {expert} down",
                    Shard(back.weight[expert], None, back.prequant),
                    down[:, part],
                )


def expert_names(source: Source, base: str) -> list[tuple[str, str, str]]:
    """Names of gate, up and down of each expert, as Mixtral or as Qwen spells them."""
    found: list[tuple[str, str, str]] = []
    while True:
        index = len(found)
        mixtral = f"{base}.block_sparse_moe.experts.{index}"
        qwen = f"{base}.mlp.experts.{index}"
        if f"{mixtral}.w1.weight" in source:
            found.append((f"{mixtral}.w1.weight", f"{mixtral}.w3.weight", f"{mixtral}.w2.weight"))
        elif f"{qwen}.gate_proj.weight" in source:
            names = tuple(f"{qwen}.{part}_proj.weight" for part in ("gate", "up", "down"))
            found.append((names[0], names[1], names[2]))
        else:
            return found
