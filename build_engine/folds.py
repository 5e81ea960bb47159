"""Where SmoothQuant's scales can be folded into, by family of models. No heavy imports: also used for planning."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fold:
    """A module whose output channels can be scaled at will, and the linear layers that read nothing else.

    Names are those of transformers, within a decoder layer. ``offset`` is what a norm adds to its weight before it
    multiplies with it; with ``second_half`` only the second half of the module's outputs is what the layers read.
    """

    source: str
    linears: tuple[str, ...]
    offset: float = 0.0
    second_half: bool = False


ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")

NORMS = (Fold("input_layernorm", ATTENTION), Fold("post_attention_layernorm", GATE_UP))
GATED = (Fold("mlp.up_proj", ("mlp.down_proj",)),)
"""The gate's other factor: what its rows are divided by, the product is."""

_LLAMA = NORMS + GATED
_GEMMA = (Fold("input_layernorm", ATTENTION, 1.0), Fold("post_attention_layernorm", GATE_UP, 1.0), *GATED)
_GEMMA_2 = (Fold("input_layernorm", ATTENTION, 1.0), Fold("pre_feedforward_layernorm", GATE_UP, 1.0), *GATED)
_PHI_3 = (
    Fold("input_layernorm", ("self_attn.qkv_proj",)),
    Fold("post_attention_layernorm", ("mlp.gate_up_proj",)),
    Fold("mlp.gate_up_proj", ("mlp.down_proj",), second_half=True),
)

FOLDS: dict[str, tuple[Fold, ...]] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "smollm3": _LLAMA,
    "granite": _LLAMA,
    "phi3": _PHI_3,
    "gemma": _GEMMA,
    "gemma2": _GEMMA_2,
    "gemma3_text": _GEMMA_2,
}
"""By ``model_type``. OLMo 2 has its norms behind the layers, with nothing in front to fold into; a mixture's router
reads what its experts read, and each expert is calibrated by the few tokens it is given."""
