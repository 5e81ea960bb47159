"""LoRA adapters of compiled engines: what the library takes, and that a damaged one ends its own request alone."""

from __future__ import annotations

import errno
import os
import queue
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from inflight.engine_process import frames
from inflight.engine_process.launch import EngineProcess
from inflight.engine_process.link import EngineLink
from inflight.engines.base import EngineOutput, EngineRefusal, EngineRequest, SamplingParams
from inflight.engines.spec import WorkerSpec
from inflight.engines.tensorrt_llm import lora
from inflight.engines.tensorrt_llm.lora import Adapters, read_adapter
from inflight.errors import ErrorCode
from tests.doubles.adapters import CONFIG, LAYERS, RANK, WEIGHTS, WIDTH, damage, write_adapter
from tests.doubles.folders import environment, write_engine
from tests.unit.machines.tokenizer_kinds import write_folder

MOST = 1 << 30
PROMPT = [11, 12, 13, 14]


@pytest.mark.fast
@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_the_batch_entry_in_front_is_left_out(dtype: str, tmp_path: Path) -> None:
    weights, config = read_adapter(write_adapter(tmp_path, dtype=dtype), LAYERS, MOST)
    assert (weights.shape, config.shape, config.dtype) == ((LAYERS, WIDTH), (LAYERS, 3), np.int32)
    assert config.tolist() == [[0, layer, RANK] for layer in range(LAYERS)]
    assert weights.flags.c_contiguous
    assert config.flags.c_contiguous


@pytest.mark.fast
def test_numbers_of_another_width_and_order_are_those_that_the_library_takes(tmp_path: Path) -> None:
    write_adapter(tmp_path)
    np.save(tmp_path / CONFIG, np.asfortranarray(np.load(tmp_path / CONFIG)[0].astype(np.int64)))
    weights, config = read_adapter(tmp_path, LAYERS, MOST)
    assert len(weights) == LAYERS
    assert (config.dtype, config.flags.c_contiguous) == (np.int32, True)


def adapters(folder: Path, **values: Any) -> Adapters:
    return Adapters(None, folder, **{"dtype": "bfloat16", "layers": LAYERS, "most_bytes": MOST, **values})


