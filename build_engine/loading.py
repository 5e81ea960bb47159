"""A checkpoint as transformers loads it, with every weight from its files: the one place where one is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from build_engine.errors import UserMistake
from build_engine.weights_check import check_report


def load_model(staged: Path, dtype: Any = "auto") -> Any:
    """The model of ``staged`` in ``dtype`` ("auto": its own), for inference.

    Raises `UserMistake` where it cannot be loaded, or where a weight was not found, not known or of another shape.
    """
    from transformers import AutoModelForCausalLM

    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            staged,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            low_cpu_mem_usage=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # not ignored: reported with their names, and refused
        )
    except (OSError, ValueError, KeyError) as error:
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]
        raise UserMistake(f"transformers cannot load the checkpoint: {last}") from error
    check_report(report)
    return model.eval()
