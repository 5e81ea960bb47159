"""vLLM's grammar compiler, xgrammar, away from the engine.

vLLM compiles in threads of the engine process, half as many as it has processors, and nothing can end one: a grammar
that takes minutes would keep every guide after it waiting. So each is compiled once here first, under the same Python
with the same tokenizer, where a process can be killed.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from inflight.errors import last_line
from inflight.grammar.nodes import GrammarError
from inflight.model.files import read_json_object

THREADS = 8  # as many as vLLM gives its own


class XgrammarCompiler:
    """See the module's text. Not thread-safe."""

    broken = False  # xgrammar is as good as before after a grammar that failed

    def __init__(self, folder: Path) -> None:
        """Raises `GrammarError` when this model's tokenizer cannot be guided."""
        config = read_json_object(folder, "config.json")
        text = config.get("text_config")
        size = config.get("vocab_size") or (text.get("vocab_size") if isinstance(text, dict) else None)
        try:
            xgrammar: Any = importlib.import_module("xgrammar")
            transformers: Any = importlib.import_module("transformers")
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                str(folder), trust_remote_code=False, local_files_only=True
            )
            known = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=size)
            # Nothing is kept: vLLM keeps what it compiles itself, and a guide comes here once.
            self.vocab_size = int(known.vocab_size)
            self._compiler = xgrammar.GrammarCompiler(known, max_threads=THREADS, cache_enabled=False)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 — a tokenizer can be wrong in many ways
            raise GrammarError(f"cannot be used with this model's tokenizer ({last_line(error)})") from None

    def compile(self, grammar: str) -> None:
        """Raises `GrammarError` with the compiler's own sentence, `MemoryError` when room runs out."""
        try:
            self._compiler.compile_grammar(grammar)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 — the compiler's errors have types of its bindings
            if "bad_alloc" in str(error):
                raise MemoryError from None
            raise GrammarError(f"does not compile: {last_line(error)}") from None

    def close(self) -> None:
        """Free what it holds."""
        self._compiler = None
