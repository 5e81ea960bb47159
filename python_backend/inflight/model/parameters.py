"""A model's own parameters (config.pbtxt `parameters`), parsed once at load into a frozen `ModelConfig`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from inflight.errors import LoadError, did_you_mean
from inflight.model.trtllm_parameters import PARAMETERS, take_parameters

ENGINES = ("auto", "openvino", "tensorrt_llm", "vllm", "simulated")
BATCHING_STRATEGIES = ("inflight", "dynamic", "static")

# Parameters of Triton's Python backend itself: not ours, never an error.
TRITON_OWN = frozenset({"EXECUTION_ENV_PATH", "FORCE_CPU_ONLY_INPUT_TENSORS"})


@dataclasses.dataclass(frozen=True, slots=True)
class ModelConfig:
    """What config.pbtxt says about one model. Field names are the parameter names (contract, docs/requests.md).

    Times ending in `_ms` are milliseconds, in `_s` seconds. A 0 means "no limit of mine" where the comment says so.
    """

    engine_dir: str = "engine"  # relative to the version folder
    engine: str = "auto"
    engine_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    engine_python: str = ""  # an interpreter, relative to the version folder; empty: the server's own
    batching_strategy: str = "inflight"
    batching_max_wait_ms: int = 50
    max_running: int = 0  # 0: the engine's own limit
    max_queue_size: int = 2048
    max_queue_tokens: int = 0  # 0: no limit but max_queue_size
    default_max_tokens: int = 256
    max_tokens_limit: int = 0  # 0: no limit but the context
    max_prompt_bytes: int = 1 << 20
    default_deadline_ms: int = 0  # 0: none
    stall_timeout_ms: int = 10_000
    load_timeout_s: int = 600
    max_restarts: int = 5
    drain_timeout_ms: int = 30_000
    exclude_input_in_output: bool = True
    chat_template: str = ""  # a file, relative to the version folder; empty: the engine folder's own
    metrics_interval_ms: int = 500
    sender_threads: int = 2


# What each parameter means, for docs/requests.md.
NOTES: dict[str, str] = {
    "engine_dir": "the engine directory, relative to the model's version folder",
    "engine": "auto (by the directory and what is installed), openvino, tensorrt_llm, vllm or simulated",
    "engine_options": "a JSON object for the engine; see docs/engines.md",
    "engine_python": "the Python that runs the engine, where it has an environment of its own; empty: the server's",
    "batching_strategy": "inflight (join at any step), dynamic (collect for a window), static (wait for a full batch)",
    "batching_max_wait_ms": "the window of dynamic and static batching",
    "max_running": "sequences in the engine at once; 0: the engine's own limit",
    "max_queue_size": "requests that may wait; further ones are UNAVAILABLE",
    "max_queue_tokens": "prompt tokens that may wait; 0: no limit but max_queue_size",
    "default_max_tokens": "max_tokens of a request that names none",
    "max_tokens_limit": "the most any request gets; 0: no limit but the context",
    "max_prompt_bytes": "longest prompt, before and after the chat template",
    "default_deadline_ms": "deadline of a request that names none; 0: none",
    "stall_timeout_ms": "an engine that makes no progress for this long is started again",
    "load_timeout_s": "an engine that is not ready after this long has failed",
    "max_restarts": "after this many restarts without ten minutes of health the model reports not ready",
    "drain_timeout_ms": "how long a drain lets streams go on",
    "exclude_input_in_output": "default of the input of that name",
    "chat_template": "a jinja2 file, relative to the version folder; empty: the engine directory's own",
    "metrics_interval_ms": "how often metrics are handed to Triton",
    "sender_threads": "threads that send responses",
}

# name → (least, most) of the integer parameters
_RANGES: dict[str, tuple[int, int]] = {
    "batching_max_wait_ms": (0, 60_000),
    "max_running": (0, 65_536),
    "max_queue_size": (1, 1_000_000),
    "max_queue_tokens": (0, 2**40),
    "default_max_tokens": (1, 2**31 - 1),
    "max_tokens_limit": (0, 2**31 - 1),
    "max_prompt_bytes": (1, 1 << 30),
    "default_deadline_ms": (0, 2**31 - 1),
    "stall_timeout_ms": (100, 3_600_000),
    "load_timeout_s": (1, 86_400),
    "max_restarts": (0, 1_000_000),
    "drain_timeout_ms": (0, 3_600_000),
    "metrics_interval_ms": (10, 60_000),
    "sender_threads": (1, 64),
}
_CHOICES = {"engine": ENGINES, "batching_strategy": BATCHING_STRATEGIES}


def parse_model_config(parameters: Mapping[str, str]) -> ModelConfig:
    """`ModelConfig` of a model's parameters (name → string value).

    Raises `LoadError` with the parameter's name for an unknown name or a bad value.
    """
    fields = {field.name: field for field in dataclasses.fields(ModelConfig)}
    values: dict[str, Any] = {}
    ours, for_engine = take_parameters(parameters)
    for name, text in ours.items():
        if name in TRITON_OWN:
            continue
        if name not in fields:
            near = did_you_mean(name, [*fields, *PARAMETERS])
            raise LoadError(f"unknown model parameter {name!r} in config.pbtxt{near}.")
        values[name] = _parse_value(name, text.strip())
    if for_engine:
        twice = sorted(set(for_engine) & set(values.get("engine_options", {})))
        if twice:
            raise LoadError(f"model parameter {twice[0]} stands in engine_options as well; keep one of them.")
        values["engine_options"] = {**values.get("engine_options", {}), **for_engine}
    return ModelConfig(**values)


def _parse_value(name: str, text: str) -> Any:
    if name == "engine_options":
        return _parse_options(text)
    if name in _RANGES:
        least, most = _RANGES[name]
        try:
            number = int(text)
        except ValueError:
            raise LoadError(f"model parameter {name} must be a whole number, but is {text!r}.") from None
        if not least <= number <= most:
            raise LoadError(f"model parameter {name} must be between {least} and {most}, but is {number}.")
        return number
    if name in _CHOICES:
        if text not in _CHOICES[name]:
            raise LoadError(f"model parameter {name} must be one of {', '.join(_CHOICES[name])}, but is {text!r}.")
        return text
    if name == "exclude_input_in_output":
        if text.lower() not in ("true", "false"):
            raise LoadError(f"model parameter {name} must be true or false, but is {text!r}.")
        return text.lower() == "true"
    return text


def _parse_options(text: str) -> dict[str, Any]:
    try:
        options = json.loads(text or "{}")
    except ValueError as error:
        raise LoadError(f"model parameter engine_options must be a JSON object: {error}.") from None
    if not isinstance(options, dict):
        raise LoadError("model parameter engine_options must be a JSON object.")
    return options
