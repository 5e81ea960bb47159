"""What the library demands beyond types: rules of its constructors and of adapters, each with the file it was read in.

A broken rule of a constructor is a RuntimeError there. Methods that the table of facts has not, or has as pretended
ones only, are here as well. Commits are of NVIDIA/TensorRT-LLM, numbers those of stored copies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

LORA_MODULES = 19  # LoraModule's kinds, cpp/include/tensorrt_llm/runtime/loraModule.h


def _check(holds: bool, sentence: str) -> None:
    if not holds:
        raise RuntimeError(f"[TensorRT-LLM][ERROR] Assertion failed: {sentence}")


def lora_config(values: Mapping[str, Any]) -> None:
    """cpp/tensorrt_llm/executor/loraConfig.cpp at 3585984b."""
    weights, config = values["weights"], values["config"]
    if config is not None:
        _check(config.dim() == 2, "Expected config tensor to have 2 dimensions")
        _check(config.device.type == "cpu", "Expected lora config to be in CPU memory")
        _check(str(config.dtype) == "torch.int32", "Expected lora config tensor to have type kINT32")
    if weights is not None:
        _check(config is not None, "Request for LoRA inference with lora weights must also have lora config")
        _check(weights.dim() == 2, "Expected weights tensor to have 2 dimensions")
        _check(weights.device.type == "cpu", "Expected lora weights to be in CPU memory")
        _check(len(config) == len(weights), "Expected dim 0 of lora weights and lora config to have the same size")


def lookahead_config(values: Mapping[str, Any]) -> None:
    """isLegal of cpp/tensorrt_llm/executor/speculativeDecodingConfig.cpp (251636740)."""
    window, ngram, guesses = (values[f"max_{name}"] for name in ("window_size", "ngram_size", "verification_set_size"))
    legal = ngram >= 1 and window >= 1 and guesses >= 0 and (ngram > 1 or (window == 1 and guesses == 0))
    _check(legal, "LookaheadDecodingConfig is not legal")


def kv_cache_config(values: Mapping[str, Any]) -> None:
    """The setters of cpp/tensorrt_llm/executor/kvCacheConfig.cpp (2805066758)."""
    _check(values["max_tokens"] is None or values["max_tokens"] > 0, "maxTokens > 0")
    _check(all(window > 0 for window in values["max_attention_window"] or ()), "maxAttentionWindow > 0")
    _check(values["sink_token_length"] is None or values["sink_token_length"] > 0, "sinkTokenLength > 0")
    fraction = values["free_gpu_memory_fraction"]
    _check(fraction is None or fraction > 0.0, "freeGpuMemoryFraction > 0.F")
    _check(fraction is None or fraction < 1.0, "freeGpuMemoryFraction < 1.F")


CONSTRUCTORS: Mapping[str, Callable[[Mapping[str, Any]], None]] = {
    "KvCacheConfig": kv_cache_config,
    "LookaheadDecodingConfig": lookahead_config,
    "LoraConfig": lora_config,
}


def speculative_resource(window: int, ngram: int, guesses: int) -> tuple[int, int, int, int]:
    """(tokens, path, draft tokens, draft path) of a step: calculateSpeculativeResourceTuple, same file."""
    drafts = (0 if ngram == 1 else ngram - 2) + (window - 1 + guesses) * (ngram - 1)
    return drafts + 1, ngram, drafts, ngram - 1


def _resource(config: Any) -> tuple[int, int, int, int]:
    return speculative_resource(config.max_window_size, config.max_ngram_size, config.max_verification_set_size)


def _not_pickled(_config: Any, _protocol: int) -> Any:
    raise TypeError("cannot pickle 'tensorrt_llm.bindings.executor.RuntimeDefaults' object")


METHODS: Mapping[str, Mapping[str, Any]] = {
    # cpp/tensorrt_llm/nanobind/executor/executorConfig.cpp at c40f1157: no __getstate__
    "RuntimeDefaults": {"__reduce_ex__": _not_pickled},
    # cpp/tensorrt_llm/nanobind/executor/request.cpp at ac456dca (763728548); values: executor.h (735557460)
    "LookaheadDecodingConfig": {
        "calculate_speculative_resource": _resource,
        "calculate_speculative_resource_tuple": staticmethod(speculative_resource),
        "get_default_lookahead_decoding_window": staticmethod(lambda: 4),
        "get_default_lookahead_decoding_ngram": staticmethod(lambda: 3),
        "get_default_lookahead_decoding_verification_set": staticmethod(lambda: 4),
    },
}


def adapter_problem(weights: Any, config: Any, engine: Mapping[str, Any]) -> str | None:
    """Why the adapter of a request does not fit the engine: loraUtils.cpp at 2a9abd95, for each request as it is
    fetched.
    """
    pretrained, build = engine["pretrained_config"], engine["build_config"]
    if str(weights.dtype) != f"torch.{pretrained['dtype']}":
        return "Expected lora weights to be the same data type as base model"
    if config.shape[1] not in (3, 4):
        return "Expected dim2 of lora_keys to have a size in [3, 4]"
    most = (build.get("lora_config") or {}).get("max_lora_rank", 64)
    for module, layer, size, *_ in config.tolist():
        if not 0 <= layer < pretrained["num_hidden_layers"]:
            return "Expected layerId to be in the range [0, numModelLayers)"
        if size <= 0:
            return "Expected adapterSize to be > 0"
        if not 0 <= module < LORA_MODULES:
            return f"lora module {module} not enabled for this model"
        if 2 * size > weights.shape[1]:
            return "lora_weights has to few values"
        if size > most:
            return f"Invalid low_rank ({size}). low_rank must be smaller than mMaxLowRank ({most})"
    return None


def fingerprint(weights: Any) -> int:
    """What an adapter does to the stand-in's answers."""
    total = float(weights.double().nan_to_num(0.0, 1.0, -1.0).sum())
    return int(max(-1e12, min(1e12, total)) * 1000)


def prefetched(folder: Path) -> dict[int, int]:
    """Adapters of lora_prefetch_dir by their number, which is the name of their folder: peftCacheManager.cpp
    (407796994). Folders of other names are passed over there with a warning.
    """
    import torch

    found = [path for path in folder.iterdir() if path.is_dir() and path.name.isdigit()]
    return {int(path.name): fingerprint(torch.from_numpy(np.load(path / "model.lora_weights.npy"))) for path in found}
