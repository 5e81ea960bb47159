"""LoRA adapters from a folder: the first request of an adapter carries its weights, later ones only its number.

`lora_dir/NAME/model.lora_weights.npy` and `model.lora_config.npy`, as TensorRT-LLM's hf_lora_convert.py writes them
(weights [layers × modules, D·Hi + Ho·D], config [layers × modules, 3] of module, layer, adapter size).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from inflight.engines.adapters import adapter_folder
from inflight.engines.base import EngineRefusal

log = logging.getLogger("inflight.engine_worker")

WEIGHTS, CONFIG = "model.lora_weights.npy", "model.lora_config.npy"
MISSING = "not found in cache"  # of TensorRT-LLM's message for an adapter that was evicted


class Adapters:
    """The adapters of one engine. Not thread-safe."""

    def __init__(self, trtllm: Any, folder: Path) -> None:
        self._trtllm = trtllm
        self._folder = folder
        self._numbers: dict[str, int] = {}
        self._sent: set[str] = set()

    def config(self, name: str) -> Any:
        """LoraConfig for a request, with weights where the engine has not seen them. Raises `EngineRefusal`."""
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
        if not (folder / WEIGHTS).is_file() or not (folder / CONFIG).is_file():
            raise EngineRefusal(
                f"{name!r} has not been converted: run TensorRT-LLM's hf_lora_convert.py on it", "lora_name"
            )
        try:
            # One batch entry in front is the converter's; the bindings want [layers × modules, …] with it.
            arrays = [np.load(folder / file, allow_pickle=False) for file in (WEIGHTS, CONFIG)]
            arrays = [array if array.ndim == 3 else array[None] for array in arrays]
        except Exception as error:  # noqa: BLE001 — what is wrong with a file has many types in NumPy
            log.warning("the adapter %s cannot be read: %s", name, error)
            raise EngineRefusal(
                f"{name!r} is damaged: run TensorRT-LLM's hf_lora_convert.py on it again", "lora_name"
            ) from None
        import torch

        number = self._numbers.setdefault(name, len(self._numbers) + 1)
        weights, config = (torch.from_numpy(array) for array in arrays)
        return self._trtllm.LoraConfig(task_id=number, weights=weights, config=config)
