"""YaRN in a checkpoint for TensorRT-LLM means there what it means in transformers, or is refused."""

from __future__ import annotations

from typing import Any

import pytest

from build_engine import hf_config
from build_engine.errors import UserMistake
from build_engine.planning.roofline import Parallel
from build_engine.quantization import RECIPES
from build_engine.tensorrt import config, recipes
from inflight_tools.common.tiny_models import LLAMA


def model(**scaling: Any) -> hf_config.ModelConfig:
    raw = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", **LLAMA, "max_position_embeddings": 32_768}
    return hf_config.parse({**raw, "rope_scaling": {"rope_type": "yarn", "factor": 4.0, **scaling}})


@pytest.mark.fast
def test_the_original_length_is_always_written() -> None:
    """TensorRT-LLM takes 4,096 where it is missing, transformers the model's own."""
    written = config.expected(model(), Parallel(), "bfloat16")["rotary_scaling"]
    assert written["original_max_position_embeddings"] == 32_768
    given = config.expected(model(original_max_position_embeddings=8192), Parallel(), "bfloat16")["rotary_scaling"]
    assert given["original_max_position_embeddings"] == 8192


@pytest.mark.full
def test_what_is_written_is_what_transformers_computes() -> None:
    """Against transformers' own formula, over the checkpoint's keys only."""
    import torch
    from transformers import Qwen2Config
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from build_engine.tensorrt import runner

    source = model()
    settings = {name: value for name, value in source.raw.items() if name not in ("architectures", "model_type")}
    reference, factor = ROPE_INIT_FUNCTIONS["yarn"](Qwen2Config(**settings), torch.device("cpu"))
    written = config.expected(source, Parallel(), "bfloat16")
    frequencies, attention = runner.rope_frequencies({**written, "max_position_embeddings": 4096})
    torch.testing.assert_close(frequencies, reference.float(), rtol=1e-5, atol=0)
    assert attention == pytest.approx(factor)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("scaling", "word"),
    [
        ({"attention_factor": 1.0}, "attention_factor"),
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, "mscale"),
        ({"mscale": 0.707, "mscale_all_dim": 0.5}, "mscale"),
        ({"truncate": False}, "truncate"),
    ],
)
def test_what_tensorrt_llm_cannot_be_told_is_refused(scaling: dict[str, Any], word: str) -> None:
    with pytest.raises(UserMistake, match=word):
        recipes.check_model(model(**scaling), RECIPES["fp8"], Parallel())


@pytest.mark.fast
@pytest.mark.parametrize("scaling", [{}, {"attention_factor": 1.1386294361119891}, {"mscale": 1.0}, {"beta_fast": 16}])
def test_what_it_computes_by_itself_is_taken(scaling: dict[str, Any]) -> None:
    recipes.check_model(model(**scaling), RECIPES["fp8"], Parallel())
