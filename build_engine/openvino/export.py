"""Stage ``openvino.export``: a Hugging Face checkpoint into a compressed OpenVINO IR with tokenizer models.

Runs in a child process (see `build_engine.stages`).
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from build_engine import calibration
from build_engine.errors import StageFailure
from build_engine.folds import FOLDS
from build_engine.loading import load_model
from build_engine.openvino.merge import merge_projections
from build_engine.openvino.narrow import narrow_products
from build_engine.openvino.zero_points import fold_zero_points

MODEL_XML = "openvino_model.xml"
EXPORTED = "exported"
CALIBRATION_WINDOW = 128
BATCH = 8  # windows at a time
CONVERT_SHARE = 0.55
"""Share of the stage's time that loading and converting take; the rest is compression (SmolLM2-135M, int8)."""


class Report(Protocol):
    def __call__(self, fraction: float | None, note: str = "") -> None: ...
    def warn(self, message: str) -> None: ...


def run(spec: dict[str, Any], report: Report) -> dict[str, Any]:
    """Export ``spec["staged"]`` into ``spec["output"]``.

    ``compression`` holds the arguments of ``nncf.compress_weights`` (or None), ``smoothquant_alpha`` how much is moved
    from activations to weights before (None: nothing), ``activation_group`` how many activations are to share a scale
    (None: OpenVINO's default), ``widens`` whether the processor that serves makes 32-bit numbers of stored integers.
    Returns the package versions used, whether the tokenizer models were written, which layers were merged (a count
    each) or left apart (a count for each reason), and what was done for such a processor (a count each).
    """
    warnings.simplefilter("ignore")
    staged, output, scratch = Path(spec["staged"]), Path(spec["output"]), Path(spec["scratch"])
    report(None, "loading")
    rows = calibration.windows(spec, CALIBRATION_WINDOW) if "calibration_text" in spec else []
    alpha = spec["smoothquant_alpha"]
    exported = convert(staged, scratch / EXPORTED, report, rows, alpha)
    items = calibration_items(rows) if rows and alpha is None else None
    group, widens = spec["activation_group"], spec["widens"]
    merged = compress(exported, output / MODEL_XML, spec["compression"], report, items, group, widens)
    report(0.97, "tokenizer")
    tokenizer_problem = write_tokenizers(staged, output)
    report(1.0)
    return {"tokenizer_problem": tokenizer_problem, "packages": versions(), **merged}


def convert(
    staged: Path, directory: Path, report: Report, rows: Sequence[Sequence[int]] = (), alpha: float | None = None
) -> Path:
    """Trace the model in its own precision, smoothed over ``rows`` if there is an ``alpha``, and save it as IR.

    Returns the path of the XML.
    """
    import torch
    from optimum.exporters.openvino.convert import export_from_model

    model = load_model(staged)
    if alpha is not None:
        smoothen(model, rows, alpha, report)
    report(None, "converting")
    half = next(model.parameters()).dtype in (torch.float16, torch.bfloat16)
    with torch.no_grad():
        export_from_model(model, directory, task="text-generation-with-past", stateful=True, patch_16bit_model=half)
    del model
    gc.collect()
    path = directory / MODEL_XML
    if not path.is_file():
        raise StageFailure(f"the export wrote no {MODEL_XML}")
    report(CONVERT_SHARE, "converted")
    return path


def smoothen(model: Any, rows: Sequence[Sequence[int]], alpha: float, report: Report) -> None:
    """SmoothQuant in place. Root mean squares serve activations with a scale per group better than peaks do."""
    import torch

    from build_engine import smoothing

    folds = FOLDS[model.config.model_type]
    method = smoothing.Method(alpha, folds, statistic="rms", powers_of_two=True)
    windows = [torch.tensor(rows[start : start + BATCH]) for start in range(0, len(rows), BATCH)]
    with torch.no_grad():
        report(None, "calibrating")
        ranges = smoothing.input_ranges(model, windows, method, lambda _share: None)
        places = smoothing.smooth(model, ranges, method)
    if places != len(folds) * model.config.num_hidden_layers:
        raise StageFailure(f"{places} places were smoothed, not {len(folds)} in each layer")


