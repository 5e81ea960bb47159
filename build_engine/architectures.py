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
    """One architecture: the names its ``config.json`` carries, and the targets that build it."""

    architecture: str
    model_type: str
    targets: frozenset[str]


_ALL = frozenset(TARGETS)
_OPENVINO_ONLY = frozenset({OPENVINO})
_NO_ENGINE = frozenset({OPENVINO, HF_QUANTIZED})
_PLANNED_ONLY: frozenset[str] = frozenset()
"""What `plan` counts and no target builds."""

SUPPORTED: dict[str, Support] = {
    support.architecture: support
    for support in (
        Support("LlamaForCausalLM", "llama", _ALL),
        Support("MistralForCausalLM", "mistral", _ALL),
        Support("Qwen2ForCausalLM", "qwen2", _ALL),
        Support("Qwen3ForCausalLM", "qwen3", _ALL),
        Support("MixtralForCausalLM", "mixtral", _ALL),
        Support("Qwen2MoeForCausalLM", "qwen2_moe", _ALL),
        Support("Gemma2ForCausalLM", "gemma2", _OPENVINO_ONLY),
        Support("Gemma3ForCausalLM", "gemma3_text", _NO_ENGINE),
        Support("Phi3ForCausalLM", "phi3", _NO_ENGINE),
        Support("Qwen3MoeForCausalLM", "qwen3_moe", _NO_ENGINE),
        Support("GemmaForCausalLM", "gemma", _NO_ENGINE),
        Support("MinistralForCausalLM", "ministral", _PLANNED_ONLY),
        Support("SmolLM3ForCausalLM", "smollm3", _NO_ENGINE),
        Support("GraniteForCausalLM", "granite", _NO_ENGINE),
        Support("Olmo2ForCausalLM", "olmo2", _NO_ENGINE),
        Support("GptOssForCausalLM", "gpt_oss", _OPENVINO_ONLY),
        Support("DeepseekV2ForCausalLM", "deepseek_v2", _PLANNED_ONLY),
        Support("DeepseekV3ForCausalLM", "deepseek_v3", _PLANNED_ONLY),
        Support("GPTNeoXForCausalLM", "gpt_neox", _PLANNED_ONLY),
    )
}


def planned(config: ModelConfig) -> Support:
    """The entry for this model, whether any target builds it or not; `UserMistake` for what cannot be counted."""
    support = SUPPORTED.get(config.architecture)
    if support is None or support.model_type != config.model_type:
        said = f" with the model_type {config.model_type!r}" if support is not None else ""
        raise UserMistake(f"{config.architecture}{said} cannot be planned; what can: {', '.join(SUPPORTED)}")
    return support


def support_for(config: ModelConfig, target: str) -> Support:
    """The entry for this model, or `UserMistake` naming the architecture and what the target does build."""
    support = SUPPORTED.get(config.architecture)
    if support is None or target not in support.targets:
        names = ", ".join(entry.architecture for entry in SUPPORTED.values() if target in entry.targets)
        raise UserMistake(f"{config.architecture} is not supported for {target}, which builds: {names}")
    return support
