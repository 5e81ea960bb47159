"""LoRA adapters from a folder: the first request of an adapter carries its weights, later ones only its number.

`lora_dir/NAME/model.lora_weights.npy` and `model.lora_config.npy`, as TensorRT-LLM's hf_lora_convert.py writes them
(weights [1, layers × modules, D·Hi + Ho·D], config [1, layers × modules, 3 or 4] of module, layer, adapter size and
whether it is DoRA). The bindings take both without the first axis, on the CPU, the config as 32-bit integers
(loraConfig.cpp at 3585984b), and the weights in the engine's own type (loraUtils.cpp at 2a9abd95).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inflight.engines.adapters import adapter_folder
from inflight.engines.base import EngineRefusal
from inflight.engines.faults import sparingly

WEIGHTS, CONFIG = "model.lora_weights.npy", "model.lora_config.npy"
MISSING = "not found in cache"  # of TensorRT-LLM's message for an adapter that was evicted
CONVERT = "run TensorRT-LLM's hf_lora_convert.py on it"
CONFIG_COLUMNS = (3, 4)  # without and with DoRA
OWN_NUMBERS = 1 << 32  # ours lie beyond those of lora_prefetch_dir, which the library reads as 32-bit integers
BFLOAT16 = np.dtype("V2")  # as the converter stores what NumPy has no name for

# The machine's trouble of the moment, and not the adapter's.
LACKS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EINTR, errno.ETIMEDOUT, errno.ESTALE})

Array = npt.NDArray[Any]
_read_array: Any = np.lib.format.read_array  # `np.load` would take archives for adapters as well


class Adapters:
    """The adapters of one engine. Not thread-safe.

    `dtype` is the engine's ("bfloat16"), `layers` how many it has (0: unknown), `most_bytes` the size of the largest
    adapter that its cache holds, `prefetched` the folder whose adapters the library has loaded by itself, under their
    numbers.
    """

    def __init__(
        self, trtllm: Any, folder: Path, *, dtype: str, layers: int, most_bytes: int, prefetched: Path | None = None
    ) -> None:
        self._trtllm = trtllm
        self._folder = folder
        self._dtype = dtype
        self._layers = layers
        self._most_bytes = most_bytes
        self._numbers: dict[str, int] = {}
        self._sent: set[str] = set()
        for name in _prefetched(prefetched, folder):
            self._numbers[name] = int(name)
            self._sent.add(name)

    def config(self, name: str) -> Any:
        """LoraConfig for a request, with weights where the engine has not seen them. Raises `EngineRefusal`, or an
        `OSError` where the machine lacks something.
        """
        if name in self._sent:
            return self._trtllm.LoraConfig(task_id=self._numbers[name])
        return self._with_weights(name)

    def forget(self, name: str) -> None:
        """The engine has evicted the adapter: the next `config` carries its weights again."""
        self._sent.discard(name)

    def taken(self, name: str) -> None:
        """A request with the adapter's weights was taken."""
        self._sent.add(name)

    def _with_weights(self, name: str) -> Any:
        folder = adapter_folder(self._folder, name)
        try:
            weights, config = read_adapter(folder, self._layers, self._most_bytes)
            tensors = _tensor(weights, self._dtype), _tensor(config, "int32")
            number = self._numbers.setdefault(name, OWN_NUMBERS + len(self._numbers))
            return self._trtllm.LoraConfig(task_id=number, weights=tensors[0], config=tensors[1])
        except (FileNotFoundError, NotADirectoryError):
            raise EngineRefusal(f"{name!r} has not been converted: {CONVERT}", "lora_name") from None
        except PermissionError:
            raise EngineRefusal(f"{name!r} may not be read by the server: mend its permissions", "lora_name") from None
        except _Unfit as error:
            raise EngineRefusal(f"{name!r} {error}", "lora_name") from None
        except Exception as error:
            if isinstance(error, OSError) and error.errno in LACKS:
                raise
            sparingly.warning("damaged adapter", "the adapter %s cannot be used: %s", name, error)
            raise EngineRefusal(f"{name!r} is damaged: {CONVERT} again", "lora_name") from None


class _Unfit(Exception):
    """An adapter that is whole and not for this engine; the sentence goes on after its name."""


def read_adapter(folder: Path, layers: int, most_bytes: int) -> tuple[Array, Array]:
    """Weights [rows, values] and config [rows, 3 or 4] (int32), contiguous, of as many rows.

    Both files are opened before either is read, so that a folder that is exchanged meanwhile gives no mixture. Raises
    `OSError`, `_Unfit`, and whatever NumPy raises for a file that is damaged.
    """
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(_opened(folder / name, most_bytes)) for name in (WEIGHTS, CONFIG)]
        weights, config = (_matrix(_read_array(file, allow_pickle=False)) for file in files)
    if weights.dtype != BFLOAT16 and (weights.dtype.kind != "f" or not weights.dtype.isnative):
        raise ValueError(f"its weights are of type {weights.dtype}")
    if config.dtype.kind not in "iu" or config.shape[1] not in CONFIG_COLUMNS:
        raise ValueError(f"its configuration is of type {config.dtype} and shape {config.shape}")
    if not 0 < len(weights) == len(config):
        raise ValueError(f"{len(weights)} rows of weights and {len(config)} of configuration")
    if config.min() < 0 or config.max() >= 1 << 31 or config[:, 2].min() < 1:
        raise ValueError("its configuration has numbers that are none of a layer's")
    if 2 * int(config[:, 2].max()) > weights.shape[1]:
        raise ValueError("its weights are too few for its adapter size")
    if layers and int(config[:, 1].max()) >= layers:
        raise _Unfit(
            f"has weights for layer {int(config[:, 1].max())} and the model has {layers} layers; choose another"
        )
    return np.ascontiguousarray(weights), np.ascontiguousarray(config, dtype=np.int32)


def _opened(path: Path, most_bytes: int) -> Any:
    """A regular file that is not too large, open for reading. Never waits, as the end of a pipe would."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise ValueError(f"{path.name} is no file")
        if facts.st_size > most_bytes:
            raise _Unfit(
                f"is larger than the adapter cache ({facts.st_size >> 20} MiB); raise the model parameter "
                "lora_cache_host_memory_bytes"
            )
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _matrix(array: Array) -> Array:
    """Without the converter's one batch entry in front."""
    if array.ndim == 3 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 2:
        raise ValueError(f"an array of shape {array.shape}")
    return array


def _tensor(array: Array, dtype: str) -> Any:
    """A tensor of its own memory in the type that the engine takes."""
    import torch

    if array.dtype == BFLOAT16:
        found = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    else:
        found = torch.from_numpy(array)
    return found.to(getattr(torch, dtype)).contiguous()


def _prefetched(folder: Path | None, lora_dir: Path) -> list[str]:
    """Adapters of `lora_dir` that the library has loaded from `folder` under their own numbers."""
    if folder is None or not folder.is_dir() or not lora_dir.is_dir() or not folder.samefile(lora_dir):
        return []
    names = [path.name for path in folder.iterdir() if path.is_dir()]
    return [name for name in names if name.isascii() and name.isdigit() and str(int(name)) == name]
