"""Run ``trtllm-build``: flags chosen from the recipe, its log followed with progress, its errors in one sentence."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from build_engine.console import Console
from build_engine.errors import StageFailure, UserMistake
from build_engine.hf_config import ModelConfig
from build_engine.planning.roofline import Parallel
from build_engine.stages import end_process
from build_engine.tensorrt.gpu_kinds import TOO_NEW

PROGRAM = "trtllm-build"
TIMEOUT_S = 6 * 3600.0
"""A compile that takes longer has hung: the largest models take about an hour."""

SPECULATIVE = {"none": None, "draft-tokens-external": "draft_tokens_external", "lookahead": "lookahead_decoding"}
"""Modes that need nothing but the model; Medusa, EAGLE and ReDrafter need draft heads in the checkpoint."""


FP8_ATTENTION = ("fp8", "w4a8-awq")
"""Recipes whose attention can run in FP8, and with it read an FP8 KV cache block by block."""


@dataclass(frozen=True, slots=True)
class CompileLimits:
    """Limits compiled into the engine, in sequences and tokens."""

    max_batch_size: int
    max_input_len: int
    max_seq_len: int
    max_num_tokens: int
    max_beam_width: int
    speculative: str = "none"
    max_draft_len: int = 0


def check_limits(limits: CompileLimits) -> None:
    """Refuse limits that contradict each other; raises `UserMistake`."""
    if limits.max_input_len >= limits.max_seq_len:
        raise UserMistake(
            f"--max-input-len {limits.max_input_len} leaves no room for an answer within "
            f"--max-seq-len {limits.max_seq_len}: lower the first"
        )
    if limits.max_num_tokens < limits.max_batch_size * limits.max_beam_width:
        raise UserMistake(
            f"--max-num-tokens {limits.max_num_tokens} is less than one token for each of "
            f"{limits.max_batch_size} sequences of {limits.max_beam_width} beams: raise it"
        )
    if limits.speculative not in SPECULATIVE:
        raise UserMistake(f"--speculative {limits.speculative} is unknown: it can be {', '.join(SPECULATIVE)}")
    if limits.speculative != "none" and limits.max_beam_width > 1:
        raise UserMistake("--speculative works with --max-beam-width 1 only")
    if (limits.speculative == "none") != (limits.max_draft_len == 0):
        raise UserMistake("--speculative and --max-draft-len go together: give both or neither")


def paged_context(recipe: str, kv_cache: str) -> bool:
    """Whether TensorRT-LLM has paged-context attention for these, on which KV reuse and chunked prefill rest.

    Builders up to 0.2x refuse the flag elsewhere, later ones switch it off with a warning (builder.py, build()).
    """
    return kv_cache == "none" or (kv_cache == "fp8" and recipe in FP8_ATTENTION)


def say_what_lacks(recipe: str, kv_cache: str, console: Console) -> None:
    """Tell the user of an engine that cannot reuse its KV cache."""
    if not paged_context(recipe, kv_cache):
        console.say(
            f"this engine will have neither KV reuse nor chunked prefill: TensorRT-LLM has no paged-context attention "
            f"for {recipe} weights with an {kv_cache.upper()} KV cache; --kv-cache none brings both"
        )


def check_drafts(recipe: str, kv_cache: str, limits: CompileLimits) -> None:
    """Refuse an engine that would verify drafts and could not be loaded; raises `UserMistake`."""
    if limits.speculative == "draft-tokens-external" and not paged_context(recipe, kv_cache):
        raise UserMistake(
            f"--speculative draft-tokens-external needs KV reuse, which an engine with --quantization {recipe} and "
            f"an {kv_cache.upper()} KV cache has not: add --kv-cache none"
        )


def choose_flags(
    config: ModelConfig, recipe: str, kv_cache: str, parallel: Parallel, limits: CompileLimits
) -> dict[str, str]:
    """Flags of ``trtllm-build`` for this recipe, except the directories.

    Only flags that 0.21, 1.0, 1.1 and 1.2 all know are used, and defaults that changed between releases are given:
    paged-context FMHA (needed for KV reuse and chunked prefill) where there is one, and the paged KV cache. The GEMM
    plugin is left to TensorRT for FP8, whose own kernels NVIDIA recommends there; fused MLP exists for 16 bits and FP8;
    FP8 attention in the context phase goes with an FP8 KV cache and FP8 products; reduce-norm fusion and user buffers
    only help between GPUs, and the builder has them for Llama alone.
    """
    fused = parallel.tensor > 1 and config.architecture == "LlamaForCausalLM"
    flags = {
        "max_batch_size": str(limits.max_batch_size),
        "max_input_len": str(limits.max_input_len),
        "max_seq_len": str(limits.max_seq_len),
        "max_num_tokens": str(limits.max_num_tokens),
        "max_beam_width": str(limits.max_beam_width),
        "kv_cache_type": "paged",
        "gpt_attention_plugin": "auto",
        "remove_input_padding": "enable",
        "context_fmha": "enable",
        "use_paged_context_fmha": _switch(paged_context(recipe, kv_cache)),
        "use_fp8_context_fmha": _switch(kv_cache == "fp8" and recipe in FP8_ATTENTION),
        "gemm_plugin": "disable" if recipe == "fp8" else "auto",
        "use_fused_mlp": _switch(recipe in ("none", "fp8") and config.experts is None),
        "multiple_profiles": "enable",
        "reduce_fusion": _switch(fused),
        "user_buffer": _switch(fused and recipe == "fp8"),
        "tokens_per_block": "32",
        "workers": str(parallel.gpus),
        "log_level": "info",
    }
    mode = SPECULATIVE[limits.speculative]
    if mode is not None:
        flags["speculative_decoding_mode"] = mode
        flags["max_draft_len"] = str(limits.max_draft_len)
    return flags


def command(checkpoint: Path | str, output: Path | str, flags: dict[str, str], program: str = PROGRAM) -> list[str]:
    """The whole command line."""
    words = [program, "--checkpoint_dir", str(checkpoint), "--output_dir", str(output)]
    for name, value in flags.items():
        words += [f"--{name}", value]
    return words


def find_program() -> str:
    """The ``trtllm-build`` on PATH; `UserMistake` says where there is one."""
    program = shutil.which(PROGRAM)
    if program is None:
        raise UserMistake(
            f"{PROGRAM} is not on PATH, and only it can compile the engine: run this where TensorRT-LLM up to 1.2 is "
            "installed (a GPU host), or add --stop-after checkpoint and compile there later"
        )
    return program


def run_compiler(
    checkpoint: Path, output: Path, flags: dict[str, str], *, world_size: int, console: Console, log: Path
) -> None:
    """Compile ``checkpoint`` into ``output``; raises `StageFailure` with what went wrong and where the log is."""
    output.mkdir(parents=True, exist_ok=True)
    extra = {**flags, "output_timing_cache": str(log.parent / "model.cache")}  # else it lands where the user stands
    words = command(checkpoint, output, extra, find_program())
    with log.open("ab") as log_file, console.step(f"compiling with {PROGRAM}") as step:
        start = log_file.tell()
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=log_file, stderr=log_file, cwd=log.parent, start_new_session=True
        )
        deadline = time.monotonic() + TIMEOUT_S
        try:
            while process.poll() is None:
                if time.monotonic() > deadline:
                    raise StageFailure(f"{PROGRAM} did not end within {TIMEOUT_S / 3600:.0f} hours (log: {log})")
                fraction, note = progress_of(read_tail(log, start), world_size)
                step.update(fraction, note)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=0.5)
        finally:
            end_process(process)
    if process.returncode != 0:
        raise StageFailure(f"{explain(read_tail(log, start), process.returncode)} (log: {log})")
    missing = [rank for rank in range(world_size) if not (output / f"rank{rank}.engine").is_file()]
    if missing or not (output / "config.json").is_file():
        raise StageFailure(f"{PROGRAM} ended without an error and without a complete engine (log: {log})")


def read_tail(log: Path, start: int, limit: int = 1 << 20) -> str:
    """What was appended to ``log`` after byte ``start``, at most the last ``limit`` bytes."""
    with log.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(start, file.tell() - limit))
        return file.read().decode("utf-8", "replace")


MARKS: Sequence[tuple[str, float]] = (
    ("Total time of constructing network", 0.10),
    ("Build TensorRT engine", 0.15),
    ("Engine generated in", 0.80),
    ("Serializing engine", 0.90),
    ("Total time of building", 0.97),
)
"""Lines of the log and the share of a rank's work that is done when they appear."""


