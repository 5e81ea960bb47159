"""SmoothQuant's folds on a real transformers model: no logit changes, and no channel stands out any more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from build_engine.folds import FOLDS
from build_engine.smoothing import Method, input_ranges, smooth
from inflight_tools.common.tiny_models import write_checkpoint

pytestmark = pytest.mark.build

METHODS: dict[str, Callable[[str], Method]] = {
    "peaks": lambda model_type: Method(0.85, FOLDS[model_type]),
    "root mean squares": lambda model_type: Method(0.5, FOLDS[model_type], statistic="rms", powers_of_two=True),
}
OUTLIER = 64


@pytest.mark.parametrize("model_type", FOLDS)
@pytest.mark.parametrize("name", METHODS)
def test_smoothing_changes_no_logit_and_evens_the_activations(name: str, model_type: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    method = METHODS[name](model_type)
    folder = write_checkpoint(tmp_path / "model", model_type)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    window = torch.arange(3, 120)[None]
    with torch.no_grad():
        for layer in model.model.layers:
            for fold in method.folds:  # a channel that stands out, which changes no logit
                source = layer.get_submodule(fold.source).weight
                channel = source.shape[0] // 2 + 5 if fold.second_half else 5
                source[channel] = OUTLIER * (source[channel] + fold.offset) - fold.offset
                for linear in fold.linears:
                    layer.get_submodule(linear).weight[:, 5] /= OUTLIER
        before = model(window).logits
        ranges = input_ranges(model, [window], method, lambda _share: None)
        assert smooth(model, ranges, method) == len(ranges) == len(method.folds) * len(model.model.layers)
        assert torch.allclose(model(window).logits, before, atol=1e-3)
        after = input_ranges(model, [window], method, lambda _share: None)
    for place, top in ranges.items():
        assert after[place].max() / after[place].median() < top.max() / top.median(), place


def test_powers_of_two_cost_bfloat16_weights_nothing(tmp_path: Path) -> None:
    """Multiplied back, every weight is what it was, to the bit."""
    from transformers import AutoModelForCausalLM

    folder = write_checkpoint(tmp_path / "model", dtype="bfloat16")
    model, plain = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval() for _ in range(2))
    method = METHODS["root mean squares"]("llama")
    with torch.no_grad():
        smooth(model, input_ranges(model, [torch.arange(3, 120)[None]], method, lambda _share: None), method)
        changed = 0
        for name, weight in model.named_parameters():
            ratio = (weight.float() / dict(plain.named_parameters())[name].float()).nan_to_num(1.0)
            assert torch.equal(ratio.log2(), ratio.log2().round()), name
            changed += int((ratio != 1).any())
    assert changed, "nothing was smoothed"
