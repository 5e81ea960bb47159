"""Parse, don't validate: raw tensors, JSON and parameters become one frozen `GenerationRequest`. Nothing behind
checks again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from inflight.engines.base import Guide
from inflight.errors import ErrorCode, RequestError, invalid
from inflight.identity import Identity
from inflight.model.parameters import ModelConfig
from inflight.request import fields
from inflight.request.chat import ChatOptions, ToolChoice, parse_chat
from inflight.request.defaults import BOUNDS, LEAST_TOP_K, GenerationDefaults
from inflight.request.limits import (
    MAX_GUIDE_BYTES,
    MAX_JSON_BYTES,
    MAX_LOGPROBS,
    MAX_NAME_BYTES,
    MAX_PENALTY,
    MAX_PRIORITY,
    MAX_SEQUENCES,
    MAX_STOP_CHARS,
    MAX_STOPS,
)
from inflight.request.values import Values

GUIDE_TYPES = ("json", "json_schema", "regex", "ebnf_grammar", "choice")


@dataclasses.dataclass(frozen=True, slots=True)
class RawRequest:
    """What Triton handed over, copied: tensors as flat lists (STRING as bytes), request parameters, `timeout` in µs
    (0: none). `batched`: the model has TensorRT-LLM's shape (max_batch_size 1), so its clients are NVIDIA's.
    """

    tensors: Mapping[str, Sequence[Any]]
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    timeout_us: int = 0
    identity: Identity = dataclasses.field(default_factory=lambda: Identity(""))
    batched: bool = False

    @property
    def bytes_held(self) -> int:
        """About how many bytes wait with it."""
        return sum(map(_bytes_held, self.tensors.values())) + sum(
            len(value) for value in self.parameters.values() if isinstance(value, (str, bytes))
        )


def _bytes_held(items: Sequence[Any]) -> int:
    if items and not isinstance(items[0], (str, bytes)):
        return 32 * len(items)  # a number and its place in the list
    return sum(len(item) for item in items)


@dataclasses.dataclass(frozen=True, slots=True)
class PromptLimits:
    """The longest prompt that is looked at: in bytes of text, in token ids."""

    size: int = 1 << 40
    tokens: int = 1 << 40


@dataclasses.dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One request, checked. Exactly one of `text`, `messages` (JSON) and `input_ids` is set.

    `max_tokens` is what was asked for, before the context's room is known; 0 asks for the prompt's tokens alone.
    `top_logprobs` is -1 when no log-probabilities are wanted, 0 for those of the chosen tokens. `deadline_ms` 0 is
    none. `spelt` is what the client called each parameter.
    """

    text: str | None
    messages: bytes | None
    input_ids: tuple[int, ...] | None
    chat: ChatOptions
    reasoning: bool
    stream: bool
    max_tokens: int
    min_tokens: int
    ignore_eos: bool
    end_id: int | None
    stop_token_ids: tuple[int, ...]
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    length_penalty: float
    seed: int
    stops: tuple[str, ...]
    include_stop: bool
    bad_words: tuple[str, ...]
    num_sequences: int
    best_of: int
    beam_width: int
    top_logprobs: int
    return_log_probs: bool
    return_logprobs_json: bool
    return_cumulative_logprob: bool
    return_finish_reason: bool
    return_num_input_tokens: bool
    return_num_output_tokens: bool
    return_perf_metrics: bool
    return_token_ids: bool
    return_model_info: bool
    echo_prompt: bool
    guide: Guide | None
    lora_name: str | None
    cache_salt: str | None
    skip_special_tokens: bool
    add_special_tokens: bool
    priority: int
    deadline_ms: int
    spelt: Mapping[str, str]

    @property
    def wants_logprobs(self) -> bool:
        """Whether the engine has to compute any log-probability."""
        return self.top_logprobs >= 0

    def called(self, parameter: str) -> str:
        """What the client called `parameter`; `input_ids` stands for the prompt, in whatever form it came."""
        if parameter == "input_ids":
            return "text_input" if self.text is not None else "messages" if self.messages is not None else parameter
        if parameter == "num_return_sequences" and self.best_of > self.num_sequences:
            return "best_of"  # how many are generated
        if parameter.startswith("guided_decoding_guide") and self.chat.tool_choice in (
            ToolChoice.REQUIRED,
            ToolChoice.NAMED,
        ):
            return "tools"
        if parameter.startswith("guided_decoding_guide") and "structured_outputs" in self.spelt:
            parameter = "structured_outputs"
        return self.spelt.get(parameter, parameter)

    def in_its_words(self, error: RequestError) -> RequestError:
        """`error` with the parameter that it begins with named as the client named it."""
        name = error.parameter and self.called(error.parameter)
        if name is None or name == error.parameter or not error.message.startswith(f"{error.parameter} "):
            return error
        return RequestError(error.code, name + error.message[len(error.parameter or "") :], name)

    @contextlib.contextmanager
    def its_words(self) -> Iterator[None]:
        """Errors that are raised inside name what the client sent."""
        try:
            yield
        except RequestError as error:
            raise self.in_its_words(error) from None


