"""The checkpoint's ``config.json``, made from the source's own configuration.

ModelOpt's exporter fills this file by itself when TensorRT-LLM is not installed, and leaves out or guesses what the
weights do not show: the rotary base and scaling (where transformers spells them in a way it does not know), attention
and MLP biases, the kind of Qwen, the experts' routing, the window of sliding attention; and it names layers to leave
unquantized from the last rank only. A missing key is silently a default in TensorRT-LLM. So every key that TensorRT-LLM
reads for these families is set here from the source, and what differed from the exporter's file is reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from build_engine.errors import StageFailure
from build_engine.hf_config import ModelConfig
from build_engine.planning.roofline import Parallel

EXPORTER_ONLY = ("rank", "decoder", "rotary_pct", "rmsnorm", "lm_head_bias", "bias", "runtime_defaults")
"""Keys of the exporter that TensorRT-LLM does not know, and the last, which ends its builder: it makes an object of it
that it can neither copy nor write (modeling_utils.py, 1189552800).
"""

FLAGS_FILE = "trtllm-build.json"
"""Beside the checkpoint's own files: the flags that the compile step is to use, and what the engine is told at load."""

FORM = 2
"""Raised when a checkpoint is written otherwise, so that none of a cache's older ones is taken."""

WINDOWS = "max_attention_window"
"""In `FLAGS_FILE` and in the manifest's limits: the attention window of each layer, given to the engine at load."""

UNQUANTIZED = (
    "*lm_head",
    "*router",
    "*vocab_embedding",
    "*position_embedding",
    "*block_embedding",
    "*shared_expert_gate",
)
"""TensorRT-LLM's own default for layers that stay as they are."""

DEFAULTS = {
    (qwen, key): value
    for qwen in (False, True)
    for key, value in (
        ("attn_bias", qwen),
        ("mlp_bias", False),
        ("rotary_base", 10_000.0),
        ("rotary_scaling", None),
        ("tie_word_embeddings", False),
        ("share_embedding_table", False),
        ("qk_layernorm", False),
    )
}
"""What TensorRT-LLM takes for a missing key, by whether the model is a Qwen: other values must be written."""

MOE_NONE, MOE_RENORMALIZE = 0, 1


def expected(config: ModelConfig, parallel: Parallel, dtype: str) -> dict[str, Any]:
    """Every model key of ``config.json`` that follows from the source (all but ``quantization``)."""
    sparse = config.experts is not None
    wanted: dict[str, Any] = {
        "architecture": config.architecture,
        "dtype": dtype,
        "logits_dtype": "float32",
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_size": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "hidden_act": "swiglu" if sparse else str(config.raw.get("hidden_act", "silu")),
        "norm_epsilon": float(config.raw.get("rms_norm_eps", 1e-6)),
        "position_embedding_type": "rope_gpt_neox",
        "rotary_base": config.rope_base,
        "rotary_scaling": rotary_scaling(config),
        "attn_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "tie_word_embeddings": config.tied_embeddings,
        "use_parallel_embedding": True,
        "embedding_sharding_dim": 0,
        "share_embedding_table": False,
        "mapping": {
            "world_size": parallel.gpus,
            "tp_size": parallel.tensor,
            "pp_size": parallel.pipeline,
            **({"moe_tp_size": parallel.tensor, "moe_ep_size": 1} if sparse else {}),
        },
    }
    if config.model_type.startswith("qwen"):
        wanted["qwen_type"] = config.model_type
        wanted["qk_layernorm"] = config.model_type.startswith("qwen3")
    if config.experts is not None:
        renormalize = config.model_type == "mixtral" or bool(config.raw.get("norm_topk_prob", False))
        wanted["moe"] = {
            "num_experts": config.experts.count,
            "top_k": config.experts.active,
            "normalization_mode": MOE_RENORMALIZE if renormalize else MOE_NONE,
        }
        if config.model_type == "qwen2_moe":
            wanted["moe_intermediate_size"] = config.experts.intermediate_size
            wanted["moe_shared_expert_intermediate_size"] = config.experts.shared_intermediate_size
    return wanted


