"""Stage ``tensorrt.checkpoint``: calibrate and quantize with ModelOpt and write the per-rank checkpoint.

Runs in a child process (see `build_engine.stages`); needs no GPU and no TensorRT-LLM.
"""

from __future__ import annotations

import copy
import gc
import json
import warnings
from pathlib import Path
from typing import Any, Protocol

from build_engine import calibration, devices, hf_config
from build_engine.errors import StageFailure
from build_engine.loading import load_model
from build_engine.planning.roofline import Parallel
from build_engine.tensorrt import config as checkpoint_config
from build_engine.tensorrt.recipes import KV_ALGOS, RECIPES

DECODER_TYPES = {
    "llama": "llama",
    "mistral": "llama",
    "mixtral": "llama",
    "qwen2": "qwen",
    "qwen3": "qwen",
    "qwen2_moe": "qwen",
}
"""ModelOpt's name for each model type that this target builds."""

WINDOW = 512
BATCH = 4
RANGES_FILE = "calibration.json"


class Report(Protocol):
    def __call__(self, fraction: float | None, note: str = "") -> None: ...
    def warn(self, message: str) -> None: ...


def run(spec: dict[str, Any], report: Report) -> dict[str, Any]:
    """Write ``config.json`` and ``rank*.safetensors`` into ``spec["output"]``.

    Returns the corrections made to the exporter's configuration, the number of calibration tokens and versions.
    """
    warnings.simplefilter("ignore")
    import torch

    staged, output = Path(spec["staged"]), Path(spec["output"])
    config = hf_config.load(staged)
    parallel = Parallel(spec["tensor"], spec["pipeline"])
    recipe = RECIPES[spec["recipe"]]
    report(None, "loading")
    model = load_model(staged)
    dtype = next(model.parameters()).dtype
    if dtype not in (torch.float16, torch.bfloat16):
        dtype = torch.float16
        model = model.to(dtype)
    tokens = 0
    if recipe.preset is not None or spec["kv_cache"] != "none":
        tokens = calibrate(model, spec, report)
    ranges = calibrated_ranges(model)
    report(None, "writing the checkpoint")
    export(model, DECODER_TYPES[config.model_type], dtype, output, parallel)
    (output / RANGES_FILE).write_text(json.dumps(ranges, indent=1) + "\n", encoding="utf-8")
    del model
    gc.collect()
    corrections = correct_files(output, config, parallel, spec)
    report(1.0)
    return {"corrections": corrections, "calibration_tokens": tokens, "packages": versions()}


def calibrate(model: Any, spec: dict[str, Any], report: Report) -> int:
    """Quantize ``model`` in place with ModelOpt on the calibration text; returns how many tokens it saw."""
    import modelopt.torch.quantization as mtq
    import torch

    device = devices.choose(spec.get("device", "cpu"), devices.tensor_bytes(model), report.warn)
    windows = devices.moved(calibration_windows(spec), device)
    settings = make_settings(mtq, spec)
    model.to(device)
    rounds = {"seen": 0, "planned": (2 if spec["recipe"] in ("int4-awq", "w4a8-awq") else 1) * len(windows)}

    def forward(quantized: Any) -> None:
        for window in windows:
            quantized(window, use_cache=False, logits_to_keep=1)  # nobody looks at the logits, and all would be large
            rounds["seen"] += 1
            report(min(0.9, 0.9 * rounds["seen"] / rounds["planned"]), "calibrating")

    with torch.no_grad():
        mtq.quantize(model, settings, forward)
    model.to("cpu")  # where the exporter has been tried
    return sum(window.numel() for window in windows)


def calibrated_ranges(model: Any) -> dict[str, float]:
    """The largest absolute input of each quantized layer, and of keys and values, as the calibration saw them.

    They are kept beside the checkpoint, so that its scales can be compared with them.
    """
    found = {}
    for name, module in model.named_modules():
        parent, _, kind = name.rpartition(".")
        if (
            kind in ("input_quantizer", "k_bmm_quantizer", "v_bmm_quantizer")
            and getattr(module, "amax", None) is not None
        ):
            found[parent if kind == "input_quantizer" else f"{parent}.{kind[0]}_bmm"] = float(module.amax.max())
    return found


