"""text | messages | ids → token ids: chat template, tokenizer, and the room that the context leaves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from inflight.engines.base import Capability, EngineInfo, EngineRequest, SamplingParams
from inflight.errors import RequestError, invalid, unsupported
from inflight.request.messages import last_text, parse_messages
from inflight.request.parse import GenerationRequest, PromptLimits, too_long
from inflight.request.special_text import ControlTokens, Marks
from inflight.request.stop_words import Stops
from inflight.request.template_files import ChatTemplates
from inflight.request.tokenizer import TextTokenizer

_GUIDES = {
    "json": Capability.GUIDED_JSON,
    "tools": Capability.GUIDED_JSON,
    "json_schema": Capability.GUIDED_JSON,
    "regex": Capability.GUIDED_REGEX,
    "ebnf_grammar": Capability.GUIDED_EBNF,
    "choice": Capability.GUIDED_CHOICE,
}


# English has about four bytes per token. What has more of them for each token that fits is counted before it is
# tokenized, piece by piece, until it certainly does not fit; a token cut by a border counts twice, at most a few times.
COUNTED_BYTES = 4
PIECE_CHARACTERS = 16 << 10
END = 16  # tokens at a prompt's end that are looked at for the beginning of a thought
CERTAINLY = 2  # times the tokens that fit


@dataclasses.dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt's token ids, its text where the request wants it echoed (else empty), the `end` of its text, and what of
    that the client had written as the beginning of the answer.
    """

    token_ids: list[int]
    echo: str
    end: str = ""
    prefill: str = ""


def _nothing() -> None:
    return None


class PromptBuilder:
    """Knows the model's tokenizer, template and limits. Thread-safe."""

    def __init__(
        self,
        tokenizer: TextTokenizer,
        templates: ChatTemplates | None,
        max_prompt_bytes: int,
        special_tokens_in_messages: bool = False,
    ) -> None:
        """`max_prompt_bytes` 0: what the context can hold. Control tokens in messages are text, unless
        `special_tokens_in_messages`.
        """
        self._as_tokens = special_tokens_in_messages
        compiled = {} if templates is None or special_tokens_in_messages else templates.compiled
        self._control = {
            name: ControlTokens(tokenizer.library, template.features.words) for name, template in compiled.items()
        }
        self.tokenizer = tokenizer
        self._templates = templates
        self._max_bytes = max_prompt_bytes

    def limits(self, info: EngineInfo) -> PromptLimits:
        """The longest prompt that is looked at: the operator's limit, else what the context can hold if every token is
        the longest of the vocabulary.
        """
        return PromptLimits(self._max_bytes or info.max_seq_len * self.tokenizer.longest_token, info.max_seq_len)

    def build(self, request: GenerationRequest, info: EngineInfo, go_on: Callable[[], None] = _nothing) -> Prompt:
        """Raises `RequestError` for a prompt that is empty, too long for the context or outside the vocabulary.

        `go_on` is called now and then while a long prompt is read; what it raises ends the reading.
        """
        if request.input_ids is not None:
            _check_length("input_ids", len(request.input_ids), info)
            ids = list(request.input_ids)
            self.tokenizer.check_ids(ids, info.vocab_size)
            echo = self.tokenizer.decode(ids, request.skip_special_tokens) if request.echo_prompt else ""
            return Prompt(ids, echo, self.tokenizer.decode(ids[-END:], False))
        text, name, prefill, marks = self._text(request, info, go_on)
        go_on()
        self._count(name, text, info, go_on)
        if marks is not None:
            text, ids = self._control_of(request).encode(text, marks)
        else:
            ids = self.tokenizer.encode(text, request.add_special_tokens and request.messages is None)
        if not ids:
            raise invalid(name, "makes no tokens; a prompt needs at least one")
        _check_length(name, len(ids), info)
        self.tokenizer.check_text_ids(name, ids, info.vocab_size)
        return Prompt(ids, text if request.echo_prompt else "", text[-4 * END :], prefill)

    def ending(self, request: GenerationRequest) -> tuple[str, str]:
        """(how the prompt ends, the last message's text where the answer goes on with it), by a short conversation in
        the place of the request's own.
        """
        if request.text is not None:
            return request.text[-4 * END :], ""
        if request.messages is None:
            return self.tokenizer.decode(list((request.input_ids or ())[-END:]), False), ""
        if self._templates is None:
            return "", ""
        template = self._templates.choose(request.chat)
        if request.chat.continue_final_message:
            return "", last_text(parse_messages(request.messages, template.features))
        try:
            return template.render([{"role": "user", "content": "Hi"}], 1 << 20, chat=request.chat)[-4 * END :], ""
        except RequestError:  # the conversation itself will say what is wrong
            return "", ""

    def _count(self, name: str, text: str, info: EngineInfo, go_on: Callable[[], None]) -> None:
        """Refuse what certainly has more tokens than fit, at a cost that does not grow with the text."""
        if len(text) <= COUNTED_BYTES * info.max_seq_len:
            return
        counted = 0
        for start in range(0, len(text), PIECE_CHARACTERS):
            counted += self.tokenizer.count(text[start : start + PIECE_CHARACTERS])
            if counted > CERTAINLY * info.max_seq_len:
                raise invalid(
                    name,
                    f"has far more tokens than the context holds ({info.max_seq_len}, at least one of them for the "
                    "answer)",
                )
            go_on()

    def _control_of(self, request: GenerationRequest) -> ControlTokens:
        assert self._templates is not None
        return self._control[self._templates.name_for(request.chat)]

    def _text(
        self, request: GenerationRequest, info: EngineInfo, go_on: Callable[[], None]
    ) -> tuple[str, str, str, Marks | None]:
        """(the prompt, which input it is made of, the last message's text where the answer goes on with it, the marks
        around control tokens that the client wrote).
        """
        if request.messages is None:
            return request.text or "", "text_input", "", None
        if self._templates is None:
            raise invalid(
                "messages", "need a chat template, and this model has none; send the whole prompt as text_input"
            )
        template = self._templates.choose(request.chat)
        messages = parse_messages(request.messages, template.features)
        prefill = last_text(messages) if request.chat.continue_final_message else ""
        chat, marks = request.chat, None
        if not self._as_tokens:
            messages, chat, marks = self._control_of(request).mark(messages, chat)
        text = template.render(messages, self.limits(info).size, go_on=go_on, chat=chat)
        return text, "messages", prefill, marks


