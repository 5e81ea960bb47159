"""Tokenizers of every kind that serving has to decode, trained here in a moment on a few lines of text.

Each has a BOS that its post-processor adds, an EOS, and texts of several scripts in its vocabulary.
"""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = (
    "The quick brown fox jumps over the lazy dog, and then it sleeps in the warm sun.",
    "A language model predicts the next token from all of the tokens that came before it.",
    "def add(a, b):\n    return a + b  # the sum\n\n\nprint(add(1, 2))",
    "Übermut tut selten gut; naïve café, 12:34 — 99 % of 1,000.50 €.",
    "Русский текст и ещё немного текста. 日本語のテキスト。 한국어 텍스트",
    "smile 🙂 family 👩‍👩‍👧 flag 🇩🇪 accent e\u0301 o\u0308",
)
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]


@functools.cache
def byte_level() -> Tokenizer:
    """GPT-2, Llama-3, Qwen, SmolLM: byte-level BPE, with a non-special added token that holds a space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|bos|>", "<|eos|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS[:4], trainer)
    tokenizer.add_tokens([AddedToken("<tool call>", special=False, normalized=False)])
    tokenizer.post_processor = _adds_bos(tokenizer, "<|bos|>")
    return tokenizer


@functools.cache
def byte_fallback() -> Tokenizer:
    """Llama-2, Mistral, Gemma: SentencePiece BPE with ▁ for spaces and <0xHH> tokens for what the vocabulary lacks."""
    draft = Tokenizer(models.BPE(unk_token="<unk>"))
    draft.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=260, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    draft.train_from_iterator(CORPUS[:4], trainer)
    model = json.loads(draft.to_str())["model"]
    pieces = [piece for piece, _ in sorted(model["vocab"].items(), key=lambda item: item[1])]
    vocabulary = {piece: place for place, piece in enumerate([*pieces[:3], *BYTE_TOKENS, *pieces[3:]])}
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = _adds_bos(tokenizer, "<s>")
    return tokenizer


@functools.cache
def metaspace() -> Tokenizer:
    """T5, XLM-R, older Phi: SentencePiece unigram with a Metaspace decoder."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = _adds_bos(tokenizer, "<s>")
    return tokenizer


@functools.cache
def word_piece() -> Tokenizer:
    """BERT's kind. It has no bytes per token, so serving decodes it through a window of tokens."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=360, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = _adds_bos(tokenizer, "[CLS]")
    return tokenizer


KINDS = {"byte_level": byte_level, "byte_fallback": byte_fallback, "metaspace": metaspace, "word_piece": word_piece}
WITH_BYTE_TABLE = ("byte_level", "byte_fallback", "metaspace")


def large(size: int) -> Tokenizer:
    """As many tokens as Gemma 3 (262,144) or Qwen 3 (151,936) has: made-up words of one to twelve letters of several
    scripts in a byte-level vocabulary. They are there to be looked at, not to be written: there are no merges.
    """
    rng = random.Random(size)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: place for place, piece in enumerate(["<|bos|>", "<|eos|>", *alphabet])}
    while len(vocabulary) < size:
        letters = rng.choices("etaoinshrdlucmfwypvbgkjqxz", range(26, 0, -1), k=rng.randint(2, 12))
        start = rng.choice(["", "Ġ", "Ġ", rng.choice('":,{[._'), rng.choice(alphabet) + rng.choice(alphabet)])
        vocabulary.setdefault(start + "".join(letters), len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|bos|>", "<|eos|>"])
    return tokenizer


def token_bytes(kind: str, token_ids: Sequence[int]) -> bytes:
    """The bytes that tokens stand for, special ones left out: a second, plain way to decode all kinds but WordPiece."""
    tokenizer = KINDS[kind]()
    special = {token_id for token_id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    pieces = [tokenizer.id_to_token(token_id) for token_id in token_ids if token_id not in special]
    if kind == "byte_level":
        # An encoded text shows each byte as one character, in the order of the bytes.
        shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
        hidden = [byte for byte in range(256) if byte not in shown]
        of_char = {chr(byte): byte for byte in shown} | {chr(256 + place): byte for place, byte in enumerate(hidden)}
        return b"".join(piece.encode() if " " in piece else bytes(of_char[char] for char in piece) for piece in pieces)
    if kind == "byte_fallback":
        return b"".join(
            bytes([int(piece[3:5], 16)]) if piece in BYTE_TOKENS else piece.replace("▁", " ").encode()
            for piece in pieces
        )
    return "".join(pieces).replace("▁", " ").encode()


def _adds_bos(tokenizer: Tokenizer, bos: str) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )


def write_folder(folder: Path, kind: str = "byte_level", chat_template: str | None = None) -> Path:
    """An engine folder for the `simulated` engine: a tokenizer and, where given, a chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = KINDS[kind]()
    tokenizer.save(str(folder / "tokenizer.json"))
    bos, eos = {
        "byte_level": ("<|bos|>", "<|eos|>"),
        "byte_fallback": ("<s>", "</s>"),
        "metaspace": ("<s>", "</s>"),
        "word_piece": ("[CLS]", "[SEP]"),
    }[kind]
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": bos, "eos_token": {"content": eos}}))
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template)
    return folder
