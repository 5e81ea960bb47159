"""SmoothQuant's folds on a real transformers model: no logit changes, and no channel stands out any more."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from build_engine.quantization import SMOOTHED_MODEL_TYPES
from build_engine.smoothing import GATED, NORMS, Method, input_ranges, smooth
from inflight_tools.common.tiny_models import write_checkpoint

pytestmark = pytest.mark.build

METHODS = {
    "peaks": Method(0.85),
    "root mean squares": Method(0.5, NORMS + GATED, statistic="rms", powers_of_two=True),
}
OUTLIER = 64


@pytest.mark.parametrize("model_type", SMOOTHED_MODEL_TYPES)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_smoothing_changes_no_logit_and_evens_the_activations(method: Method, model_type: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = write_checkpoint(tmp_path / "model", model_type)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    window = torch.arange(3, 120)[None]
    with torch.no_grad():
        for layer in model.model.layers:
            for fold in method.folds:  # a channel that stands out, which changes no logit
                layer.get_submodule(fold.source).weight[5] *= OUTLIER
                for linear in fold.linears:
                    layer.get_submodule(linear).weight[:, 5] /= OUTLIER
        before = model(window).logits
        ranges = input_ranges(model, [window], method, lambda _share: None)
        assert smooth(model, ranges, method) == len(ranges) == len(method.folds) * len(model.model.layers)
        assert torch.allclose(model(window).logits, before, atol=1e-3)
        after = input_ranges(model, [window], method, lambda _share: None)
    for name, top in ranges.items():
        assert after[name].max() / after[name].median() < top.max() / top.median(), name


def test_powers_of_two_cost_bfloat16_weights_nothing(tmp_path: Path) -> None:
    """Multiplied back, every weight is what it was, to the bit."""
    from transformers import AutoModelForCausalLM

    folder = write_checkpoint(tmp_path / "model", dtype="bfloat16")
    model, plain = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval() for _ in range(2))
    method = METHODS["root mean squares"]
    with torch.no_grad():
        smooth(model, input_ranges(model, [torch.arange(3, 120)[None]], method, lambda _share: None), method)
        changed = 0
        for name, weight in model.named_parameters():
            ratio = (weight.float() / dict(plain.named_parameters())[name].float()).nan_to_num(1.0)
            assert torch.equal(ratio.log2(), ratio.log2().round()), name
            changed += int((ratio != 1).any())
    assert changed, "nothing was smoothed"
