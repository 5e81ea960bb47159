"""Public models by their published shapes: parameters and bytes as their files have them, written down by hand.

Parameters are those that the model hub shows for the checkpoint's files, bytes the total_size of its index. They are
facts from elsewhere: nothing here was computed by the code under test.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from build_engine import hf_config
from build_engine.hf_config import ModelConfig
from build_engine.planning import model_size
from build_engine.quantization import RECIPES

pytestmark = pytest.mark.fast


class Model(NamedTuple):
    """The shape as config.json has it (vocabulary, hidden, feed-forward, layers, heads, key/value heads)."""

    name: str
    architecture: str
    model_type: str
    shape: tuple[int, int, int, int, int, int]
    parameters: int
    file_bytes: int
    more: dict[str, Any]

    def config(self) -> ModelConfig:
        vocabulary, hidden, width, layers, heads, kv_heads = self.shape
        raw = {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "vocab_size": vocabulary,
            "hidden_size": hidden,
            "intermediate_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        }
        return hf_config.parse({**raw, **self.more}, where=self.name)


TIED: dict[str, Any] = {"tie_word_embeddings": True}
GEMMA: dict[str, Any] = {**TIED, "head_dim": 256}
OSS: dict[str, Any] = {"head_dim": 64, "num_experts_per_tok": 4}
LATENT: dict[str, Any] = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128}
V3: dict[str, Any] = {
    **LATENT,
    "q_lora_rank": 1536,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 2048,
    "first_k_dense_replace": 3,
}
V2_LITE: dict[str, Any] = {
    **LATENT,
    "q_lora_rank": None,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "moe_intermediate_size": 1408,
    "first_k_dense_replace": 1,
}
A3B: dict[str, Any] = {"head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768}
LLAMA, QWEN3 = ("LlamaForCausalLM", "llama"), ("Qwen3ForCausalLM", "qwen3")
GRANITE, PHI = ("GraniteForCausalLM", "granite"), ("Phi3ForCausalLM", "phi3")

MODELS = [
    Model("SmolLM2-135M", *LLAMA, (49152, 576, 1536, 30, 9, 3), 134_515_008, 269_030_016, TIED),
    Model("TinyLlama-1.1B", *LLAMA, (32000, 2048, 5632, 22, 32, 4), 1_100_048_384, 2_200_096_768, {}),
    Model("Llama-3.2-1B", *LLAMA, (128256, 2048, 8192, 16, 32, 8), 1_235_814_400, 2_471_628_800, TIED),
    Model("Llama-3.2-3B", *LLAMA, (128256, 3072, 8192, 28, 24, 8), 3_212_749_824, 6_425_499_648, TIED),
    Model("Llama-3.1-8B", *LLAMA, (128256, 4096, 14336, 32, 32, 8), 8_030_261_248, 16_060_522_496, {}),
    Model("Llama-3.1-70B", *LLAMA, (128256, 8192, 28672, 80, 64, 8), 70_553_706_496, 141_107_412_992, {}),
    Model(
        "Mistral-7B-v0.3",
        "MistralForCausalLM",
        "mistral",
        (32768, 4096, 14336, 32, 32, 8),
        7_248_023_552,
        14_496_047_104,
        {},
    ),
    Model(
        "Mixtral-8x7B",
        "MixtralForCausalLM",
        "mixtral",
        (32000, 4096, 14336, 32, 32, 8),
        46_702_792_704,
        93_405_585_408,
        {"num_local_experts": 8, "num_experts_per_tok": 2},
    ),
    Model("Qwen2.5-0.5B", "Qwen2ForCausalLM", "qwen2", (151936, 896, 4864, 24, 14, 2), 494_032_768, 988_065_536, TIED),
    Model(
        "Qwen2.5-7B", "Qwen2ForCausalLM", "qwen2", (152064, 3584, 18944, 28, 28, 4), 7_615_616_512, 15_231_233_024, {}
    ),
    Model("Qwen3-8B", *QWEN3, (151936, 4096, 12288, 36, 32, 8), 8_190_735_360, 16_381_470_720, {"head_dim": 128}),
    Model(
        "Qwen3-30B-A3B",
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        (151936, 2048, 6144, 48, 32, 4),
        30_532_122_624,
        61_064_245_248,
        A3B,
    ),
    Model(  # published in float32
        "gemma-2-9b",
        "Gemma2ForCausalLM",
        "gemma2",
        (256000, 3584, 14336, 42, 16, 8),
        9_241_705_984,
        36_966_823_936,
        {**GEMMA, "torch_dtype": "float32"},
    ),
    Model(
        "gemma-3-270m",
        "Gemma3ForCausalLM",
        "gemma3_text",
        (262144, 640, 2048, 18, 4, 1),
        268_098_176,
        536_196_352,
        GEMMA,
    ),
    Model(
        "gemma-3-1b",
        "Gemma3ForCausalLM",
        "gemma3_text",
        (262144, 1152, 6912, 26, 4, 1),
        999_885_952,
        1_999_771_904,
        GEMMA,
    ),
    Model("Phi-3-mini", *PHI, (32064, 3072, 8192, 32, 32, 32), 3_821_079_552, 7_642_159_104, {}),
    Model("phi-4", *PHI, (100352, 5120, 17920, 40, 40, 10), 14_659_507_200, 29_319_014_400, {}),
    Model(
        "pythia-1.4b",
        "GPTNeoXForCausalLM",
        "gpt_neox",
        (50304, 2048, 8192, 24, 16, 16),
        1_414_647_808,
        2_829_295_616,
        {},
    ),
    Model(
        "SmolLM3-3B",
        "SmolLM3ForCausalLM",
        "smollm3",
        (128256, 2048, 11008, 36, 16, 4),
        3_075_098_624,
        6_150_197_248,
        TIED,
    ),
    Model(
        "OLMo-2-1124-7B",
        "Olmo2ForCausalLM",
        "olmo2",
        (100352, 4096, 11008, 32, 32, 32),
        7_298_617_344,
        14_597_234_688,
        {},
    ),
    Model("granite-3.1-2b", *GRANITE, (49155, 2048, 8192, 40, 32, 8), 2_533_531_648, 5_067_063_296, TIED),
    Model("granite-3.1-8b", *GRANITE, (49155, 4096, 12800, 40, 32, 8), 8_170_848_256, 16_341_696_512, TIED),
    Model(
        "gpt-oss-20b",
        "GptOssForCausalLM",
        "gpt_oss",
        (201088, 2880, 2880, 24, 64, 8),
        20_914_757_184,
        41_829_514_368,
        {**OSS, "num_local_experts": 32},
    ),
    Model(
        "DeepSeek-V2-Lite",
        "DeepseekV2ForCausalLM",
        "deepseek_v2",
        (102400, 2048, 10944, 27, 16, 16),
        15_706_484_224,
        31_412_968_448,
        V2_LITE,
    ),
    Model(  # without the layer that guesses a second token; published in 8 bits, here in 16
        "DeepSeek-V3",
        "DeepseekV3ForCausalLM",
        "deepseek_v3",
        (129280, 7168, 18432, 61, 128, 128),
        671_026_419_200,
        1_342_052_838_400,
        V3,
    ),
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_parameters_and_bytes_are_those_of_the_published_files(model: Model) -> None:
    config = model.config()
    assert model_size.count_parameters(config).total == model.parameters
    assert model_size.stored_bytes(config, RECIPES["none"])["hf-quantized"] == model.file_bytes


ACTIVE = {"Mixtral-8x7B": 12.9e9, "Qwen3-30B-A3B": 3.3e9, "gpt-oss-20b": 3.6e9, "DeepSeek-V3": 37e9}
"""What their makers say that one token uses, rounded as they round it (the input embedding partly included)."""


@pytest.mark.parametrize("name", ACTIVE)
def test_active_parameters_are_those_that_their_makers_name(name: str) -> None:
    config = next(model for model in MODELS if model.name == name).config()
    embedding = config.vocab_size * config.hidden_size
    active = model_size.count_parameters(config).active
    assert active - 0.01 * ACTIVE[name] <= ACTIVE[name] <= active + embedding + 0.01 * ACTIVE[name]


def test_latent_attention_keeps_one_vector_a_token() -> None:
    config = next(model for model in MODELS if model.name == "DeepSeek-V3").config()
    assert model_size.kv_bytes_per_token(config, 16) == 61 * (512 + 64) * 2  # 70 kB, where full heads took 4 MB
    assert model_size.kv_bytes_per_token(config, 16, heads=128) == 61 * 128 * (192 + 128) * 2
