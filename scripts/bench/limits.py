"""What this machine can do at best: bytes per second from memory, operations per second in registers, in products."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from inflight_tools.common.report import Failure

_SOURCE = Path(__file__).with_name("peak.c")
_ARRAY_BYTES = 512 << 20
_READS = 3
_PEAK_S = 1.0
_GEMM = (512, 2048, 8192)  # rows, inputs, outputs: a chunk of prefill against a layer of a model of a billion
_GEMM_REPEATS = 7


def read_by_one_core() -> float:
    """Bytes per second of processor time that one core reads, the best of a few passes over memory."""
    array = np.ones(_ARRAY_BYTES // 4, dtype=np.float32)
    best: float = 0.0
    for _ in range(_READS):
        began = time.thread_time()
        np.dot(array, array)
        best = max(best, array.nbytes / (time.thread_time() - began))
    return best


def read_bandwidth(threads: int) -> float:
    """Bytes per second that all cores read together, the best of a few passes over memory."""
    share = _ARRAY_BYTES // threads // 4
    arrays = [np.ones(share, dtype=np.float32) for _ in range(threads)]
    best: float = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_READS):
            began = time.perf_counter()
            list(pool.map(lambda array: float(np.dot(array, array)), arrays))  # reads it once for both arguments
            seconds = time.perf_counter() - began
            best = max(best, 4.0 * share * threads / seconds)
    return best


def copy_bandwidth(threads: int) -> float:
    """Bytes per second, read and written, of all cores that copy together; the best of a few passes."""
    share = _ARRAY_BYTES // threads // 8
    pairs = [(np.zeros(share, dtype=np.float32), np.ones(share, dtype=np.float32)) for _ in range(threads)]
    best: float = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_READS):
            began = time.perf_counter()
            list(pool.map(lambda pair: np.copyto(*pair), pairs))
            seconds = time.perf_counter() - began
            best = max(best, 8.0 * share * threads / seconds)
    return best


def register_peaks(threads: int, seconds: float = _PEAK_S) -> dict[str, tuple[str, float]]:
    """Operations per second by kind of arithmetic (f32, int8, and bf16 where the processor has it), and with which
    instructions: a C program that multiplies and adds in registers. Raises `Failure`.
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise Failure("the arithmetic limit is measured by a small C program, and there is no C compiler: install gcc.")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "peak"
        command = [compiler, "-O2", "-pthread", str(_SOURCE), "-o", str(program)]
        built = subprocess.run(command, capture_output=True, encoding="utf-8", check=False, timeout=60)
        if built.returncode:
            raise Failure(f"{_SOURCE.name} could not be compiled: {last_line(built.stderr)}.")
        done = subprocess.run(
            [program, str(threads), str(seconds)],
            capture_output=True,
            encoding="utf-8",
            check=False,
            timeout=60 + 3 * seconds,
        )
    if done.returncode:
        raise Failure(f"the arithmetic limit could not be measured: {last_line(done.stderr)}.")
    return parse_peaks(done.stdout)


def parse_peaks(text: str) -> dict[str, tuple[str, float]]:
    """What `peak` prints: a line each of kind, instructions and operations per second, parted by tabs."""
    rows = (line.split("\t") for line in text.splitlines())
    return {kind: (instructions, float(rate)) for kind, instructions, rate in rows}


def last_line(text: str) -> str:
    """The last line with something on it, without a full stop."""
    return next((line.strip().rstrip(".") for line in reversed(text.splitlines()) if line.strip()), "no reason given")


def product_rates() -> dict[str, float]:
    """Operations per second of one large matrix product of OpenVINO's, by what it computes in.

    ``f32``; ``bf16`` where the processor has it; ``int8``: activations and weights of 8 bits, both rounded before;
    ``int8 weights``: what engines of recipe int8 do, with OpenVINO's own handling of activations.
    """
    import openvino as ov

    core = ov.Core()
    kinds = ["f32", "int8", "int8 weights"]
    if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        kinds.insert(1, "bf16")
    rows, inputs, outputs = _GEMM
    rates = {}
    for kind in kinds:
        precision = "bf16" if kind == "bf16" else "f32"
        compiled = core.compile_model(_product(kind), "CPU", {"INFERENCE_PRECISION_HINT": precision})
        request = compiled.create_infer_request()
        request.set_input_tensor(ov.Tensor(np.random.default_rng(0).uniform(0, 1, (rows, inputs)).astype(np.float32)))
        seconds = []
        for _ in range(_GEMM_REPEATS + 1):
            began = time.perf_counter()
            request.infer()
            seconds.append(time.perf_counter() - began)
        rates[kind] = 2.0 * rows * inputs * outputs / statistics.median(seconds[1:])
    return rates


def _product(kind: str) -> Any:
    """A model of one product: `_GEMM`'s rows are its input."""
    import openvino as ov
    from openvino import opset13 as ops

    rows, inputs, outputs = _GEMM
    weights = np.random.default_rng(1).uniform(-1, 1, (outputs, inputs)).astype(np.float32)
    read = ops.parameter([rows, inputs], np.float32)
    value, matrix = read, ops.constant(weights)
    if kind.startswith("int8"):
        matrix = ops.convert(ops.constant(np.round(weights * 127).astype(np.int8)), np.float32)
        matrix = ops.multiply(matrix, ops.constant(np.full((outputs, 1), 1 / 127, np.float32)))
    if kind == "int8":
        low, high = ops.constant(np.float32(0)), ops.constant(np.float32(1))
        value = ops.fake_quantize(read, low, high, low, high, 256)
    return ov.Model([ops.result(ops.matmul(value, matrix, False, True))], [read], kind)


def cores() -> int:
    """Threads that measure: one for each processor this process may use."""
    return len(os.sched_getaffinity(0))
