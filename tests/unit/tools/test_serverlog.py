"""The one sentence that a person gets out of tritonserver's log. The samples are what Triton 24.10 printed."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest

from inflight_tools.server.log import Follower, failure_reason

pytestmark = pytest.mark.fast

_HEAD = """\
W1123 15:22:33.460267 14791 pinned_memory_manager.cc:273] "Unable to allocate pinned system memory, …"
E1123 15:22:33.461210 14791 server.cc:241] "CudaDriverHelper has not been initialized."
I1123 15:22:33.480000 14791 model_lifecycle.cc:472] "loading: bad:1"
+-------+---------+--------+
| Model | Version | Status |
+-------+---------+--------+
"""
_LOAD_FAILED = (
    _HEAD
    + """
error: creating server: Invalid argument - load failed for model 'bad': version 1 is at UNAVAILABLE state: \
Internal: TritonModelException: engine_dir 'engine' does not exist: build it with python -m build_engine build MODEL.

At:
  /somewhere/bad/1/model.py(3): initialize
;
"""
)


def test_a_model_that_does_not_load_gives_its_own_sentence() -> None:
    assert failure_reason(_LOAD_FAILED) == (
        "model 'bad': engine_dir 'engine' does not exist: build it with python -m build_engine build MODEL"
    )


def test_an_exception_that_is_not_tritons_keeps_its_name() -> None:
    log = _LOAD_FAILED.replace(
        "TritonModelException: engine_dir", "ModuleNotFoundError: No module named 'x'; engine_dir"
    )
    assert failure_reason(log).startswith("model 'bad': ModuleNotFoundError: No module named 'x'")


def test_every_model_that_failed_is_named() -> None:
    second = (
        "load failed for model 'other': version 1 is at UNAVAILABLE state: Internal: no memory\n\nAt:\n  a(1): f\n;\n"
    )
    assert failure_reason(_LOAD_FAILED + second) == (
        "model 'bad': engine_dir 'engine' does not exist: build it with python -m build_engine build MODEL; "
        "model 'other': no memory"
    )


def test_a_model_that_does_not_exist() -> None:
    log = (
        _HEAD
        + "E1123 15:22:59.258941 15063 model_repository_manager.cc:1415] \"failed to poll model 'nope': model not "
        'found in any model repository."\n\nerror: creating server: Internal - failed to load all models\n'
    )
    assert failure_reason(log) == "failed to poll model 'nope': model not found in any model repository"


def test_another_fatal_error() -> None:
    log = _HEAD + "\nerror: creating server: Unavailable - Socket '127.0.0.1:8001' already in use \n"
    assert failure_reason(log) == "Socket '127.0.0.1:8001' already in use"


def test_the_harmless_complaint_about_cuda_is_no_reason() -> None:
    assert "Cuda" not in failure_reason(_HEAD + "Segmentation fault\n")


def test_an_empty_log() -> None:
    assert failure_reason("") == "it printed nothing"


def test_the_follower_copies_what_is_there_and_what_comes(tmp_path: Path) -> None:
    log, seen = tmp_path / "log", io.StringIO()
    log.write_text("first\n")
    with Follower(log, seen), log.open("a") as growing:
        growing.write("second\n")
        growing.flush()
        deadline = time.monotonic() + 10
        while "second" not in seen.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
        growing.write("last\n")
    assert seen.getvalue() == "first\nsecond\nlast\n"


def test_what_was_copied_does_not_fill_the_disk(tmp_path: Path) -> None:
    log, seen = tmp_path / "log", io.StringIO()
    lines = [f"line {number}: {'é' * 50}\n" for number in range(200)]
    with Follower(log, seen, most_bytes=4000), log.open("a", encoding="utf-8") as growing:
        for line in lines:
            growing.write(line)
            growing.flush()
            time.sleep(0.005)
        time.sleep(0.5)
        assert log.stat().st_size <= 4000
    assert seen.getvalue() == "".join(lines)