@pytest.mark.fast
@pytest.mark.parametrize("kind", ["unreadable", "layers", "large", "raw", "loop", "folder", "pipe"])
def test_each_way_to_be_of_no_use_is_said(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_adapter(tmp_path / "red")
    values: dict[str, int] = {}
    words = "is damaged"
    if kind == "unreadable":
        words = "may not be read by the server"
        monkeypatch.setattr(os, "open", lambda path, *_: (_ for _ in ()).throw(PermissionError(errno.EACCES, path)))
    elif kind == "layers":
        values, words = {"layers": 1}, "has weights for layer 1 and the model has 1 layers"
    elif kind == "large":
        values, words = {"most_bytes": 100}, "larger than the adapter cache"
    elif kind == "raw":
        words = "has not been converted: run TensorRT-LLM's hf_lora_convert.py"
        (folder / CONFIG).unlink()
    else:
        path = folder / WEIGHTS
        path.unlink()
        {"loop": lambda: path.symlink_to(path.name), "folder": path.mkdir, "pipe": lambda: os.mkfifo(path)}[kind]()
    with pytest.raises(EngineRefusal, match=words) as refusal:
        adapters(tmp_path, **values).config("red")
    assert refusal.value.parameter == "lora_name"


@pytest.mark.fast
def test_the_machines_trouble_is_not_the_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_adapter(tmp_path / "red")
    monkeypatch.setattr(os, "open", lambda path, *_: (_ for _ in ()).throw(OSError(errno.EMFILE, path)))
    with pytest.raises(OSError, match="red"):
        adapters(tmp_path).config("red")


@pytest.mark.fast
def test_a_folder_that_is_exchanged_while_it_is_read_gives_no_mixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_adapter(tmp_path / "red", 1.0)
    other = write_adapter(tmp_path / "other", 2.0)
    np.save(other / CONFIG, np.array([[[3, 1, 2]]], dtype=np.int32))
    np.save(other / WEIGHTS, np.full((1, 1, 16), 2.0, dtype=np.float16))
    matrix = lora._matrix

    def exchanged(array: Any) -> Any:
        if folder.is_dir() and other.is_dir():  # after the first file was read
            folder.rename(tmp_path / "old")
            other.rename(folder)
        return matrix(array)

    monkeypatch.setattr(lora, "_matrix", exchanged)
    weights, config = read_adapter(folder, LAYERS, MOST)
    assert (len(weights), float(weights[0, 0]), config.tolist()[0][2]) == (LAYERS, 1.0, RANK)
    weights, config = read_adapter(folder, LAYERS, MOST)
    assert (len(weights), float(weights[0, 0]), config.tolist()) == (1, 2.0, [[3, 1, 2]])


class Ends:
    """Hears how requests end."""

    def __init__(self) -> None:
        self.queue: queue.SimpleQueue[frames.Refused | EngineOutput] = queue.SimpleQueue()

    def on_outputs(self, message: frames.Outputs) -> None:
        for output in message.outputs:
            if output.finish is not None or output.error is not None:
                self.queue.put(output)

    def on_refused(self, message: frames.Refused) -> None:
        self.queue.put(message)


class Attacked:
    """A real engine process over the stand-in, whose lora_dir is `folder`."""

    def __init__(self, root: Path) -> None:
        tokenizer = write_folder(root / "tokenizer")
        (tokenizer / "generation_config.json").write_text('{"eos_token_id": 1}')
        self.folder = root / "adapters"
        write_adapter(self.folder / "whole")
        engine = write_engine(root / "engine", tokenizer, vocab_size=20_000, plugin_config={"lora_plugin": "auto"})
        self.process = EngineProcess(WorkerSpec("tensorrt_llm", str(engine), {"lora_dir": str(self.folder)}, 0))
        self.process.start(120.0, lambda: False)
        self.ends = Ends()
        assert self.process.connection is not None
        self.link = EngineLink(self.process.connection, self.process.buffer, self.ends)
        self.link.start()
        self.pid = self.process.pid
        self._next = 0

    def ask(self, name: str | None) -> frames.Refused | EngineOutput:
        """How a request for that adapter ends: once, and within its time."""
        self._next += 1
        sampling = SamplingParams(max_tokens=2)
        request = EngineRequest(request_id=self._next, token_ids=PROMPT, sampling=sampling, lora_name=name)
        self.link.send(frames.Add(request))
        end = self.ends.queue.get(timeout=60.0)
        assert end.request_id == self._next
        return end

    def close(self) -> None:
        self.process.kill()
        self.link.close()


@pytest.fixture
def attacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Attacked]:
    for name, value in environment(tmp_path / "site", step_ms=0.1, lora_slots=4).items():
        monkeypatch.setenv(name, value)
    found = Attacked(tmp_path)
    try:
        yield found
    finally:
        found.close()


@pytest.mark.parametrize("folders", [100, pytest.param(2000, marks=[pytest.mark.full, pytest.mark.timeout(600)])])
def test_damaged_adapters_end_their_own_requests_alone(folders: int, attacked: Attacked) -> None:
    """In one engine process, which is the same at the end and whose whole adapter is answered as before."""
    chance = random.Random(folders)
    right = attacked.ask("whole")
    assert isinstance(right, EngineOutput)
    assert right.finish is not None
    refused = 0
    for number in range(folders):
        folder = write_adapter(attacked.folder / f"n{number}", chance.random(), chance.choice(("float16", "bfloat16")))
        done = damage(folder, chance)
        end = attacked.ask(folder.name)
        if isinstance(end, frames.Refused):
            refused += 1
            assert (end.code, end.parameter) == (ErrorCode.INVALID_ARG, "lora_name"), (done, end)
        if number % 50 == 49:
            attacked.ask(None)
            again = attacked.ask("whole")
            assert again == msgspec.structs.replace(right, request_id=again.request_id)
        shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
    assert refused > folders / 2
    assert not attacked.link.lost.is_set()
    assert attacked.process.exit_code() is None
    assert Path(f"/proc/{attacked.pid}").exists()