def parse_request(
    raw: RawRequest, config: ModelConfig, defaults: GenerationDefaults, limits: PromptLimits | None = None
) -> GenerationRequest:
    """Raises `RequestError` (INVALID_ARG) that names the parameter at fault. `limits` are the context's."""
    values = Values(raw.tensors, raw.parameters)
    text, messages, input_ids = _prompt(values, config, limits or PromptLimits())
    max_tokens = values.integer("max_tokens", config.default_max_tokens, 0)
    if config.max_tokens_limit:
        max_tokens = min(max_tokens, config.max_tokens_limit)
    min_tokens = values.integer("min_tokens", 0, 0)
    if min_tokens > max_tokens:
        raise invalid(values.name("min_tokens"), f"is {min_tokens}, more than max_tokens ({max_tokens})")
    if raw.batched and values.given("top_p") and values.number("top_p", 1.0) <= 0.0:
        values.forget("top_p")  # NVIDIA's backend takes it as not given, and its clients send 0 by default
    temperature, top_p, top_k, min_p = _sampling(values, defaults)
    beam_width = values.integer("beam_width", 1, 1, MAX_SEQUENCES)
    num_sequences, best_of = _sequences(values, beam_width)
    length_penalty = values.number("length_penalty", 1.0)
    if length_penalty != 1.0 and beam_width == 1:
        raise invalid("length_penalty", "has an effect only with beam search; set beam_width above 1 or leave it at 1")
    stream = values.boolean("stream", False)
    if values.is_false("logprobs"):
        values.forget("logprobs")  # Triton's OpenAI front end says so for none
    if stream and best_of > num_sequences:
        count, name = values.name("num_return_sequences"), values.name("stream")
        raise invalid("best_of", f"above {count} cannot be streamed; set {name} to false")
    log_probs = values.boolean("return_log_probs", False)
    in_json = log_probs or (values.given("logprobs") and not values.given("return_log_probs"))
    logprobs = values.integer("logprobs", 0, 0, MAX_LOGPROBS)
    cumulative = values.boolean("return_cumulative_logprob", False)
    wanted = in_json or cumulative or best_of > num_sequences
    values.accept("pad_id")
    request = GenerationRequest(
        text=text,
        messages=messages,
        input_ids=input_ids,
        chat=parse_chat(values, messages is not None),
        reasoning=values.boolean("reasoning", config.default_reasoning),
        stream=stream,
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        ignore_eos=values.boolean("ignore_eos", False),
        end_id=values.optional_integer("end_id", -1),
        stop_token_ids=values.integers("stop_token_ids"),
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=values.number(
            "repetition_penalty", _or(defaults.repetition_penalty, 1.0), **BOUNDS["repetition_penalty"]
        ),
        presence_penalty=values.number("presence_penalty", 0.0, least=-MAX_PENALTY, most=MAX_PENALTY),
        frequency_penalty=values.number("frequency_penalty", 0.0, least=-MAX_PENALTY, most=MAX_PENALTY),
        length_penalty=length_penalty,
        seed=values.integer("seed", secrets.randbits(63), -(2**63), 2**64 - 1) % 2**64,  # negative: two's complement
        stops=_words(values, "stop_words"),
        include_stop=values.boolean("include_stop_str_in_output", False),
        bad_words=_words(values, "bad_words"),
        num_sequences=num_sequences,
        best_of=best_of,
        beam_width=beam_width,
        top_logprobs=logprobs if in_json else 0 if wanted else -1,  # nothing is computed that is not sent
        # Each name brings the outputs of the backend that it comes from.
        return_log_probs=log_probs and values.name("return_log_probs") != "return_logprobs",
        return_logprobs_json=in_json,
        return_cumulative_logprob=cumulative,
        return_finish_reason=values.boolean("return_finish_reason", False),
        return_num_input_tokens=values.boolean("return_num_input_tokens", False),
        return_num_output_tokens=values.boolean("return_num_output_tokens", False),
        return_perf_metrics=values.boolean("return_perf_metrics", False),
        return_token_ids=values.boolean("return_token_ids", False),
        return_model_info=values.boolean("return_model_info", False),
        echo_prompt=_echo(values, config, stream),
        guide=_guide(values),
        lora_name=values.text("lora_name", MAX_NAME_BYTES),
        cache_salt=values.text("cache_salt", MAX_NAME_BYTES),
        skip_special_tokens=values.boolean("skip_special_tokens", True),
        add_special_tokens=values.boolean("add_special_tokens", True),
        priority=values.integer("request_priority", 0, -MAX_PRIORITY, MAX_PRIORITY),
        deadline_ms=_deadline(values, config, raw.timeout_us),
        spelt=values.spellings(),
    )
    values.refuse_unknown()
    return request


