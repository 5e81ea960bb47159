"""SmoothQuant: move outliers from activations into weights, before both are rounded.

Channel i of a layer's input is divided by s_i, column i of its weight multiplied, which changes no output (Xiao et al.,
"SmoothQuant", ICML 2023, equation 4: s = x^α / w^(1−α)). The division is folded into whatever makes the input, so that
nothing is left to do at run time. Runs in child processes: imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from build_engine.folds import NORMS, Fold

LEAST = 1e-5  # of a range: a channel that is always 0 keeps its weights
MOST_DOUBLINGS = 8  # of a channel, up or down, where scales are powers of two


@dataclass(frozen=True, slots=True)
class Method:
    """``statistic``: what stands for a channel's activations, their largest magnitude or root mean square.

    With ``powers_of_two`` scales are rounded to such, so that bfloat16 weights lose nothing and all keep their type
    (the smallest in float16 may lose bits); without, the layers' weights become 32 bits wide, to be rounded once by
    whatever quantizes them.
    """

    alpha: float
    folds: tuple[Fold, ...] = NORMS
    statistic: Literal["peak", "rms"] = "peak"
    powers_of_two: bool = False


def input_ranges(
    model: Any, windows: Sequence[torch.Tensor], method: Method, tick: Callable[[float], None]
) -> dict[str, torch.Tensor]:
    """The statistic of every input channel, by the first layer that reads it; ``windows`` are ids [batch, length]."""
    seen: dict[str, torch.Tensor] = {}
    rows = sum(window.numel() for window in windows)

    def watch(name: str) -> Callable[..., None]:
        def see(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            values = inputs[0].detach().float().flatten(0, -2)
            if method.statistic == "peak":
                top = values.abs().amax(0)
                seen[name] = torch.maximum(seen[name], top) if name in seen else top
            else:
                seen[name] = seen.get(name, 0.0) + values.square().sum(0) / rows

        return see

    hooks = [
        layer.get_submodule(fold.linears[0]).register_forward_pre_hook(watch(f"{name}.{fold.linears[0]}"))
        for name, layer, fold in _places(model, method)
    ]
    try:
        for number, window in enumerate(windows, 1):
            model(window, use_cache=False, logits_to_keep=1)
            tick(number / len(windows))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: value.sqrt() for name, value in seen.items()} if method.statistic == "rms" else seen


def smooth(model: Any, ranges: dict[str, torch.Tensor], method: Method) -> int:
    """Fold the scales into ``model``; returns how many places there were."""
    places = 0
    for name, layer, fold in _places(model, method):
        linears = [layer.get_submodule(linear) for linear in fold.linears]
        widest = torch.stack([linear.weight.abs().float().amax(0) for linear in linears]).amax(0)
        activations = ranges[f"{name}.{fold.linears[0]}"]
        scale = activations.clamp_min(LEAST) ** method.alpha / widest.clamp_min(LEAST) ** (1 - method.alpha)
        if method.powers_of_two:
            scale = _powers_of_two(scale)
        scale = _divide_outputs(layer.get_submodule(fold.source), scale, fold)
        for linear in linears:
            scaled = linear.weight.float() * scale
            linear.weight.data = scaled.to(linear.weight.dtype) if method.powers_of_two else scaled
        places += 1
    return places


def _places(model: Any, method: Method) -> Iterator[tuple[str, Any, Fold]]:
    """Every decoder layer's name, the layer, and each fold that it has all modules of."""
    for name, layer in list(model.named_modules()):
        modules = dict(layer.named_modules())
        for fold in method.folds:
            if all(part in modules for part in (fold.source, *fold.linears)):
                yield name, layer, fold


def _powers_of_two(scale: torch.Tensor) -> torch.Tensor:
    """The nearest ones around their geometric mean, which itself would change nothing but the range."""
    exponents = scale.log2()
    return torch.exp2((exponents - exponents.mean()).round().clamp(-MOST_DOUBLINGS, MOST_DOUBLINGS))


def _divide_outputs(module: Any, scale: torch.Tensor, fold: Fold) -> torch.Tensor:
    """Divide the output channels of a norm or a linear layer; returns what its precision has made of ``scale``.

    A norm that adds an offset keeps its weight in 32 bits: beside the offset 16 bits would round it.
    """
    before = module.weight.detach().float()
    bias = getattr(module, "bias", None)
    if before.dim() > 1:
        divisor = torch.cat([torch.ones_like(scale), scale]) if fold.second_half else scale
        module.weight.data = (before / divisor[:, None]).to(module.weight.dtype)
        if bias is not None:
            bias.data = (bias.detach().float() / divisor).to(bias.dtype)
        return scale
    before = before + fold.offset
    module.weight.data = (before / scale - fold.offset).to(torch.float32 if fold.offset else module.weight.dtype)
    if bias is not None:
        bias.data = (bias.detach().float() / scale).to(bias.dtype)
    after = module.weight.float() + fold.offset
    return torch.where(after == 0, scale, before / after)