def calibration_items(rows: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """Inputs of the exported model, one window of the calibration text each."""
    import numpy as np

    position = np.arange(CALIBRATION_WINDOW, dtype=np.int64)[None]
    return [
        {
            "input_ids": np.array([row], dtype=np.int64),
            "attention_mask": np.ones_like(position),
            "position_ids": position,
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
        for row in rows
    ]


def compress(
    source: Path,
    destination: Path,
    arguments: dict[str, Any] | None,
    report: Report,
    items: list[dict[str, Any]] | None = None,
    activation_group: int | None = None,
    widens: bool = False,
) -> dict[str, Any]:
    """Compress the weights of the IR at ``source``, merge layers, save at ``destination``; ``items`` calibrate.

    Returns what was ``merged`` and what was left ``apart``, and why, with how many there are of each, and of how many
    products zero points were ``folded`` and how many were ``cut``: that is for a processor that ``widens`` integers.
    """
    import nncf
    import openvino as ov

    model = ov.Core().read_model(source)
    if arguments is not None:
        hook_progress(report)
        options = dict(arguments)
        options["mode"] = nncf.CompressWeightsMode(options["mode"])
        if items is not None:
            names = {name for port in model.inputs for name in port.get_names()}
            kept = [{name: value for name, value in item.items() if name in names} for item in items]
            options.update(dataset=nncf.Dataset(kept), subset_size=len(kept))
        model = nncf.compress_weights(model, **options)
    report(0.93, "saving")
    merged = merge_projections(model)
    folded = fold_zero_points(model) if widens else 0
    cut = narrow_products(model) if widens else 0
    if activation_group is not None:  # whoever loads the model gets it, unless they ask for another
        model.set_rt_info(str(activation_group), ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"])
    ov.save_model(model, destination, compress_to_fp16=False)
    return {"merged": dict(merged.done), "apart": dict(merged.apart), "folded": folded, "cut": cut}


def hook_progress(report: Report) -> None:
    """Nncf draws its own bar with rich; pass its fraction on instead (its output goes to the log anyway)."""
    from rich.progress import Progress

    original = Progress.advance

    def advance(self: Progress, task_id: Any, advance: float = 1) -> None:
        original(self, task_id, advance)
        task = self.tasks[-1]
        if task.total:
            done = min(1.0, task.completed / task.total)
            report(CONVERT_SHARE + (0.93 - CONVERT_SHARE) * done, task.description.lower())

    Progress.advance = advance  # type: ignore[method-assign]


def write_tokenizers(staged: Path, output: Path) -> str | None:
    """Write OpenVINO tokenizer and detokenizer models; returns why not, in one phrase, when it cannot.

    OpenVINO GenAI needs them to compile grammars; the backend itself tokenizes with ``tokenizer.json``. They are
    checked against the tokenizer on a few strings, because a wrong one would be worse than none.
    """
    import openvino as ov
    from transformers import AutoTokenizer

    try:
        from openvino_tokenizers import convert_tokenizer

        tokenizer = AutoTokenizer.from_pretrained(staged, trust_remote_code=False)
        tokenizer.padding_side = tokenizer.truncation_side = "left"
        encoder, decoder = convert_tokenizer(tokenizer, with_detokenizer=True)
    except Exception as error:  # noqa: BLE001 (openvino_tokenizers raises whatever its C++ side does)
        import traceback

        traceback.print_exc()
        return f"openvino_tokenizers cannot convert this tokenizer ({_first_line(error)})"
    core = ov.Core()
    encode, decode = core.compile_model(encoder, "CPU"), core.compile_model(decoder, "CPU")
    for text in PROBE_TEXTS:
        expected = tokenizer(text, add_special_tokens=True)["input_ids"]
        got = [int(token) for token in encode([text])["input_ids"][0]]
        if got != expected:
            return f"the converted tokenizer differs from the original on {text!r}"
        plain = tokenizer.decode(expected, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if str(decode([got])[0][0]) != plain:
            return f"the converted detokenizer differs from the original on {text!r}"
    ov.save_model(encoder, output / "openvino_tokenizer.xml")
    ov.save_model(decoder, output / "openvino_detokenizer.xml")
    return None


PROBE_TEXTS = (
    "Hello, world!",
    "  two spaces, a\ttab\nand 12,345.67 numbers",
    "naïve café — “quotes” 日本語 😀",
    '{"key": [1, 2.5, null], "x_y": "z"}',
)


def versions() -> dict[str, str]:
    from importlib import metadata

    names = ("openvino", "openvino-tokenizers", "nncf", "optimum-intel", "transformers", "torch")
    return {name: metadata.version(name) for name in names}


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