def early_deadline_ms(raw: RawRequest, config: ModelConfig) -> int:
    """The deadline before the rest is looked at, for what a request waits for until it is parsed. Milliseconds; 0 is
    none, or one that parsing will refuse. Takes microseconds, or about a millisecond for a MiB of JSON.
    """
    try:
        found = _given_deadline(raw)
        values = Values({}, {} if found is None else {"deadline_ms": found})
        return _deadline(values, config, raw.timeout_us)
    except (RequestError, msgspec.MsgspecError, RecursionError, UnicodeError):
        return 0


class _Early(msgspec.Struct):
    deadline_ms: int | float | str | None = None


def _given_deadline(raw: RawRequest) -> int | float | str | None:
    """By the order of precedence (`values`)."""
    tensor = raw.tensors.get("deadline_ms")
    if tensor:
        value: int | float | str = tensor[0]
        return value
    packed = (raw.tensors.get("sampling_parameters") or (None,))[0] or raw.parameters.get("sampling_parameters")
    data = packed.encode() if isinstance(packed, str) else packed
    found = None
    if isinstance(data, bytes) and len(data) <= MAX_JSON_BYTES and (b"deadline_ms" in data or b"\\u" in data):
        found = msgspec.json.decode(data, type=_Early).deadline_ms
    parameter: int | float | str | None = raw.parameters.get("deadline_ms")
    return parameter if found is None else found


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def too_long(name: str, tokens: int, context: int) -> RequestError:
    """A prompt that leaves no room for an answer."""
    return invalid(name, f"has {tokens} tokens; the context holds {context}, at least one of them for the answer")


