"""A Hugging Face ``config.json`` as one frozen value, whatever release of transformers wrote it.

transformers 4 writes ``rope_theta`` and ``rope_scaling`` at the top level; transformers 5 writes ``rope_parameters``,
one dictionary, or one per attention type for models that alternate (Gemma 3). A reader that knows only one form falls
back to its default base without a word, so this module reads both and `to_transformers_4` writes the older form.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from build_engine.errors import UserMistake

CONFIG_NAME = "config.json"
ATTENTION_TYPES = ("full_attention", "sliding_attention")
DEFAULT_ROPE_BASE = 10_000.0
"""What transformers uses where a configuration names no base."""

ROPE_BASE_BY_TYPE = {"gemma3_text": 1_000_000.0, "qwen3": 10_000.0, "mixtral": 1_000_000.0, "qwen3_moe": 10_000.0}
"""Model classes whose default base differs from 10,000 (their configuration classes' own defaults)."""

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class Experts:
    """The mixture-of-experts part: ``count`` experts of which ``active`` see each token."""

    count: int
    active: int
    intermediate_size: int
    shared_intermediate_size: int = 0


@dataclass(frozen=True, slots=True)
class Latent:
    """Multi-head latent attention (DeepSeek): a token keeps one vector of ``rank`` and one rotated key of ``rope_dim``.

    ``query_rank`` is None where queries are projected in one step; a head's query and key have ``nope_dim`` and
    ``rope_dim`` features, its value ``value_dim``.
    """

    rank: int
    rope_dim: int
    nope_dim: int
    value_dim: int
    query_rank: int | None


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What planning, building and verifying need to know of a decoder-only model."""

    architecture: str
    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    tied_embeddings: bool
    dtype: str
    rope_base: float
    rope_local_base: float | None
    rope_scaling: Mapping[str, Any] | None = field(hash=False)
    attention_bias: bool
    mlp_bias: bool
    sliding_window: int | None
    sliding_layers: int
    experts: Experts | None
    latent: Latent | None
    prequantized: Mapping[str, Any] | None = field(hash=False)
    raw: Mapping[str, Any] = field(repr=False, hash=False, default_factory=dict)

    @property
    def dtype_bytes(self) -> int:
        return DTYPE_BYTES.get(self.dtype, 2)


def load(directory: Path) -> ModelConfig:
    """Read ``directory/config.json``; raise `UserMistake` when it is missing or is not a decoder-only model's."""
    path = directory / CONFIG_NAME
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserMistake(f"{directory} is not a Hugging Face checkpoint: it has no {CONFIG_NAME}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserMistake(f"{path} cannot be read as JSON ({error})") from None
    if not isinstance(raw, dict):
        raise UserMistake(f"{path} is not a JSON object")
    return parse(raw, where=str(path))


def parse(raw: Mapping[str, Any], *, where: str = CONFIG_NAME) -> ModelConfig:
    """Normalise a configuration; ``where`` names it in errors."""
    architectures = raw.get("architectures") or []
    if not architectures or not isinstance(architectures[0], str):
        raise UserMistake(f"{where} does not name its architecture (the key 'architectures' is empty)")
    model_type = str(raw.get("model_type", ""))
    hidden_size = _positive(raw, "hidden_size", where)
    num_heads = _positive(raw, "num_attention_heads", where)
    num_layers = _positive(raw, "num_hidden_layers", where)
    base, local_base, scaling = rope_of(raw)
    window, sliding_layers = _sliding(raw, num_layers)
    return ModelConfig(
        architecture=architectures[0],
        model_type=model_type,
        vocab_size=_positive(raw, "vocab_size", where),
        hidden_size=hidden_size,
        intermediate_size=_positive(raw, "intermediate_size", where),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=int(raw.get("num_key_value_heads", _KV_HEADS_BY_DEFAULT.get(model_type)) or num_heads),
        head_dim=int(raw.get("head_dim") or _HEAD_DIM_BY_DEFAULT.get(model_type) or hidden_size // num_heads),
        max_position_embeddings=int(raw.get("max_position_embeddings") or 2048),
        tied_embeddings=bool(raw.get("tie_word_embeddings", _TIED_BY_DEFAULT.get(model_type, False))),
        dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32").removeprefix("torch."),
        rope_base=base,
        rope_local_base=local_base,
        rope_scaling=scaling,
        attention_bias=_attention_bias(raw, model_type),
        mlp_bias=bool(raw.get("mlp_bias", False)),
        sliding_window=window,
        sliding_layers=sliding_layers,
        experts=_experts(raw),
        latent=_latent(raw, where),
        prequantized=raw.get("quantization_config") or None,
        raw=raw,
    )


_TIED_BY_DEFAULT = {"gemma": True, "gemma2": True, "gemma3_text": True, "smollm3": True}
_HEAD_DIM_BY_DEFAULT = {"gemma": 256, "gemma2": 256, "gemma3_text": 256, "gpt_oss": 64, "qwen3": 128}
_BIASED_BY_DEFAULT = ("qwen2", "gpt_oss", "gpt_neox")
_KV_HEADS_BY_DEFAULT = {
    "gemma": 16,
    "gpt_oss": 8,
    "ministral": 8,
    "smollm3": 4,
    "mistral": 8,
    "mixtral": 8,
    "qwen2": 32,
    "qwen2_moe": 16,
    "qwen3": 32,
    "qwen3_moe": 4,
    "gemma2": 4,
    "gemma3_text": 4,
}
"""What the configuration classes of transformers take where a file leaves the key out."""


def _attention_bias(raw: Mapping[str, Any], model_type: str) -> bool:
    """Whether query, key and value have biases: Qwen2 always, Qwen2-MoE by a key of its own, others by one."""
    if model_type == "qwen2_moe":
        return bool(raw.get("qkv_bias", True))
    return bool(raw.get("attention_bias", model_type in _BIASED_BY_DEFAULT))


def rope_of(raw: Mapping[str, Any]) -> tuple[float, float | None, Mapping[str, Any] | None]:
    """The rotary base, the base of sliding-window layers where it differs, and the scaling in transformers 4's form.

    Both spellings are read; `UserMistake` when both are present and disagree, because one of them is wrong and an
    engine with the wrong base still talks, only worse.
    """
    default = ROPE_BASE_BY_TYPE.get(str(raw.get("model_type", "")), DEFAULT_ROPE_BASE)
    old_base = raw.get("rope_theta")
    parameters = raw.get("rope_parameters")
    if not isinstance(parameters, Mapping):
        local = raw.get("rope_local_base_freq")
        base = float(old_base) if old_base is not None else default
        return base, float(local) if local is not None else None, normal_scaling(raw.get("rope_scaling"))
    local_base: float | None = None
    if any(kind in parameters for kind in ATTENTION_TYPES):
        sliding = parameters.get("sliding_attention") or {}
        if sliding.get("rope_theta") is not None:
            local_base = float(sliding["rope_theta"])
        parameters = parameters.get("full_attention") or {}
    new_base = parameters.get("rope_theta")
    if new_base is not None and old_base is not None and not math.isclose(float(new_base), float(old_base)):
        raise UserMistake(
            f"config.json names two rotary bases (rope_theta {old_base:g} and rope_parameters.rope_theta "
            f"{new_base:g}): correct the wrong one"
        )
    base = next((float(value) for value in (new_base, old_base) if value is not None), default)
    return base, local_base, normal_scaling({k: v for k, v in parameters.items() if k != "rope_theta"})


def normal_scaling(scaling: object) -> Mapping[str, Any] | None:
    """A rope-scaling dictionary with ``rope_type`` (older files say ``type``), or None for plain rotary embedding."""
    if not isinstance(scaling, Mapping):
        return None
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind in ("default", "mrope"):
        return None
    return {"rope_type": kind, **{k: v for k, v in scaling.items() if k not in ("rope_type", "type")}}


def switching_length(config: ModelConfig) -> int | None:
    """Tokens up to which rotary factors are the short ones, where a model has two sets (LongRoPE); else None.

    Beyond it the long factors are meant for every position of the sequence, also for those computed before.
    """
    scaling = config.rope_scaling
    kinds = ("longrope", "su", "yarn") if config.model_type == "phi3" else ("longrope", "su")  # as Phi3Config reads it
    if scaling is None or scaling["rope_type"] not in kinds:
        return None
    places = (config.raw, scaling)
    found = next((each["original_max_position_embeddings"] for each in places if _has_original(each)), None)
    if found is None and config.model_type == "phi3":
        return PHI3_ORIGINAL_LENGTH
    return int(found) if found is not None else config.max_position_embeddings


PHI3_ORIGINAL_LENGTH = 4096


def borders(config: ModelConfig) -> tuple[int, ...]:
    """Lengths, in tokens, beyond which a sequence is computed in another way than before: where a sliding window has
    slid off the first token, and where the length ends that a rope scaling starts from.
    """
    scaling = config.rope_scaling or {}
    named = [config.sliding_window if config.sliding_layers else None, switching_length(config)]
    named += [each["original_max_position_embeddings"] for each in (scaling, config.raw) if _has_original(each)]
    return tuple(sorted({length for length in named if length is not None}))


def _has_original(settings: Mapping[str, Any]) -> bool:
    return isinstance(settings.get("original_max_position_embeddings"), int)


def to_transformers_4(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The same configuration as transformers 4 reads it: ``rope_theta`` and ``rope_scaling`` at the top level."""
    translated = {key: value for key, value in raw.items() if key != "rope_parameters"}
    if isinstance(raw.get("rope_parameters"), Mapping):
        base, local_base, scaling = rope_of(raw)
        translated["rope_theta"] = base
        translated["rope_scaling"] = dict(scaling) if scaling else None
        if local_base is not None:
            translated["rope_local_base_freq"] = local_base
        if scaling and "original_max_position_embeddings" in scaling and scaling["rope_type"] == "longrope":
            translated["original_max_position_embeddings"] = scaling["original_max_position_embeddings"]
        partial = raw["rope_parameters"].get("partial_rotary_factor")
        if partial is not None:
            translated["partial_rotary_factor"] = partial
    scaling = normal_scaling(translated.get("rope_scaling"))
    if scaling is not None and raw.get("model_type") == "phi3":  # its class takes these three keys and no other
        factors = {name: scaling[name] for name in ("short_factor", "long_factor") if name in scaling}
        translated["rope_scaling"] = {"type": scaling["rope_type"], **factors}
    return translated


def _positive(raw: Mapping[str, Any], key: str, where: str) -> int:
    value = raw.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise UserMistake(f"{where} has no usable {key} ({value!r}): is it the configuration of a text model?")
    return value


def _sliding(raw: Mapping[str, Any], num_layers: int) -> tuple[int | None, int]:
    """The attention window in tokens and how many layers use it."""
    window = raw.get("sliding_window")
    if not isinstance(window, int) or raw.get("use_sliding_window") is False:
        return None, 0
    kinds = raw.get("layer_types")
    if isinstance(kinds, list):
        return window, sum(kind == "sliding_attention" for kind in kinds)
    pattern = raw.get("sliding_window_pattern") or (2 if raw.get("model_type") == "gemma2" else None)
    if isinstance(pattern, int) and pattern > 1:
        return window, num_layers - num_layers // pattern
    return window, num_layers


def _experts(raw: Mapping[str, Any]) -> Experts | None:
    count = raw.get("num_local_experts") or raw.get("num_experts") or raw.get("n_routed_experts")
    if not count:
        return None
    width = int(raw.get("moe_intermediate_size") or raw["intermediate_size"])
    return Experts(
        count=int(count),
        active=int(raw.get("num_experts_per_tok") or 2),
        intermediate_size=width,
        shared_intermediate_size=int(
            raw.get("shared_expert_intermediate_size") or width * int(raw.get("n_shared_experts") or 0)
        ),
    )


def sparse_layers(config: ModelConfig) -> frozenset[int]:
    """Layers whose MLP is a mixture of experts: Qwen's ``decoder_sparse_step`` and ``mlp_only_layers``, DeepSeek's
    ``first_k_dense_replace`` and ``moe_layer_freq`` count.
    """
    if config.experts is None:
        return frozenset()
    step = int(config.raw.get("decoder_sparse_step") or 1)
    every = int(config.raw.get("moe_layer_freq") or 1)
    first = int(config.raw.get("first_k_dense_replace") or 0)
    dense = {int(layer) for layer in config.raw.get("mlp_only_layers") or ()}
    return frozenset(
        layer
        for layer in range(first, config.num_layers)
        if layer not in dense and (layer + 1) % step == 0 and layer % every == 0
    )


def _latent(raw: Mapping[str, Any], where: str) -> Latent | None:
    if not raw.get("kv_lora_rank"):
        return None
    names = ("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
    rank, rope, nope, value = (_positive(raw, name, where) for name in names)
    return Latent(rank, rope, nope, value, int(raw["q_lora_rank"]) if raw.get("q_lora_rank") else None)