def read_ranges(directory: Path) -> dict[str, float] | None:
    """What `calibrated_ranges` found when this checkpoint was made; None for those of before."""
    try:
        found: dict[str, float] = json.loads((directory / RANGES_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StageFailure(f"{RANGES_FILE} of the checkpoint cannot be read ({error}): build it again") from None
    return found


def calibration_windows(spec: dict[str, Any]) -> list[Any]:
    """Batches of token ids [batch, window] from the calibration text, at most ``spec["calibration_tokens"]``."""
    import torch

    rows = calibration.windows(spec, min(WINDOW, spec["max_seq_len"]))
    return [torch.tensor(rows[start : start + BATCH]) for start in range(0, len(rows), BATCH)]


def make_settings(mtq: Any, spec: dict[str, Any]) -> dict[str, Any]:
    """ModelOpt's configuration for the recipe: its preset, our group size and alpha, and the KV cache.

    Presets are lists of rules since 0.47 and dictionaries by pattern before; both are handled.
    """
    preset = RECIPES[spec["recipe"]].preset
    if preset is not None:
        settings = copy.deepcopy(getattr(mtq, preset))
    else:
        settings = {"quant_cfg": copy.deepcopy(mtq.FP8_KV_CFG)["quant_cfg"], "algorithm": "max"}
        if isinstance(settings["quant_cfg"], list):
            settings["quant_cfg"] = [{"quantizer_name": "*", "enable": False}]
        else:
            settings["quant_cfg"] = {"default": {"enable": False}}
    if spec["group_size"]:
        set_group_size(settings["quant_cfg"], spec["group_size"])
    if spec["recipe"] == "int8-sq":
        settings["algorithm"] = {"method": "smoothquant", "alpha": spec["alpha"]}
    if spec["kv_cache"] != "none":
        bits: Any = (4, 3) if spec["kv_cache"] == "fp8" else 8
        rule = {"num_bits": bits, "axis": None}
        if isinstance(settings["quant_cfg"], list):
            settings["quant_cfg"].append({"quantizer_name": "*[kv]_bmm_quantizer", "cfg": rule})
        else:
            settings["quant_cfg"]["*[kv]_bmm_quantizer"] = {**rule, "enable": True}
    return dict(settings)


def set_group_size(rules: Any, size: int) -> None:
    """Replace the block size in every rule that has one, however deep it is nested."""
    if isinstance(rules, dict):
        if isinstance(rules.get("block_sizes"), dict) and -1 in rules["block_sizes"]:
            rules["block_sizes"] = {**rules["block_sizes"], -1: size}
        for value in rules.values():
            set_group_size(value, size)
    elif isinstance(rules, list):
        for value in rules:
            set_group_size(value, size)


def export(model: Any, decoder: str, dtype: Any, output: Path, parallel: Parallel) -> None:
    """Run ModelOpt's exporter; its refusals become one sentence."""
    import torch
    from modelopt.torch.export import export_tensorrt_llm_checkpoint

    try:
        with torch.no_grad():
            export_tensorrt_llm_checkpoint(
                model,
                decoder,
                dtype,
                export_dir=output,
                inference_tensor_parallel=parallel.tensor,
                inference_pipeline_parallel=parallel.pipeline,
            )
    except (NotImplementedError, AssertionError, RuntimeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise StageFailure(f"ModelOpt cannot export this model: {first[:300]}") from error


def correct_files(output: Path, config: hf_config.ModelConfig, parallel: Parallel, spec: dict[str, Any]) -> list[str]:
    """Rewrite ``config.json`` from the source's configuration, with what it cannot say in a file beside it; drop the
    exporter's ``quant_cfg.json``.
    """
    path = output / "config.json"
    written = json.loads(path.read_text(encoding="utf-8"))
    algo, kv_algo = RECIPES[spec["recipe"]].algo, KV_ALGOS[spec["kv_cache"]]
    fixed, differences = checkpoint_config.correct(written, config, parallel, algo, kv_algo)
    path.write_text(json.dumps(fixed, indent=2) + "\n", encoding="utf-8")
    beside = {checkpoint_config.WINDOWS: checkpoint_config.attention_windows(config)}
    (output / checkpoint_config.FLAGS_FILE).write_text(json.dumps(beside) + "\n", encoding="utf-8")
    (output / "quant_cfg.json").unlink(missing_ok=True)  # only read for mixed precision, which no recipe here is
    ranks = {f"rank{rank}.safetensors" for rank in range(parallel.gpus)}
    found = {entry.name for entry in output.glob("rank*.safetensors")}
    if ranks != found:
        raise StageFailure(f"the exporter wrote {sorted(found)} for {parallel.gpus} ranks")
    return differences


def versions() -> dict[str, str]:
    from importlib import metadata

    return {name: metadata.version(name) for name in ("nvidia-modelopt", "transformers", "torch")}
