"""Run a checkpoint in PyTorch as TensorRT-LLM's engine would compute it, rank by rank, in float32.

Implemented from the architecture, not with transformers' classes, so that a mistake in either shows as a difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional

from build_engine.errors import StageFailure
from build_engine.tensorrt.reader import Checkpoint, Shard, fp8


@dataclass(frozen=True, slots=True)
class Experts:
    """``up_gate`` holds the up projection's rows before the gate's, as TensorRT-LLM stacks them."""

    router: torch.Tensor
    up_gate: list[Shard]
    down: list[Shard]
    shared_up_gate: list[Shard]
    shared_down: list[Shard]
    shared_switch: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class KvScales:
    """Scales of cached keys and values, and the one for both that readers of either age may take instead."""

    key: torch.Tensor
    value: torch.Tensor
    both: torch.Tensor


@dataclass(frozen=True, slots=True)
class Layer:
    """Lists have one entry a tensor-parallel rank."""

    input_norm: torch.Tensor
    post_norm: torch.Tensor
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None
    qkv: list[Shard]
    dense: list[Shard]
    gate: list[Shard]
    up: list[Shard]
    down: list[Shard]
    experts: Experts | None
    kv_scales: list[KvScales]
    window: int | None


class CheckpointCandidate:
    """``logits`` of a whole window of tokens."""

    def __init__(self, directory: Path) -> None:
        checkpoint = Checkpoint(directory)
        config = self.config = checkpoint.config
        self.ranks = checkpoint.tensor
        self.heads = config["num_attention_heads"] // self.ranks
        self.kv_heads = max(1, config["num_key_value_heads"] // self.ranks)
        self.head_size = config["head_size"]
        self.kv_algo = checkpoint.quantization.get("kv_cache_quant_algo")
        per_stage = config["num_hidden_layers"] // checkpoint.pipeline
        self.layers = [
            self._layer(checkpoint, index, stage, index - stage * per_stage)
            for stage in range(checkpoint.pipeline)
            for index in range(stage * per_stage, (stage + 1) * per_stage)
        ]
        first, last = 0, (checkpoint.pipeline - 1) * self.ranks
        hidden = config["hidden_size"]
        padded = math.ceil(config["vocab_size"] / self.ranks) * self.ranks
        split = padded // self.ranks if config["use_parallel_embedding"] else config["vocab_size"]
        tables = [
            checkpoint.take(first + rank, "transformer.vocab_embedding.weight", (split, hidden)).float()
            for rank in range(self.ranks)
        ]
        self.embedding = torch.cat(tables) if config["use_parallel_embedding"] else tables[0]
        norms = [checkpoint.take(last + rank, "transformer.ln_f.weight", (hidden,)) for rank in range(self.ranks)]
        self.final_norm = same(norms, "transformer.ln_f.weight").float()
        self.head = [
            checkpoint.linear(last + rank, "lm_head", padded // self.ranks, hidden) for rank in range(self.ranks)
        ]
        checkpoint.finish()
        self.inverse_frequencies, self.rope_factor = rope_frequencies(config)

    def _layer(self, checkpoint: Checkpoint, index: int, stage: int, local: int) -> Layer:
        config, base = self.config, f"transformer.layers.{local}"
        ranks = [stage * self.ranks + rank for rank in range(self.ranks)]
        hidden, wide = config["hidden_size"], self.heads * self.head_size

        def norm(name: str, width: int) -> torch.Tensor:
            return same([checkpoint.take(rank, f"{base}.{name}.weight", (width,)) for rank in ranks], name).float()

        def linears(name: str, out: int, into: int, *, bias: bool = False, experts: int = 0) -> list[Shard]:
            return [checkpoint.linear(rank, f"{base}.{name}", out, into, bias=bias, experts=experts) for rank in ranks]

        has_qk_norm = checkpoint.has(ranks[0], f"{base}.attention.q_layernorm.weight")
        if has_qk_norm != bool(config.get("qk_layernorm", False)):
            raise StageFailure(f"layer {index} and config.json disagree on query and key norms")
        bias = bool(config.get("attn_bias", False))
        qwen2 = str(config.get("qwen_type", "")).startswith("qwen2")
        width = config["intermediate_size"] // self.ranks
        mlp_bias = bool(config.get("mlp_bias", False))
        experts = self._experts(checkpoint, config["moe"], base, ranks, linears) if config.get("moe") else None
        dense_mlp = experts is None
        windows = checkpoint.windows
        return Layer(
            input_norm=norm("input_layernorm", hidden),
            post_norm=norm("post_layernorm", hidden),
            query_norm=norm("attention.q_layernorm", self.head_size) if has_qk_norm else None,
            key_norm=norm("attention.k_layernorm", self.head_size) if has_qk_norm else None,
            qkv=linears("attention.qkv", (self.heads + 2 * self.kv_heads) * self.head_size, hidden, bias=bias),
            dense=linears("attention.dense", hidden, wide, bias=bias and not qwen2),
            gate=linears("mlp.fc", width, hidden, bias=mlp_bias) if dense_mlp else [],
            up=linears("mlp.gate", width, hidden, bias=mlp_bias) if dense_mlp else [],
            down=linears("mlp.proj", hidden, width, bias=mlp_bias) if dense_mlp else [],
            experts=experts,
            kv_scales=[kv_scales(checkpoint, rank, f"{base}.attention") for rank in ranks] if self.kv_algo else [],
            window=windows[index % len(windows)] if windows else None,
        )

    def _experts(
        self, checkpoint: Checkpoint, moe: Mapping[str, Any], base: str, ranks: list[int], linears: Any
    ) -> Experts:
        count, hidden = moe["num_experts"], self.config["hidden_size"]
        size = self.config.get("moe_intermediate_size") or self.config["intermediate_size"]
        shared = int(self.config.get("moe_shared_expert_intermediate_size") or 0) // self.ranks
        routers = [checkpoint.take(rank, f"{base}.mlp.router.weight", (count, hidden)) for rank in ranks]
        switch = None
        if shared:
            name = f"{base}.mlp.shared_expert_gate.weight"
            switch = same([checkpoint.take(rank, name, (1, hidden)) for rank in ranks], name).float()
        return Experts(
            router=same(routers, "router").float(),
            up_gate=linears("mlp.fc", 2 * size // self.ranks, hidden, experts=count),
            down=linears("mlp.proj", hidden, size // self.ranks, experts=count),
            shared_up_gate=linears("mlp.shared_expert.fc", 2 * shared, hidden) if shared else [],
            shared_down=linears("mlp.shared_expert.proj", hidden, shared) if shared else [],
            shared_switch=switch,
        )

    def logits(self, ids: torch.Tensor, last: int = 0) -> torch.Tensor:
        """Logits [n, vocabulary] of the tokens ``ids`` [n], or of the ``last`` ones only."""
        x = self.embedding[ids]
        positions = torch.arange(len(ids)).float()
        angles = torch.outer(positions, self.inverse_frequencies)
        rotation = (angles.cos() * self.rope_factor, angles.sin() * self.rope_factor)
        for layer in self.layers:
            normed = self._norm(x, layer.input_norm)
            x = x + self._attention(layer, normed, rotation)
            normed = self._norm(x, layer.post_norm)
            x = x + (self._mixture(layer.experts, normed) if layer.experts else self._mlp(layer, normed))
        x = self._norm(x[-last:], self.final_norm)
        return torch.cat([part(x) for part in self.head], dim=-1)[:, : self.config["vocab_size"]]

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.config["norm_epsilon"])
        return x * scale * weight

    def _attention(self, layer: Layer, x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        count, size = x.shape[0], self.head_size
        total = torch.zeros_like(x)
        distance = torch.arange(count)[:, None] - torch.arange(count)[None]
        visible = (distance >= 0) if layer.window is None else (distance >= 0) & (distance < layer.window)
        for rank in range(self.ranks):
            packed = layer.qkv[rank](x)
            query, key, value = packed.split([self.heads * size, self.kv_heads * size, self.kv_heads * size], dim=-1)
            query = query.view(count, self.heads, size)
            key = key.view(count, self.kv_heads, size)
            value = value.view(count, self.kv_heads, size)
            if layer.query_norm is not None and layer.key_norm is not None:
                query, key = self._norm(query, layer.query_norm), self._norm(key, layer.key_norm)
            query, key = rotate(query, rotation), rotate(key, rotation)
            if self.kv_algo:
                scales = layer.kv_scales[rank]
                key, value = self._round_kv(key, scales.key), self._round_kv(value, scales.value)
            repeat = self.heads // self.kv_heads
            mixed = functional.scaled_dot_product_attention(
                query.transpose(0, 1),
                key.repeat_interleave(repeat, dim=1).transpose(0, 1),
                value.repeat_interleave(repeat, dim=1).transpose(0, 1),
                attn_mask=visible,
            )
            joined = mixed.transpose(0, 1).reshape(count, self.heads * size)
            total = total + layer.dense[rank](joined, add_bias=rank == 0)
        return total

    def _round_kv(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        if self.kv_algo == "FP8":
            return fp8(x / scale) * scale
        return (x / scale).round().clamp(-128, 127) * scale

    def _mlp(self, layer: Layer, x: torch.Tensor) -> torch.Tensor:
        total = torch.zeros_like(x)
        for rank in range(self.ranks):
            inner = functional.silu(layer.gate[rank](x)) * layer.up[rank](x)
            total = total + layer.down[rank](inner, add_bias=rank == 0)
        return total

    def _mixture(self, experts: Experts, x: torch.Tensor) -> torch.Tensor:
        moe = self.config["moe"]
        weights = torch.softmax(x @ experts.router.T, dim=-1)
        chosen, which = weights.topk(moe["top_k"], dim=-1)
        if moe["normalization_mode"] == 1:
            chosen = chosen / chosen.sum(-1, keepdim=True)
        total = torch.zeros_like(x)
        for rank in range(self.ranks):
            into, out = experts.up_gate[rank], experts.down[rank]
            given = into.quantize_input(x)
            for expert in range(moe["num_experts"]):
                rows, slot = (which == expert).nonzero(as_tuple=True)
                if not len(rows):
                    continue
                up, gate = (given[rows] @ into.weight[expert].T).chunk(2, dim=-1)
                inner = out.quantize_input(functional.silu(gate) * up)
                total.index_add_(0, rows, (inner @ out.weight[expert].T) * chosen[rows, slot][:, None])
            if experts.shared_switch is not None:
                up, gate = experts.shared_up_gate[rank](x).chunk(2, dim=-1)
                part = experts.shared_down[rank](functional.silu(gate) * up)
                total = total + torch.sigmoid(x @ experts.shared_switch.T) * part
        return total


def kv_scales(checkpoint: Checkpoint, rank: int, attention: str) -> KvScales:
    """The scales of cached keys and values: one for both, and where newer exporters write them one for each."""
    both = checkpoint.positive(rank, f"{attention}.kv_cache_scaling_factor", (1,))
    names = (f"{attention}.k_cache_scaling_factor", f"{attention}.v_cache_scaling_factor")
    if not all(checkpoint.has(rank, name) for name in names):
        return KvScales(both, both, both)
    key, value = (checkpoint.positive(rank, name, (1,)) for name in names)
    return KvScales(key, value, both)


def rotate(x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotary embedding of x [n, heads, size], the two halves of a head being the pairs (GPT-NeoX form)."""
    cosine, sine = rotation[0][:, None], rotation[1][:, None]
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * cosine - right * sine, right * cosine + left * sine), dim=-1)