def disagreements(written: Mapping[str, Any], config: ModelConfig) -> list[str]:
    """One phrase for each key of a checkpoint's ``config.json`` that does not say what the source does."""
    mapping = written["mapping"]
    parallel = Parallel(int(mapping["tp_size"]), int(mapping["pp_size"]))
    wanted = expected(config, parallel, str(written["dtype"]))
    qwen = config.model_type.startswith("qwen")
    found = []
    for key, value in wanted.items():
        has = written.get(key, DEFAULTS.get((qwen, key)))
        if key == "vocab_size" and int(has or 0) > config.vocab_size:
            continue  # padded, as the tensors are
        if not _same(has, value):
            found.append(f"config.json has {key} {has} where the source makes it {value}")
    return found


def rotary_scaling(config: ModelConfig) -> dict[str, Any] | None:
    """Rope scaling under both names of its kind: releases of TensorRT-LLM read ``type`` or ``rope_type``.

    A missing original length of YaRN is the model's own in transformers and 4,096 in TensorRT-LLM: always written.
    """
    scaling = config.rope_scaling
    if scaling is None:
        return None
    found = {"type": scaling["rope_type"], **scaling}
    if scaling["rope_type"] == "yarn":
        original = scaling.get("original_max_position_embeddings") or config.max_position_embeddings
        found["original_max_position_embeddings"] = original
    return found


def attention_windows(config: ModelConfig) -> list[int] | None:
    """The attention window of each layer, in tokens; None when every layer attends to everything."""
    if not config.sliding_window or not config.sliding_layers:
        return None
    kinds = config.raw.get("layer_types")
    full = config.max_position_embeddings
    if isinstance(kinds, list):
        return [config.sliding_window if kind == "sliding_attention" else full for kind in kinds]
    if config.sliding_layers == config.num_layers:
        return [config.sliding_window] * config.num_layers
    return None


def correct(
    written: Mapping[str, Any], config: ModelConfig, parallel: Parallel, algo: str | None, kv_algo: str | None
) -> tuple[dict[str, Any], list[str]]:
    """The corrected configuration, and one phrase for each key in which the exporter's differed.

    A padded vocabulary is kept as the exporter wrote it, because the tensors have that shape. Raises `StageFailure`
    when the exporter quantized otherwise than it was asked to.
    """
    wanted = expected(config, parallel, str(written["dtype"]))
    padded = int(written.get("vocab_size", 0))
    if padded > config.vocab_size:
        wanted["vocab_size"] = padded
    quantization = dict(written.get("quantization") or {})
    found = quantization.get("quant_algo")
    if algo in ("W8A16", "W4A16"):
        if found is not None:
            raise StageFailure(f"the exporter quantized to {found} what TensorRT-LLM is to quantize at load")
        quantization["quant_algo"] = algo
    elif found != algo:
        raise StageFailure(f"the exporter wrote quant_algo {found} where {algo} was asked for")
    if quantization.get("kv_cache_quant_algo") != kv_algo:
        raise StageFailure(
            f"the exporter wrote a KV cache of {quantization.get('kv_cache_quant_algo')} where {kv_algo} was asked for"
        )
    if algo is not None:
        named = [name for name in quantization.get("exclude_modules") or () if name != "lm_head"]
        quantization["exclude_modules"] = sorted(
            {*UNQUANTIZED, *(n for n in named if not n.startswith("transformer."))}
        )
    differences = []
    for key, value in wanted.items():
        if key not in written:
            if value != DEFAULTS.get((config.model_type.startswith("qwen"), key)):
                differences.append(f"{key}: missing, now {value}")
        elif not _same(written[key], value):
            differences.append(f"{key}: {written[key]}, now {value}")
    kept = {key: value for key, value in written.items() if key not in EXPORTER_ONLY and key not in wanted}
    return {**kept, **wanted, "quantization": quantization}, differences


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, (int, float)) and isinstance(right, (int, float)):
        return abs(left - right) <= 1e-6 * max(abs(left), abs(right))
    return bool(left == right)
