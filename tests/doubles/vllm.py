"""What tests on the real vLLM need: its Python, and tiny checkpoints whose answers are known.

The checkpoints' attention and MLP add nothing, so the next token depends on the last one alone: `follow` says which it
is. They are real Llama checkpoints all the same, and vLLM computes every layer of them.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from inflight_tools.common.layout import CACHE, REPOSITORY

INSTALL = "scripts/install_vllm.sh"
HEAD = 32
HIDDEN = 128
RANK, ALPHA = 8, 16.0  # of adapters
SHARPNESS = 24.0  # logit of a token that has no rivals; all that may not follow have 0
OPTIONS = {"enforce_eager": True, "dtype": "float32", "threads": 1}


def vllm_python() -> Path:
    """The Python that vLLM is installed for. Skips the test where there is none."""
    path = Path(os.environ.get("INFLIGHT_VLLM_PYTHON", CACHE / "vllm" / "bin" / "python"))
    if not path.exists():
        pytest.skip(f"vLLM is not installed: {INSTALL}")
    return path


def model_parameters(options: dict[str, Any] | None = None, **parameters: Any) -> dict[str, Any]:
    """Parameters of config.pbtxt for a tiny checkpoint on vLLM."""
    return {
        "engine": "vllm",
        "engine_python": str(vllm_python()),
        "engine_options": {**OPTIONS, "kv_cache_gb": 0.25, **(options or {})},
        **parameters,
    }


def drive(what: str, *arguments: str) -> dict[str, Any]:
    """tests/doubles/vllm_drive.py under vLLM's Python."""
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY / 'python_backend'}:{REPOSITORY}"}
    command = [str(vllm_python()), "-m", "tests.doubles.vllm_drive", what, *arguments]
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def write_adapter(folder: Path, rank: int = RANK, strength: float = 0.05) -> Path:
    """A LoRA adapter of random weights for every query projection of SmolLM2."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    torch.manual_seed(1)
    tensors = {}
    for layer in range(30):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj."
        tensors[name + "lora_A.weight"] = torch.randn(rank, 576) * strength
        tensors[name + "lora_B.weight"] = torch.randn(576, rank) * strength
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": ALPHA, "target_modules": ["q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "task_type": "CAUSAL_LM"}))
    return folder


Follow = dict[int, dict[int, float]]
"""token → what may follow it, with weights: the heaviest is the greedy choice."""


def write_chain(
    folder: Path, tokenizer: Path, follow: Follow, *, layers: int = 1, context: int = 512, eos: int = 1
) -> Path:
    """A checkpoint of such a chain, with the tokenizer files of `tokenizer`. At most `HIDDEN` tokens may follow any."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in tokenizer.iterdir():
        shutil.copy(path, folder / path.name)
    _plain_tokens(folder / "tokenizer_config.json")
    vocabulary = json.loads((tokenizer / "tokenizer.json").read_text())
    numbers = [*vocabulary["model"]["vocab"].values(), *(token["id"] for token in vocabulary["added_tokens"])]
    size = -(-(1 + max(numbers)) // 8) * 8
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": size,
        "hidden_size": HIDDEN,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": layers,
        "num_attention_heads": HIDDEN // HEAD,
        "num_key_value_heads": 1,
        "head_dim": HEAD,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": context,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "bos_token_id": 0,
        "eos_token_id": eos,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    random = np.random.default_rng(7)
    followers = sorted({following for token in range(size) for following in follow[token]})
    orthogonal, _ = np.linalg.qr(random.standard_normal((HIDDEN, HIDDEN)))
    codes = dict(zip(followers, orthogonal.astype(np.float32) * np.sqrt(HIDDEN), strict=False))
    embedding = np.zeros((size, HIDDEN), np.float32)  # a token is embedded as what follows it
    for token in range(size):
        for following, weight in follow[token].items():
            embedding[token] += weight * codes[following]
    head = np.zeros_like(embedding)
    for following in followers:
        head[following] = codes[following] * (SHARPNESS / HIDDEN)
    tensors = {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": np.ones(HIDDEN, np.float32),
        "lm_head.weight": head,
    }
    for layer in range(layers):
        name = f"model.layers.{layer}."
        tensors |= {
            name + "input_layernorm.weight": np.ones(HIDDEN, np.float32),
            name + "post_attention_layernorm.weight": np.ones(HIDDEN, np.float32),
            name + "self_attn.q_proj.weight": _random(random, HIDDEN, HIDDEN),
            name + "self_attn.k_proj.weight": _random(random, HEAD, HIDDEN),
            name + "self_attn.v_proj.weight": _random(random, HEAD, HIDDEN),
            name + "self_attn.o_proj.weight": np.zeros((HIDDEN, HIDDEN), np.float32),
            name + "mlp.gate_proj.weight": _random(random, HIDDEN, HIDDEN),
            name + "mlp.up_proj.weight": _random(random, HIDDEN, HIDDEN),
            name + "mlp.down_proj.weight": np.zeros((HIDDEN, HIDDEN), np.float32),
        }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _plain_tokens(path: Path) -> None:
    """Special tokens as plain text: transformers 5 refuses them as objects that do not say what they are."""
    content = json.loads(path.read_text(encoding="utf-8"))
    plain = {
        name: value["content"] for name, value in content.items() if isinstance(value, dict) and "content" in value
    }
    path.write_text(json.dumps({**content, **plain, "tokenizer_class": "PreTrainedTokenizerFast"}), encoding="utf-8")


def _random(random: np.random.Generator, rows: int, columns: int) -> Any:
    return (random.standard_normal((rows, columns)) / 8).astype(np.float32)


def readable_tokens(tokenizer: Path) -> list[int]:
    """Tokens that are plain ASCII letters, in the order of their ids."""
    vocabulary = json.loads((tokenizer / "tokenizer.json").read_text())["model"]["vocab"]
    return sorted(number for text, number in vocabulary.items() if text.isascii() and text.isalpha())


def cycle(tokenizer: Path) -> Follow:
    """Readable tokens for ever. The greedy choice has rivals, so that what is drawn is soon something else."""
    tokens = readable_tokens(tokenizer)
    order = [int(token) for token in np.random.default_rng(3).permutation(tokens)]

    def after(place: int) -> dict[int, float]:
        return {order[(place + step) % len(order)]: 1.0 if step == 1 else 0.95 for step in range(1, 9)}

    places = {token: place for place, token in enumerate(order)}
    return {token: after(places.get(token, token % len(order))) for token in range(1000)}


def ending(tokenizer: Path, length: int, eos: int = 1) -> Follow:
    """An answer of `length` tokens, the last of which is the end-of-sequence token, after any prompt that ends with
    none of them; where the end may not come yet, all of it once more.
    """
    words = [token for token in readable_tokens(tokenizer) if token > 255][-(length - 1) :]
    follow: Follow = {token: {words[0]: 1.0} for token in range(1000)}
    follow |= {token: {following: 1.0} for token, following in itertools.pairwise(words)}
    return {**follow, words[-1]: {eos: 1.0, words[0]: 0.5}}