def rope_frequencies(config: Mapping[str, Any]) -> tuple[torch.Tensor, float]:
    """Inverse frequencies [size/2] and the factor on cosine and sine.

    Sources: linear interpolation (Chen et al. 2023), "by parts" interpolation of Llama 3.1, YaRN (Peng et al. 2023).
    """
    size, base = int(config["head_size"]), float(config.get("rotary_base", 10_000.0))
    plain = base ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    scaling = config.get("rotary_scaling")
    if not scaling:
        return plain.float(), 1.0
    kind, factor = scaling.get("type") or scaling.get("rope_type"), float(scaling["factor"])
    if kind == "linear":
        return (plain / factor).float(), 1.0
    if kind == "llama3":
        original = scaling["original_max_position_embeddings"]
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        turns = original * plain / (2 * math.pi)
        keep = ((turns - low) / (high - low)).clamp(0, 1)
        return (plain * keep + plain / factor * (1 - keep)).float(), 1.0
    if kind == "yarn":
        original = scaling.get("original_max_position_embeddings") or config["max_position_embeddings"]
        fast, slow = float(scaling.get("beta_fast") or 32), float(scaling.get("beta_slow") or 1)

        def dimension(turns: float) -> float:
            return size * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

        start, stop = max(math.floor(dimension(fast)), 0), min(math.ceil(dimension(slow)), size - 1)
        ramp = ((torch.arange(size // 2) - start) / max(stop - start, 0.001)).clamp(0, 1)
        attention = float(scaling.get("attention_factor") or 0.1 * math.log(factor) + 1.0)
        return (plain * (1 - ramp) + plain / factor * ramp).float(), attention
    raise StageFailure(f"rotary_scaling of type {kind} is not one that can be read back")


def same(parts: list[torch.Tensor], name: str) -> torch.Tensor:
    """A tensor that every rank must hold alike."""
    if any(not torch.equal(parts[0], part) for part in parts[1:]):
        raise StageFailure(f"{name} differs between ranks that must hold the same")
    return parts[0]