def reading_cost(request: GenerationRequest) -> int:
    """About how many bytes have to be tokenized for a request."""
    prompt = len(request.text or "") + len(request.messages or b"") + len(request.input_ids or ()) // 16
    return prompt + 2 * sum(map(len, request.bad_words)) + sum(map(len, request.stops))


def _check_length(name: str, tokens: int, info: EngineInfo) -> None:
    if tokens >= info.max_seq_len:
        raise too_long(name, tokens, info.max_seq_len)


def check_capabilities(request: GenerationRequest, info: EngineInfo) -> None:
    """Raises UNSUPPORTED (or INVALID_ARG for a limit) that names the parameter this engine cannot honour, by the
    contract's name.
    """
    needs: list[tuple[bool, Capability, str]] = [
        (request.wants_logprobs and not request.top_logprobs, Capability.LOGPROBS, _logprob_name(request)),
        (request.top_logprobs > 0, Capability.TOP_LOGPROBS, "logprobs"),
        (request.best_of > 1 and request.beam_width == 1, Capability.PARALLEL_SAMPLING, _sequences_name(request)),
        (request.beam_width > 1, Capability.BEAM_SEARCH, "beam_width"),
        (bool(request.bad_words), Capability.BAD_WORDS, "bad_words"),
        (request.cache_salt is not None, Capability.CACHE_SALT, "cache_salt"),
        (request.lora_name is not None, Capability.LORA, "lora_name"),
        (request.min_p > 0.0, Capability.MIN_P, "min_p"),
    ]
    if request.guide is not None:
        needs.append((True, _GUIDES[request.guide.kind], "guided_decoding_guide_type"))
    for needed, capability, name in needs:
        if needed and capability not in info.capabilities:
            raise unsupported(name, f"is not supported: the {info.name} engine of this model lacks {capability.value}")
    if request.beam_width > max(info.max_beam_width, 1):
        raise invalid("beam_width", f"is {request.beam_width}; this engine allows at most {info.max_beam_width}")


def _sequences_name(request: GenerationRequest) -> str:
    return "num_return_sequences" if request.num_sequences > 1 else "best_of"


def _logprob_name(request: GenerationRequest) -> str:
    if request.return_log_probs or (request.return_logprobs_json and "return_log_probs" in request.spelt):
        return "return_log_probs"
    return "return_cumulative_logprob" if request.return_cumulative_logprob else "logprobs"


def engine_request(
    request_id: int,
    request: GenerationRequest,
    prompt: Prompt,
    stops: Stops,
    info: EngineInfo,
    tokenizer: TextTokenizer,
) -> EngineRequest:
    """The request as the engine sees it; `max_tokens` is cut to what the context leaves room for."""
    room = info.max_seq_len - len(prompt.token_ids)
    sampling = SamplingParams(
        max_tokens=min(request.max_tokens, room),
        min_tokens=min(request.min_tokens, room),
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        length_penalty=request.length_penalty,
        seed=request.seed,
        num_sequences=request.num_sequences if request.beam_width > 1 else request.best_of,
        beam_width=request.beam_width,
        stop_token_ids=stops.token_ids,
        logprobs=request.top_logprobs,
        bad_words=_bad_words(request, tokenizer, info.vocab_size),
    )
    return EngineRequest(
        request_id=request_id,
        token_ids=prompt.token_ids,
        sampling=sampling,
        guide=request.guide,
        lora_name=request.lora_name,
        cache_salt=request.cache_salt,
        priority=request.priority,
        perf_metrics=request.return_perf_metrics or request.return_num_input_tokens,
    )


def _bad_words(request: GenerationRequest, tokenizer: TextTokenizer, vocab_size: int) -> tuple[tuple[int, ...], ...]:
    """Each bad word as token ids, alone and after a space: both spellings a tokenizer may use. One with a token beyond
    the model's vocabulary cannot be generated anyway.
    """
    spellings = [text for word in request.bad_words for text in (word, " " + word)]
    ids = [tuple(tokenizer.encode(text, False)) for text in spellings]
    return tuple(dict.fromkeys(item for item in ids if item and max(item) < vocab_size))
