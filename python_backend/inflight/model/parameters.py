"""A model's own parameters (config.pbtxt `parameters`), parsed once at load into a frozen `ModelConfig`.

One line of `ModelConfig` is a parameter: its type, bounds, default and what the documents say of it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from inflight.errors import LoadError, did_you_mean, first_line, quoted
from inflight.model.trtllm_parameters import PARAMETERS, take_parameters

# Parameters of Triton's Python backend itself: not ours, never an error.
TRITON_OWN = frozenset({"EXECUTION_ENV_PATH", "FORCE_CPU_ONLY_INPUT_TENSORS"})


def _note(description: str) -> Meta:
    return Meta(description=description)


def _whole(least: int, most: int, description: str) -> Meta:
    return Meta(ge=least, le=most, description=description)


class ModelConfig(Struct, frozen=True):
    """What config.pbtxt says about one model. Field names are the parameter names (contract, docs/requests.md).

    Times ending in `_ms` are milliseconds, in `_s` seconds.
    """

    engine_dir: Annotated[str, _note("the engine directory, relative to the model's version folder")] = "engine"
    engine: Annotated[
        Literal["auto", "openvino", "tensorrt_llm", "vllm", "simulated"],
        _note("auto (by the directory and what is installed), openvino, tensorrt_llm, vllm or simulated"),
    ] = "auto"
    engine_options: Annotated[Mapping[str, Any], _note("a JSON object for the engine; see docs/engines.md")] = field(
        default_factory=dict
    )
    engine_python: Annotated[
        str, _note("the Python that runs the engine, where it has an environment of its own; empty: the server's")
    ] = ""
    batching_strategy: Annotated[
        Literal["inflight", "dynamic", "static"],
        _note("inflight (join at any step), dynamic (collect for a window), static (wait for a full batch)"),
    ] = "inflight"
    batching_max_wait_ms: Annotated[int, _whole(0, 60_000, "the window of dynamic and static batching")] = 50
    max_running: Annotated[int, _whole(0, 65_536, "sequences in the engine at once; 0: the engine's own limit")] = 0
    max_queue_size: Annotated[int, _whole(1, 1_000_000, "requests that may wait; further ones are UNAVAILABLE")] = 2048
    max_queue_tokens: Annotated[
        int, _whole(0, 2**40, "prompt tokens that may wait; 0: no limit but max_queue_size")
    ] = 0
    default_max_tokens: Annotated[int, _whole(1, 2**31 - 1, "max_tokens of a request that names none")] = 256
    max_tokens_limit: Annotated[int, _whole(0, 2**31 - 1, "the most any request gets; 0: no limit but the context")] = 0
    max_prompt_bytes: Annotated[
        int,
        _whole(
            0,
            1 << 30,
            "longest prompt, before and after the chat template; 0: the context's tokens times the bytes of the "
            "vocabulary's longest token",
        ),
    ] = 0
    default_deadline_ms: Annotated[int, _whole(0, 2**31 - 1, "deadline of a request that names none; 0: none")] = 0
    stall_timeout_ms: Annotated[
        int,
        _whole(
            100,
            3_600_000,
            "an engine that makes no progress for this long is started again; six times as long is allowed for taking "
            "one request, which may read an adapter from a disk, and longer for a step that a processor computes for "
            "longer (its tokens times the model's operations, at a ninth of the speed measured on slow cores)",
        ),
    ] = 10_000
    load_timeout_s: Annotated[int, _whole(1, 86_400, "an engine that is not ready after this long has failed")] = 600
    max_restarts: Annotated[
        int, _whole(0, 1_000_000, "after this many restarts without ten minutes of health the model reports not ready")
    ] = 5
    drain_notice_ms: Annotated[
        int,
        _whole(
            0,
            3_600_000,
            "how long a drain reports not ready and serves all the same, before it refuses: longer than balancers need "
            "to notice",
        ),
    ] = 5_000
    restart_hold_ms: Annotated[
        int,
        _whole(
            0,
            600_000,
            "while a lost engine starts again, requests of which the old one said nothing wait for it, each for this "
            "long at most; 0: they end UNAVAILABLE at once",
        ),
    ] = 0
    drain_timeout_ms: Annotated[int, _whole(0, 3_600_000, "how long a drain lets streams go on")] = 30_000
    exclude_input_in_output: Annotated[bool, _note("default of the input of that name")] = True
    stream_echo: Annotated[
        bool, _note("exclude_input_in_output false puts the prompt before streamed answers too, which no peer does")
    ] = False
    empty_final_response: Annotated[
        bool,
        _note("a last response without outputs after the last one with some, for clients that drop what comes with it"),
    ] = False
    chat_template: Annotated[
        str, _note("a jinja2 file, relative to the version folder; empty: the engine directory's own")
    ] = ""
    price_per_hour: Annotated[
        float,
        Meta(ge=0, le=1e9, description="what this server costs in an hour, for the metric of that name; 0: not known"),
    ] = 0.0
    tool_format: Annotated[
        Literal["auto", "hermes", "llama3_json", "mistral", "pythonic", "qwen3_coder", "none"],
        _note(
            "how the model writes tool calls: auto (what the chat template shows), hermes, llama3_json, mistral, "
            "pythonic, qwen3_coder or none"
        ),
    ] = "auto"
    reasoning_format: Annotated[
        Literal["auto", "think", "none"],
        _note("how the model marks its thoughts: auto (what the chat template shows), think (<think>) or none"),
    ] = "auto"
    special_tokens_in_messages: Annotated[
        bool,
        _note(
            "control tokens such as <|im_end|> in what a message says act as such, as in transformers and vLLM; else "
            "they are text"
        ),
    ] = False
    default_reasoning: Annotated[bool, _note("default of the input reasoning")] = False
    metrics_interval_ms: Annotated[int, _whole(10, 60_000, "how often metrics are handed to Triton")] = 500
    sender_threads: Annotated[int, _whole(1, 64, "threads that send responses")] = 2


@dataclasses.dataclass(frozen=True, slots=True)
class Parameter:
    """One line of `ModelConfig`: a number from `least` to `most`, one of `choices`, or what `kind` says."""

    name: str
    kind: type
    default: Any
    note: str
    least: float
    most: float
    choices: tuple[str, ...]


@functools.cache
def model_parameters() -> Mapping[str, Parameter]:
    """Every parameter by its name, in the order of the documents."""
    defaults = ModelConfig()
    found = {}
    for name, hint in typing.get_type_hints(ModelConfig, include_extras=True).items():
        kind, meta = typing.get_args(hint)
        choices = typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
        plain = str if choices else typing.get_origin(kind) or kind
        found[name] = Parameter(
            name, plain, getattr(defaults, name), meta.description, meta.ge or 0, meta.le or 0, choices
        )
    return found


def parse_model_config(parameters: Mapping[str, str]) -> ModelConfig:
    """`ModelConfig` of a model's parameters (name → string value).

    Raises `LoadError` with the parameter's name for an unknown name or a bad value.
    """
    known = model_parameters()
    values: dict[str, Any] = {}
    ours, for_engine = take_parameters(parameters)
    for name, text in ours.items():
        if name in TRITON_OWN:
            continue
        if name not in known:
            near = did_you_mean(name, [*known, *PARAMETERS])
            raise LoadError(f"unknown model parameter {quoted(name)} in config.pbtxt{near}.")
        values[name] = _parse_value(known[name], text.strip())
    if for_engine:
        twice = sorted(set(for_engine) & set(values.get("engine_options", {})))
        if twice:
            raise LoadError(f"model parameter {twice[0]} stands in engine_options as well; keep one of them.")
        values["engine_options"] = {**values.get("engine_options", {}), **for_engine}
    return ModelConfig(**values)


def _parse_value(parameter: Parameter, text: str) -> Any:
    subject = f"model parameter {parameter.name} must be"
    if parameter.kind in (int, float):
        try:
            number = parameter.kind(text)
        except ValueError:
            kind = "a whole number" if parameter.kind is int else "a number"
            raise LoadError(f"{subject} {kind}, but is {quoted(text)}.") from None
        if not parameter.least <= number <= parameter.most:
            raise LoadError(f"{subject} between {parameter.least:.12g} and {parameter.most:.12g}, but is {number}.")
        return number
    if parameter.kind is bool:
        if text.lower() not in ("true", "false"):
            raise LoadError(f"{subject} true or false, but is {quoted(text)}.")
        return text.lower() == "true"
    if parameter.kind is str:
        if parameter.choices and text not in parameter.choices:
            raise LoadError(f"{subject} one of {', '.join(parameter.choices)}, but is {quoted(text)}.")
        return text
    try:
        options = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{subject} a JSON object: {first_line(error)}.") from None
    if not isinstance(options, dict):
        raise LoadError(f"{subject} a JSON object.")
    return options