def progress_of(log: str, world_size: int) -> tuple[float | None, str]:
    """Fraction done and the compiler's last message. With several ranks the marks are counted over all of them."""
    done = None
    for text, share in MARKS:
        count = min(log.count(text), world_size)
        if count:
            done = max(done or 0.0, share * count / world_size)
    lines = [line.strip() for line in log.splitlines() if "[TRT-LLM]" in line]
    note = re.sub(r"^.*?\[TRT-LLM\]\s*(\[\w\])?\s*", "", lines[-1]) if lines else ""
    return done, note[:60]


ERRORS: Sequence[tuple[str, str]] = (
    (r"unrecognized arguments: (\S+)", "this trtllm-build does not know {0}: its release is not one of 0.21 to 1.2"),
    (
        r"invalid choice: (.+?) \(",
        "this trtllm-build does not take {0}: its release is not one of 0.21 to 1.2",
    ),
    (
        r"(?i)out of memory|OutOfMemory|cudaErrorMemoryAllocation",
        "the GPU ran out of memory while compiling: lower --max-batch-size, --max-num-tokens or --max-seq-len, "
        "or split the model with --tensor-parallel",
    ),
    (
        r"(?i)no CUDA-capable device|CUDA_ERROR_NO_DEVICE|Found no NVIDIA driver",
        "no NVIDIA GPU can be used here: trtllm-build needs one of the kind that will serve",
    ),
    (
        r"(?i)driver version is insufficient",
        "the NVIDIA driver is too old for this TensorRT-LLM: update it or use an older container",
    ),
    (r"not supported on SM>=100", f"this GPU is too new for the recipe: compute capability {TOO_NEW}"),
    (
        r"(?i)no kernel image is available|unsupported SM|not supported on (?:this )?(?:SM|sm)",
        "this GPU is too old for the recipe: FP8 needs compute capability 8.9, INT8 and INT4 8.0",
    ),
    (
        r"No module named '(tensorrt\w*)'|(libnvinfer\S*): cannot open",
        "TensorRT is not complete here ({0} is missing): use the container that belongs to this TensorRT-LLM",
    ),
    (r"(?i)No space left on device", "the disk is full: free some or choose another --output"),
    (r"(?m)^(?:\w+\.)*(\w*Error): (.+)$", "trtllm-build failed: {1} ({0})"),
)


def explain(log: str, status: int) -> str:
    """One sentence for a failed compile, from the last line that says why."""
    for pattern, sentence in ERRORS:
        found = list(re.finditer(pattern, log))
        if found:
            groups = [group for group in found[-1].groups() if group]
            return sentence.format(*(group.strip().rstrip(".")[:200] for group in groups))
    if status < 0:
        return f"{PROGRAM} was ended by signal {-status}" + (", most likely for lack of memory" if status == -9 else "")
    return f"{PROGRAM} ended with status {status} and said nothing that is understood"


def _switch(on: bool) -> str:
    return "enable" if on else "disable"
