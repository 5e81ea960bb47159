"""Special tokens that a tokenizer has by its class alone, where no file of a checkpoint names them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_END_OF_TEXT = "<|endoftext|>"
_GPT2 = {"bos_token": _END_OF_TEXT, "eos_token": _END_OF_TEXT, "unk_token": _END_OF_TEXT}
_LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

DEFAULTS: dict[str, dict[str, str]] = {
    "BloomTokenizer": {**_LLAMA, "pad_token": "<pad>"},
    "CodeGenTokenizer": _GPT2,
    "CodeLlamaTokenizer": _LLAMA,
    "CohereTokenizer": {"bos_token": "<BOS_TOKEN>", "eos_token": "<|END_OF_TURN_TOKEN|>", "unk_token": "<UNK>"},
    "GPT2Tokenizer": _GPT2,
    "GPTNeoXTokenizer": _GPT2,
    "GemmaTokenizer": {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"},
    "LlamaTokenizer": _LLAMA,
    "Qwen2Tokenizer": {"eos_token": _END_OF_TEXT, "unk_token": _END_OF_TEXT, "pad_token": _END_OF_TEXT},
}
"""What the classes of transformers 4.57 take where nobody says; the fast form of a class has the same."""

OF_MODEL_TYPE: dict[str, str] = {
    **dict.fromkeys(
        ("llama", "mistral", "ministral", "mixtral", "phi3", "deepseek_v2", "deepseek_v3"), "LlamaTokenizer"
    ),
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"), "Qwen2Tokenizer"),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), "GemmaTokenizer"),
    **dict.fromkeys(("olmo", "olmo2", "gpt_neox", "stablelm", "mpt"), "GPTNeoXTokenizer"),
    **dict.fromkeys(
        ("gpt2", "gptj", "granite", "granitemoe", "olmo3", "starcoder2", "opt", "exaone4"), "GPT2Tokenizer"
    ),
    **dict.fromkeys(("cohere", "cohere2"), "CohereTokenizer"),
    **dict.fromkeys(("phi", "codegen"), "CodeGenTokenizer"),
    "bloom": "BloomTokenizer",
}
"""The class of a checkpoint that names none, by config.json's ``model_type``."""


def defaults_for(tokenizer_config: Mapping[str, object], config: Mapping[str, object]) -> Mapping[str, str]:
    """The special tokens of the class that transformers would choose: tokenizer_config.json names it, else
    config.json does, by itself or by its ``model_type``. Empty for a class that has none.
    """
    named = tokenizer_config.get("tokenizer_class") or config.get("tokenizer_class")
    name = named if isinstance(named, str) else OF_MODEL_TYPE.get(str(config.get("model_type")), "")
    return MappingProxyType(DEFAULTS.get(name.removesuffix("Fast"), {}))
