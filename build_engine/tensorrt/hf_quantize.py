"""Stage ``tensorrt.hf_checkpoint``: calibrate with ModelOpt and write a quantized Hugging Face-style checkpoint.

That is what ``tensorrt_llm.LLM`` loads in releases without compiled engines. Runs in a child process.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from build_engine.errors import StageFailure
from build_engine.loading import load_model
from build_engine.tensorrt.quantize import Report, calibrate, versions


def run(spec: dict[str, Any], report: Report) -> dict[str, Any]:
    """Write ``config.json``, ``hf_quant_config.json`` and safetensors into ``spec["output"]``."""
    warnings.simplefilter("ignore")
    import torch
    from modelopt.torch.export import export_hf_checkpoint

    report(None, "loading")
    model = load_model(Path(spec["staged"]))
    if next(model.parameters()).dtype == torch.float32:
        model = model.to(torch.float16)
    tokens = calibrate(model, spec, report)
    report(None, "writing the checkpoint")
    output = Path(spec["output"])
    try:
        with torch.no_grad():
            export_hf_checkpoint(model, export_dir=output)
    except (NotImplementedError, AssertionError, RuntimeError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise StageFailure(f"ModelOpt cannot export this model: {first[:300]}") from error
    if not (output / "hf_quant_config.json").is_file():
        raise StageFailure("ModelOpt wrote no hf_quant_config.json")
    report(1.0)
    return {"calibration_tokens": tokens, "packages": versions()}