def _prompt(
    values: Values, config: ModelConfig, limits: PromptLimits
) -> tuple[str | None, bytes | None, tuple[int, ...] | None]:
    given = [name for name in ("text_input", "messages", "input_ids") if values.given(name)]
    if len(given) != 1:
        found = "none was given" if not given else f"{' and '.join(given)} were given"
        message = f"exactly one of text_input, messages and input_ids is needed, but {found}"
        raise RequestError(ErrorCode.INVALID_ARG, message, "text_input")
    if given[0] == "input_ids":
        if values.count("input_ids") > limits.tokens:
            raise too_long("input_ids", values.count("input_ids"), limits.tokens)
        ids = values.integers("input_ids", config.max_prompt_bytes // 4 or None)
        if not ids:
            raise invalid("input_ids", "is empty; a prompt needs at least one token")
        return None, None, ids
    text = values.prompt_text(given[0], config.max_prompt_bytes or limits.size)
    return (text, None, None) if given[0] == "text_input" else (None, text.encode(), None)


def _sampling(values: Values, defaults: GenerationDefaults) -> tuple[float, float, int, float]:
    """(temperature, top_p, top_k, min_p).

    Someone who narrows the choice of tokens without naming a temperature wants sampling: it is 1 then, not greedy.
    """
    top_p = values.number("top_p", _or(defaults.top_p, 1.0), **BOUNDS["top_p"])
    top_k = values.integer("top_k", defaults.top_k or 0, LEAST_TOP_K)
    min_p = values.number("min_p", _or(defaults.min_p, 0.0), **BOUNDS["min_p"])
    narrowed = (
        (values.given("top_p") and top_p < 1.0)
        or (values.given("top_k") and top_k > 1)
        or (values.given("min_p") and min_p > 0.0)
    )
    temperature = values.number(
        "temperature", _or(defaults.temperature, 1.0 if narrowed else 0.0), **BOUNDS["temperature"]
    )
    return temperature, top_p, max(top_k, 0), min_p


def _sequences(values: Values, beam_width: int) -> tuple[int, int]:
    """(sequences to return, sequences to generate)."""
    count = values.integer("num_return_sequences", 1, 1, MAX_SEQUENCES)
    best_of = values.integer("best_of", count, 1, MAX_SEQUENCES)
    if best_of < count:
        raise invalid("best_of", f"is {best_of}, less than {values.name('num_return_sequences')} ({count})")
    if beam_width > 1:
        if best_of > count:
            raise invalid("best_of", "and beam_width above 1 exclude each other; use one of them")
        if count > beam_width:
            raise invalid(values.name("num_return_sequences"), f"is {count}, more than beam_width ({beam_width})")
    return count, best_of


def _echo(values: Values, config: ModelConfig, stream: bool) -> bool:
    """Whether the answer begins with the prompt: a whole one where it is asked for, a streamed one as its peers' never,
    but for the model parameter `stream_echo`.
    """
    asked = not values.boolean("exclude_input_in_output", config.exclude_input_in_output)
    return asked and (config.stream_echo or not stream)


def _words(values: Values, name: str) -> tuple[str, ...]:
    words = tuple(dict.fromkeys(word for word in values.texts(name) if word))
    if len(words) > MAX_STOPS:
        raise invalid(values.name(name), f"has {len(words)} strings; at most {MAX_STOPS} are allowed")
    if any(len(word) > MAX_STOP_CHARS for word in words):
        raise invalid(values.name(name), f"has a string of more than {MAX_STOP_CHARS} characters")
    return words


def _guide(values: Values) -> Guide | None:
    """`json` is any object; with a guide it is that JSON Schema. An empty type is none, and so is an empty guide where
    none is needed; elsewhere it is one (of a regular expression: the empty text).
    """
    kind = values.text("guided_decoding_guide_type", 32) or None
    text = values.text("guided_decoding_guide", MAX_GUIDE_BYTES)
    if kind in (None, "json"):
        text = text or None
    if values.given("structured_outputs"):
        name = values.name("structured_outputs")
        if kind is not None or text is not None:
            raise invalid(name, "and guided_decoding_guide exclude each other; use one of them")
        return fields.guide_from_structured_outputs(name, values.raw("structured_outputs"), MAX_GUIDE_BYTES)
    if kind is None:
        if text is not None:
            raise invalid("guided_decoding_guide_type", "is missing; a guide needs one of " + ", ".join(GUIDE_TYPES))
        return None
    if kind not in GUIDE_TYPES:
        raise invalid("guided_decoding_guide_type", f"is {kind!r}; it must be one of {', '.join(GUIDE_TYPES)}")
    if text is None and kind != "json":
        raise invalid("guided_decoding_guide", f"is missing; guided_decoding_guide_type {kind} needs one")
    if text is None:
        return Guide("json", "")
    return Guide("json_schema" if kind == "json" else kind, text)


def _deadline(values: Values, config: ModelConfig, timeout_us: int) -> int:
    """Milliseconds; the sooner of the request's own `deadline_ms` (else the model's default) and Triton's `timeout`."""
    own = (
        values.integer("deadline_ms", config.default_deadline_ms, 1)
        if values.given("deadline_ms")
        else config.default_deadline_ms
    )
    triton = -(-timeout_us // 1000)
    return min(own, triton) if own and triton else own or triton
