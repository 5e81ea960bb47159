"""A checkpoint as transformers loads it, with every weight from its files: the one place where one is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from build_engine.errors import UserMistake
from build_engine.weights_check import check_report


def dtype_word(version: str) -> str:
    """What `from_pretrained` of transformers ``version`` calls the type of the weights: ``dtype`` from 4.56 on.

    Older ones hand it to the model, which refuses it; images with TensorRT-LLM 0.21 and 1.0 have such a release.
    """
    major, minor = (int(part) for part in version.split(".")[:2])
    return "dtype" if (major, minor) >= (4, 56) else "torch_dtype"


def load_model(staged: Path, dtype: Any = "auto") -> Any:
    """The model of ``staged`` in ``dtype`` ("auto": its own), for inference.

    Raises `UserMistake` where it cannot be loaded, or where a weight was not found, not known or of another shape.
    """
    from transformers import AutoModelForCausalLM, __version__

    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            staged,
            **{dtype_word(__version__): dtype},
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
