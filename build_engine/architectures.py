"""Which architectures each target builds; what is not here is refused by name before any work."""

from __future__ import annotations

from dataclasses import dataclass

from build_engine.errors import UserMistake
from build_engine.hf_config import ModelConfig

OPENVINO = "openvino"
TENSORRT_LLM = "tensorrt-llm"
HF_QUANTIZED = "hf-quantized"
TARGETS = (OPENVINO, TENSORRT_LLM, HF_QUANTIZED)
ALIASES = {"tensorrt-llm-checkpoint": HF_QUANTIZED}
"""Former names of targets, which the command line still takes."""


@dataclass(frozen=True, slots=True)
class Support:
    """One architecture: the name its ``config.json`` carries, its family, and the targets that build it."""

    architecture: str
    family: str
    targets: frozenset[str]


_ALL = frozenset(TARGETS)
_OPENVINO_ONLY = frozenset({OPENVINO})
_NO_ENGINE = frozenset({OPENVINO, HF_QUANTIZED})

SUPPORTED: dict[str, Support] = {
    support.architecture: support
    for support in (
        Support("LlamaForCausalLM", "llama", _ALL),
        Support("MistralForCausalLM", "llama", _ALL),
        Support("Qwen2ForCausalLM", "qwen2", _ALL),
        Support("Qwen3ForCausalLM", "qwen3", _ALL),
        Support("MixtralForCausalLM", "mixtral", _ALL),
        Support("Qwen2MoeForCausalLM", "qwen2_moe", _ALL),
        Support("Gemma2ForCausalLM", "gemma2", _OPENVINO_ONLY),
        Support("Gemma3ForCausalLM", "gemma3", _NO_ENGINE),
        Support("Phi3ForCausalLM", "phi3", _NO_ENGINE),
        Support("Qwen3MoeForCausalLM", "qwen3_moe", _NO_ENGINE),
    )
}


def support_for(config: ModelConfig, target: str) -> Support:
    """The entry for this model, or `UserMistake` naming the architecture and what the target does build."""
    support = SUPPORTED.get(config.architecture)
    if support is None or target not in support.targets:
        names = ", ".join(entry.architecture for entry in SUPPORTED.values() if target in entry.targets)
        raise UserMistake(f"{config.architecture} is not supported for {target}, which builds: {names}")
    return support
