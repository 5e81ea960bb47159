"""What Inflight's vLLM engine relies on, against the installed vLLM, by introspection. Runs under vLLM's Python."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Iterable, Iterator
from typing import Any

from inflight_tools.selfcheck.known_vllm import ARGUMENTS

PARAMETERS: dict[str, tuple[str, ...]] = {
    "vllm.v1.engine.llm_engine.LLMEngine.from_engine_args": ("engine_args", "stat_loggers"),
    "vllm.v1.engine.llm_engine.LLMEngine.add_request": ("request_id", "prompt", "params", "lora_request", "priority"),
    "vllm.v1.engine.llm_engine.LLMEngine.abort_request": ("request_ids",),
    "vllm.v1.engine.llm_engine.LLMEngine.add_lora": ("lora_request",),
    "vllm.v1.engine.llm_engine.LLMEngine.step": (),
    "vllm.sampling_params.SamplingParams": (
        "max_tokens",
        "min_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "ignore_eos",
        "stop_token_ids",
        "logprobs",
        "prompt_logprobs",
        "detokenize",
        "output_kind",
        "structured_outputs",
    ),
    "vllm.sampling_params.StructuredOutputsParams": ("grammar",),
    "vllm.inputs.tokens_input": ("prompt_token_ids", "cache_salt"),
    "vllm.lora.request.LoRARequest": ("lora_name", "lora_int_id", "lora_path"),
}
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "vllm.sampling_params.RequestOutputKind": ("DELTA",),
    "vllm.sampling_params.SamplingParams": ("_bad_words_token_ids",),
    "vllm.v1.core.kv_cache_manager.KVCacheManager": ("usage",),
    "vllm.v1.metrics.loggers.StatLoggerBase": ("record", "log_engine_initialized"),
}


def find(name: str) -> Any:
    """What a dotted name means: the longest part of it that is a module, and attributes of that. None if nothing."""
    parts = name.split(".")
    for split in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:split]))
        except ModuleNotFoundError:
            continue
        for part in parts[split:]:
            found = getattr(found, part, None)
        return found
    return None


def missing(
    parameters: dict[str, tuple[str, ...]], attributes: dict[str, tuple[str, ...]]
) -> Iterator[tuple[str, str, str]]:
    """(what, in the table, installed) of everything that is not there."""
    for name, wanted in parameters.items():
        callee = find(name)
        if callee is None:
            yield name, "something to call", "missing"
            continue
        has = inspect.signature(callee).parameters
        for each in wanted:
            if each not in has:
                yield f"{name}({each})", "a parameter", "missing"
    for name, wanted in attributes.items():
        owner = find(name)
        if owner is None:
            yield name, "a class", "missing"
            continue
        for each in wanted:
            if not hasattr(owner, each):
                yield f"{name}.{each}", "an attribute", "missing"


def missing_arguments(wanted: Iterable[str], engine_args: Any) -> Iterator[tuple[str, str, str]]:
    """Of EngineArgs, a dataclass."""
    has = {field.name for field in dataclasses.fields(engine_args)}
    for name in sorted(set(wanted) - has):
        yield f"EngineArgs.{name}", "a field", "missing"


def facts(version: str, on_cpu: bool, engine_args: Any) -> dict[str, Any]:
    """The findings; an empty list says that everything is as the engine takes it to be."""
    found = [*missing(PARAMETERS, ATTRIBUTES), *missing_arguments(ARGUMENTS, engine_args)]
    checked = len(ARGUMENTS) + len(PARAMETERS) + sum(map(len, [*PARAMETERS.values(), *ATTRIBUTES.values()]))
    return {
        "version": f"{version} ({'CPU build' if on_cpu else 'GPU'})",
        "profile": "0.20.2 to 0.32.0",
        "checked": checked,
        "findings": [{"what": what, "table": table, "installed": installed} for what, table, installed in found],
    }
