"""How far an artifact may be from its source, per recipe; beyond it ``verify`` fails."""

from __future__ import annotations

from dataclasses import dataclass

from inflight.manifest import Verification


@dataclass(frozen=True, slots=True)
class Threshold:
    """``perplexity_ratio`` bounds perplexity over the source's; ``mean_kl`` is in nats a token.

    ``weight_error`` bounds the relative error of each layer's weights: what the recipe's rounding makes, about
    doubled (8-bit integers 1 %, e4m3 2.6 %, 4-bit integers in groups 10 %), far below what any fault makes.
    """

    perplexity_ratio: float
    mean_kl: float
    weight_error: float


THRESHOLDS: dict[str, Threshold] = {
    "none": Threshold(1.005, 0.005, 0.002),
    "int8": Threshold(1.02, 0.02, 0.03),
    "int8-sq": Threshold(1.08, 0.10, 0.03),
    "int4": Threshold(1.30, 0.40, 0.4),
    "int4-awq": Threshold(1.30, 0.40, 0.25),
    "int4-gptq": Threshold(1.30, 0.40, 0.25),
    "w4a8-awq": Threshold(1.35, 0.45, 0.25),
    "fp8": Threshold(1.04, 0.06, 0.06),
    "nvfp4": Threshold(1.35, 0.45, 0.25),
}


STRICTER: dict[tuple[str, str], Threshold] = {
    ("openvino", "int8-sq"): Threshold(1.01, 0.02, 0.03),  # many scales an activation, not one
}
"""By target and recipe, where a target rounds less than the recipe allows."""


MEASURED: dict[tuple[str, str, str], str] = {
    ("openvino", "none", "gemma3_text"): "-0.02 % and KL 0.0000 with a KV cache of 32 bits on Gemma 3 270M",
    ("openvino", "none", "llama"): "-0.05 % and KL 0.0007 on SmolLM2-135M",
    ("openvino", "int8", "llama"): "+0.42 % and KL 0.0076 on SmolLM2-135M",
    ("openvino", "int4-awq", "llama"): "+11.41 % and KL 0.1541 on SmolLM2-135M",
    ("tensorrt_llm", "none", "llama"): "+0.00 % and KL 0.0000 on SmolLM2-135M",
    ("tensorrt_llm", "int8", "llama"): "-0.12 % and KL 0.0028 on SmolLM2-135M",
    ("tensorrt_llm", "int4-awq", "llama"): "+18.73 % and KL 0.1847 on SmolLM2-135M",
    ("tensorrt_llm", "fp8", "llama"): "+3.05 % and KL 0.0345 on SmolLM2-135M",
    ("hf_quantized", "fp8", "llama"): "+1.98 % and KL 0.0293 on SmolLM2-135M",
}
"""What a recipe cost in perplexity and mean KL on a real model of a type, by target, recipe and model type (the figures
of docs/recipes.md).
"""

NEXT = {
    "openvino": {"int4": "int4-awq", "int4-awq": "int8", "int4-gptq": "int8", "int8-sq": "int8", "int8": "none"},
    "tensorrt_llm": {
        "int4": "int4-awq",
        "int4-awq": "fp8",
        "w4a8-awq": "fp8",
        "int8-sq": "fp8",
        "fp8": "int8",
        "int8": "none",
    },
    "hf_quantized": {"int4-awq": "fp8", "w4a8-awq": "fp8", "nvfp4": "fp8", "int8-sq": "fp8", "fp8": "none"},
}
"""By target, the recipe to try where one is too far from its source."""


def way_out(target: str, recipe: str, model_type: str) -> str:
    """The next recipe, and what it was measured to cost on a model of this type where it was; ends with "; "."""
    following = NEXT.get(target, {}).get(recipe)
    if following is None:
        return ""
    known = MEASURED.get((target, following, model_type))
    return f"--quantization {following} is the next nearer one{f' ({known})' if known else ''}; "


NOISE = 0.5
"""From this share of the vocabulary on a source's perplexity is that of chance: guessing evenly has all of it."""


def no_better_than_chance(measured: Verification, vocab_size: int) -> str | None:
    """One phrase where the source itself predicts nothing, so that being near to it says nothing; or None."""
    if measured.reference_perplexity < NOISE * vocab_size:  # false for NaN
        return None
    return (
        f"the source predicts no better than chance (perplexity {measured.reference_perplexity:.0f} of {vocab_size} "
        "tokens), so nothing can be verified against it: its weights or its tokenizer are wrong, or made up on "
        "purpose, which build --no-verify takes"
    )


def too_far(target: str, recipe: str, measured: Verification) -> str | None:
    """One phrase that says which threshold is passed, or None.

    A figure passes a threshold when it surely does: where the figure's confidence interval reaches back to the
    threshold, the text was too short to tell.
    """
    if measured.faults:
        more = f" (and {len(measured.faults) - 1} more)" if len(measured.faults) > 1 else ""
        return f"{measured.faults[0]}{more}"
    limit = STRICTER.get((target, recipe), THRESHOLDS[recipe])
    ratio = measured.perplexity / measured.reference_perplexity
    at_least = ratio if measured.perplexity_change is None else 1 + measured.perplexity_change[0]
    if not at_least <= limit.perplexity_ratio:  # also true for NaN
        sure = "" if measured.perplexity_change is None else f" (surely {100 * (at_least - 1):+.1f} %)"
        return (
            f"perplexity {measured.perplexity:.3f} is {100 * (ratio - 1):+.1f} % from the source's "
            f"{measured.reference_perplexity:.3f} on {measured.tokens} tokens{sure}, and {recipe} may be "
            f"{100 * (limit.perplexity_ratio - 1):+.1f} %"
        )
    least_kl = measured.mean_kl if measured.mean_kl_low is None else measured.mean_kl_low
    if not least_kl <= limit.mean_kl:
        return (
            f"mean KL divergence {measured.mean_kl:.4f} on {measured.tokens} tokens is above the {limit.mean_kl} that "
            f"{recipe} may have"
        )
    for each in measured.beyond:
        if not each.mean_kl_low <= limit.mean_kl:
            return (
                f"beyond {each.border} tokens the mean KL divergence is {each.mean_kl:.4f} on {each.tokens} tokens, "
                f"above the {limit.mean_kl} that {recipe} may have: sequences of up to {each.border} tokens are right "
                f"(--max-seq-len {each.border})"
            )
    if measured.weight_error is not None and not measured.weight_error <= limit.weight_error:
        return (
            f"the weights of {measured.worst_weight} are {100 * measured.weight_error:.1f} % from the source's, "
            f"and {recipe} may be {100 * limit.weight_error:.1f} %"
        )
    return None
