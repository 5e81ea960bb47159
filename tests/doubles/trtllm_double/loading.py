"""What the executor's constructor makes of an engine and a configuration, and what it refuses.

Commits are of NVIDIA/TensorRT-LLM, numbers those of stored copies.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from trtllm_double.options import DoubleOptions, profile
from trtllm_double.ranks import RANKS
from trtllm_double.rules import speculative_resource

GIB = 1 << 30
DRAFT_TOKENS_EXTERNAL, LOOKAHEAD = 2, 8


class Memory:
    """The one GPU of this process; `free` is None before the first engine that has a size."""

    free: float | None = None

    @classmethod
    def load(cls, sizes: DoubleOptions, fraction: float) -> None:
        """Weights first, then a part of what is free for the KV cache (calculateFreeMemBytes)."""
        if not sizes.gpu_gib:
            return
        cls.free = (sizes.gpu_gib if cls.free is None else cls.free) - sizes.weights_gib
        if cls.free < 0:
            raise RuntimeError("[TensorRT-LLM][ERROR] CUDA runtime error in cudaMalloc: out of memory")
        cls.free *= 1 - fraction


@dataclasses.dataclass(frozen=True)
class Loaded:
    """`throws`: what every iteration throws, if it does."""

    config: dict[str, Any]
    reuse: bool
    chunked: bool
    max_input_len: int
    max_num_tokens: int
    draft_len: int
    throws: str | None

    @property
    def limits(self) -> dict[str, Any]:
        """The build's."""
        found: dict[str, Any] = self.config["build_config"]
        return found


def load(folder: Path, config: Any, sizes: DoubleOptions) -> Loaded:
    """Raises `RuntimeError`, as the constructor."""
    engine = _read(folder, config)
    build = engine["build_config"]
    plugins, kv = build["plugin_config"], config.kv_cache_config
    paged = bool(plugins.get("use_paged_context_fmha"))
    reuse, chunked = kv.enable_block_reuse, config.enable_chunked_context
    if reuse and (not paged or build.get("gather_context_logits")):  # trtGptModelInflightBatching.cpp at 00825c4e
        print("[TensorRT-LLM][WARNING] Fixing executorConfig: KV cache reuse disabled", file=sys.stderr)
        reuse = False
    if chunked and not paged:  # executorImpl.cpp at b35ac1b6, fixExecutorConfig
        print("[TensorRT-LLM][WARNING] Chunked context is not supported for this configuration", file=sys.stderr)
        chunked = False
    mode, drafts = build.get("speculative_decoding_mode", 1), int(build.get("max_draft_len") or 0)
    if getattr(kv, "onboard_blocks", True) is False and paged:
        raise RuntimeError("Assertion failed: KV cache blocks need to be onboarded if context FMHA.")
    if mode == DRAFT_TOKENS_EXTERNAL and not reuse:
        raise RuntimeError("KV cache block reuse must be enabled for speculative decoding target model")
    steps = build["max_num_tokens"]
    steps = min(config.max_num_tokens or steps, steps)  # trtGptModel.h at 2e2327b9, and what follows
    if chunked:
        longest = build["max_seq_len"] - 1
    elif plugins.get("context_fmha", True) and plugins.get("remove_input_padding", True):
        longest = min(build["max_seq_len"] - 1, steps)
    else:
        longest = build["max_input_len"]
    throws = _lookahead(config, drafts) if mode == LOOKAHEAD else None
    if kv.sink_token_length and paged:  # attentionOp.cpp (3351357547), in every context step
        throws = "Cannot support StreamingLLM now when enabling paged KV context FMHA."
    Memory.load(sizes, 0.9 if kv.free_gpu_memory_fraction is None else kv.free_gpu_memory_fraction)
    return Loaded(engine, reuse, chunked, longest, steps, drafts if mode != 1 else 0, throws)


def _lookahead(config: Any, drafts: int) -> str | None:
    """setupSpeculativeDecodingModule (4152691838) at load; createNewDecoderRequests.cpp at b35ac1b6 in every step."""
    decoding = config.decoding_config
    lookahead = decoding.lookahead_decoding_config if decoding is not None else None
    if lookahead is None:
        return "Lookahead decoding config must be provided"
    sizes = (lookahead.max_window_size, lookahead.max_ngram_size, lookahead.max_verification_set_size)
    if speculative_resource(*sizes)[2] > drafts:
        raise RuntimeError("Assertion failed: maxDraftTokens <= mModelConfig.getMaxDecodingDraftTokens()")
    return None


def _read(folder: Path, config: Any) -> dict[str, Any]:
    """The engine's config.json, after the checks of the ranks, the file and the library's release."""
    if config.batching_type.name == "STATIC":
        raise RuntimeError("[TensorRT-LLM][ERROR] Static batching type is deprecated")
    engine: dict[str, Any] = json.loads((folder / "config.json").read_text())
    world = engine["pretrained_config"]["mapping"]["world_size"]
    if world != RANKS.size:
        raise RuntimeError(
            f"[TensorRT-LLM][ERROR] MPI size ({RANKS.size}) does not match the engine's world size ({world})"
        )
    parallel = config.parallel_config
    for named in (parallel.device_ids, parallel.participant_ids) if parallel is not None else ():
        if named is not None and len(named) * (parallel.num_nodes or 1) != world:  # executorImpl.cpp at b35ac1b6
            raise RuntimeError("[TensorRT-LLM][ERROR] When specifying deviceIds, their number must be tp*pp*cp")
    if not (folder / f"rank{RANKS.rank}.engine").is_file():
        raise RuntimeError(f"[TensorRT-LLM][ERROR] Error opening engine file: {folder}/rank{RANKS.rank}.engine")
    if engine["version"] != profile()["version"]:
        raise RuntimeError(
            "[TensorRT-LLM][ERROR] The engine plan file is not compatible with this version of TensorRT, expecting "
            f"library version {profile()['tensorrt']} got another, please rebuild."
        )
    for name in ("max_beam_width", "max_batch_size"):
        if (getattr(config, name) or 0) > engine["build_config"][name]:
            raise RuntimeError(f"[TensorRT-LLM][ERROR] Runtime configured {name} must not exceed engine {name}")
    return engine
