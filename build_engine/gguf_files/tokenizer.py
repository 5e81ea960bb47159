"""The tokenizer and the chat template that a GGUF file's metadata describe, as a checkpoint's files.

It is built from the metadata, since what transformers derives from a GGUF file neither splits as the model was trained
(SmolLM2's digits) nor leaves out a BOS that the metadata says not to add.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from build_engine.errors import UserMistake

Metadata = Mapping[str, Any]

CONTROL, USER_DEFINED = 3, 4
"""GGUF's types of tokens: those that carry no text, and those that are found in a text before anything else."""

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {"qwen2": _WORDS.format(digits=""), "llama-bpe": _WORDS.format(digits="{1,3}")}
"""GGUF's names of pre-tokenizers → the expression whose matches are words: digits stand alone or in threes."""

KNOWN = ("smollm", "gpt-2", *SPLITS)


def write_tokenizer(metadata: Metadata, folder: Path, file: str, context: int) -> None:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json into ``folder``.

    ``context`` is the model's length in tokens. Raises `UserMistake` where the metadata describe a tokenizer that is
    not known here.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise UserMistake(
            f"{file} has a tokenizer of the kind {kind}; gpt2 and llama are read: give the Hugging Face checkpoint it "
            "was made from"
        )
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    tokenizer = _byte_level(metadata, tokens, file) if kind == "gpt2" else _sentence_pieces(metadata, tokens)
    _add_tokens(tokenizer, metadata, tokens)
    if tokenizer.get_vocab_size() != len(tokens):
        raise UserMistake(f"{file} lists {len(tokens)} tokens and {tokenizer.get_vocab_size()} of them differ")
    named = _named(metadata, tokens)
    _add_ends(tokenizer, metadata, named)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "special_tokens_map.json", named)
    config: dict[str, Any] = {
        "add_bos_token": bool(metadata.get("tokenizer.ggml.add_bos_token", kind == "llama")),
        "add_prefix_space": False,
        **named,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "tokenizer_class": "GPT2Tokenizer" if kind == "gpt2" else "PreTrainedTokenizerFast",
    }
    if isinstance(metadata.get("tokenizer.chat_template"), str):
        config["chat_template"] = metadata["tokenizer.chat_template"]
    _write_json(folder / "tokenizer_config.json", config)


def end_ids(metadata: Metadata) -> dict[str, Any]:
    """bos_token_id, eos_token_id … for config.json; a turn's end (EOT) ends a text as well."""
    found: dict[str, Any] = {}
    for name, key in (("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")):
        number = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if number is not None:
            found[name] = int(number)
    turn = metadata.get("tokenizer.ggml.eot_token_id")
    if turn is not None and "eos_token_id" in found and int(turn) != found["eos_token_id"]:
        found["eos_token_id"] = [found["eos_token_id"], int(turn)]
    return found


def _byte_level(metadata: Metadata, tokens: Sequence[str], file: str) -> Any:
    """GPT-2's: bytes as letters, merges by rank; what a word is depends on the model it was trained for."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pre = metadata.get("tokenizer.ggml.pre", "default")
    if pre not in KNOWN:
        raise UserMistake(
            f"{file} splits words as {pre} does; {', '.join(KNOWN)} are known: give the Hugging Face checkpoint it was "
            "made from"
        )
    merges = [cast("tuple[str, str]", tuple(merge.split(" "))) for merge in metadata["tokenizer.ggml.merges"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre == "llama-bpe"))
    if pre in SPLITS:
        words = pre_tokenizers.Split(Regex(SPLITS[pre]), "isolated")
        bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, bytes_only])
    else:
        bytes_and_words = pre_tokenizers.ByteLevel(add_prefix_space=False)
        digits = [pre_tokenizers.Digits(individual_digits=True)] if pre == "smollm" else []
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, bytes_and_words])
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_pieces(metadata: Metadata, tokens: Sequence[str]) -> Any:
    """SentencePiece's BPE: blanks as ▁, merges by score, unknown characters as bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocabulary = {token: index for index, token in enumerate(tokens)}
    unknown = tokens[int(metadata.get("tokenizer.ggml.unknown_token_id", 0))]
    merges = merges_of(tokens, metadata["tokenizer.ggml.scores"], vocabulary)
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    prefixed = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    blanks = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), blanks]) if prefixed else blanks
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if prefixed else [])])
    return tokenizer


def merges_of(tokens: Sequence[str], scores: Sequence[float], vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """Every pair of tokens that makes a token, the best first: a pair is as good as the score of what it makes."""
    pairs = []
    for token, score in zip(tokens, scores, strict=True):
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocabulary and right in vocabulary:
                pairs.append((-score, len(left), left, right))
    pairs.sort(key=lambda pair: pair[:2])
    return [(left, right) for _, _, left, right in pairs]


def _add_tokens(tokenizer: Any, metadata: Metadata, tokens: Sequence[str]) -> None:
    from tokenizers import AddedToken

    types: list[int] = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    defined = [token for token, kind in zip(tokens, types, strict=True) if kind == USER_DEFINED]
    blanks = metadata.get("tokenizer.ggml.model") == "llama"  # runs of ▁ are found after blanks have become ▁
    tokenizer.add_tokens([AddedToken(token, normalized=blanks, special=False) for token in defined])


def _named(metadata: Metadata, tokens: Sequence[str]) -> dict[str, str]:
    keys = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    numbers = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in keys.items()}
    return {name: tokens[int(number)] for name, number in numbers.items() if number is not None}


def _add_ends(tokenizer: Any, metadata: Metadata, named: Mapping[str, str]) -> None:
    """BOS and EOS around a text, where the metadata ask for them."""
    from tokenizers import processors

    sentence_pieces = metadata.get("tokenizer.ggml.model") == "llama"
    before = "bos_token" in named and bool(metadata.get("tokenizer.ggml.add_bos_token", sentence_pieces))
    after = "eos_token" in named and bool(metadata.get("tokenizer.ggml.add_eos_token", False))
    words = [*([named["bos_token"]] if before else []), "$A", *([named["eos_token"]] if after else [])]
    if len(words) > 1:
        special = [(word, tokenizer.token_to_id(word)) for word in words if word != "$A"]
        tokenizer.post_processor = processors.TemplateProcessing(single=" ".join(words), special_tokens=special)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
