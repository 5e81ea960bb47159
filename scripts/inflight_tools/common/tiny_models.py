"""Tiny random checkpoints of real transformers classes, with a real byte-level tokenizer, for tests of the builder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TEXT = [
    "The quick brown fox jumps over the lazy dog, and then it sleeps.",
    "A language model predicts the next token from all the tokens before it.",
    "Numbers like 12,345.67 and dates like 2024-01-02 are tokens as well.",
]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def write_tokenizer(directory: Path, vocab_size: int, texts: list[str] | None = None) -> None:
    """A byte-level BPE tokenizer with at most ``vocab_size`` tokens (at least 259)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(texts or TEXT, trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


LLAMA = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
    "eos_token_id": 2,
    "bos_token_id": 1,
    "pad_token_id": 0,
}


def write_checkpoint(directory: Path, model_type: str = "llama", *, dtype: str = "float32", **changes: Any) -> Path:
    """Save a random model of ``model_type`` (seeded, so that two calls write the same weights)."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    directory.mkdir(parents=True, exist_ok=True)
    config = AutoConfig.for_model(model_type, **{**LLAMA, **changes})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)  # far from uniform logits, so that faults show
        else:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.to(getattr(torch, dtype)).save_pretrained(directory)
    write_tokenizer(directory, LLAMA["vocab_size"])
    return directory


def write_config(directory: Path, **changes: Any) -> Path:
    """Only a ``config.json`` of a Llama model, for what needs no weights."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", **LLAMA, **changes}
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


def train_checkpoint(directory: Path, *, steps: int = 220, **changes: Any) -> Path:
    """A small Llama trained at full precision on the packaged English text until it predicts that text well.

    It takes about half a minute on two cores and gives what random weights cannot: a perplexity that a wrong scale,
    a swapped projection or a wrong rotary base makes far worse. Saved in bfloat16, which it is rounded to first.
    """
    import torch
    from tokenizers import Tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    from build_engine.verification import corpus

    directory.mkdir(parents=True, exist_ok=True)
    text = corpus.evaluation().text[:24_000]
    shape = {
        **LLAMA,
        "vocab_size": 512,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "rope_theta": 2_000.0,
        "tie_word_embeddings": False,
        **changes,
    }
    write_tokenizer(directory, shape["vocab_size"], [text])
    ids = torch.tensor(Tokenizer.from_file(str(directory / "tokenizer.json")).encode(text).ids)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**shape))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    random = torch.Generator().manual_seed(0)
    for _ in range(steps):
        starts = torch.randint(0, len(ids) - 129, (12,), generator=random)
        batch = torch.stack([ids[start : start + 128] for start in starts.tolist()])
        loss = model(batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.to(torch.bfloat16).save_pretrained(directory)
    (directory / "text.txt").write_text(text, encoding="utf-8")
    return directory
