"""What guided decoding on engines needs of a tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class TransformersTokenizer:
    """Holds the folder of a tokenizer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def from_pretrained(cls, pretrained_model_dir: str, **_: Any) -> TransformersTokenizer:
        """Raises `OSError` where the folder has no tokenizer."""
        if not (Path(pretrained_model_dir) / "tokenizer.json").is_file():
            raise OSError(f"{pretrained_model_dir} has no tokenizer")
        return cls(Path(pretrained_model_dir))


def _xgrammar_tokenizer_info(tokenizer: TransformersTokenizer) -> dict[str, Any]:
    """Keyword arguments for GuidedDecodingConfig; [None] where the tokenizer has no end token (tokenizer.py)."""
    text = (tokenizer.folder / "tokenizer.json").read_text()
    config = tokenizer.folder / "tokenizer_config.json"
    named = json.loads(config.read_text()).get("eos_token") if config.is_file() else None
    return {"encoded_vocab": ["a", "b"], "tokenizer_str": text, "stop_token_ids": [0 if named else None]}
