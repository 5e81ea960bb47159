"""One request's way from engine outputs to replies. Pure: no Triton, no thread, no clock of its own.

    engine outputs ──append──▶ buffers per sequence ──take──▶ replies, the last of them final

`take` gives everything that is buffered at once, so the later it is called the more tokens a reply carries. A stream
is done after its final reply or after an error; from then on `append` and `fail` change nothing.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable

from inflight.answer.detokenizer import Detokenizer
from inflight.answer.parts import Parts, PartsForm
from inflight.answer.sequence import SequenceText
from inflight.engines.base import EngineOutput, FinishReason
from inflight.errors import ErrorCode, RequestError, internal
from inflight.identity import Identity
from inflight.request.parse import GenerationRequest
from inflight.request.prompt import Prompt
from inflight.request.stop_words import Stops

PLAIN = PartsForm()
_HALF = math.log(0.5)  # what is likelier than all others together is the likeliest


@dataclasses.dataclass(slots=True)
class Reply:
    """One response. Lists have one element per sequence in it, except `token_ids` and `logprobs` (one per new token).

    `calls` are JSON lists; `stops` say what ended a sequence; `timing` comes with the last reply only.
    """

    texts: list[str]
    thoughts: list[str]
    calls: list[str]
    finishes: list[str]
    stops: list[str]
    indices: list[int]
    num_output_tokens: list[int]
    cumulative_logprobs: list[float]
    token_ids: list[int]
    logprobs: list[float]
    top_logprobs: list[str]
    timing: Timing | None = None


@dataclasses.dataclass(slots=True)
class Timing:
    """Monotonic times in ns; 0 is "not yet". `reused_blocks` of the prompt's KV blocks; None where nobody knows."""

    arrival_ns: int = 0
    scheduled_ns: int = 0
    first_token_ns: int = 0
    last_token_ns: int = 0
    reused_blocks: int | None = None


@dataclasses.dataclass(slots=True)
class Taken:
    """What `Stream.take` gave. `error` ends the stream instead of a final reply; `abandon` comes with the end of a
    stream of which the engine has a sequence under way, whatever that end is: stop the engine's work.
    """

    replies: list[Reply]
    done: bool = False
    error: RequestError | None = None
    abandon: bool = False
    tokens: int = 0


class _Sequence:
    """Buffers and sums of one sequence."""

    __slots__ = (
        "cumulative",
        "done",
        "finish",
        "ids",
        "is_over",
        "logprobs",
        "parts",
        "pending",
        "ranks",
        "reported",
        "stop",
        "text",
        "top",
    )

    def __init__(self, text: SequenceText, parts: Parts | None) -> None:
        self.text = text
        self.parts = parts  # None: all text is answer
        self.ids: list[int] = []  # used, not yet in a reply
        self.logprobs: list[float] = []
        self.ranks: list[int] = []  # of the ids, where the engine knows them
        self.top: list[dict[int, float]] = []
        self.pending = ""  # text not yet in a reply
        self.reported = False  # its finish reason is in a reply
        self.finish: FinishReason | None = None
        self.stop = ""  # what ended it, of what the client asked to stop at
        self.done = False
        self.is_over = False  # the engine has ended it; a sequence can be done before (a stop string, a deadline)
        self.cumulative = 0.0

    @property
    def has_news(self) -> bool:
        return bool(self.pending) or (self.parts is not None and self.parts.pending)

    def add(self, text: str) -> None:
        if self.parts is None:
            self.pending += text
        else:
            self.parts.push(text)

    def end(self, finish: FinishReason) -> None:
        """It goes no further; everything that was held back comes out."""
        self.finish, self.done = finish, True
        if self.parts is not None:
            self.parts.finish()


class Stream:
    """The state of one answer. Not thread-safe: its owner (`delivery.py`) holds a lock around every call."""

    def __init__(
        self,
        request: GenerationRequest,
        prompt: Prompt,
        stops: Stops,
        make_detokenizer: Callable[[], Detokenizer],
        token_text: Callable[[int], str],
        identity: Identity,
        arrival_ns: int,
        form: PartsForm = PLAIN,
        token_bytes: Callable[[int], bytes] | None = None,
        block_size: int = 0,
    ) -> None:
        self.request = request
        self.identity = identity
        self.num_input_tokens = len(prompt.token_ids)
        self.model_info = ""  # for clients that ask what the model is
        self.block_size = block_size  # tokens in a KV block; 0: nobody knows
        self.output_tokens = 0  # used so far, all sequences
        self.timing = Timing(arrival_ns)
        self.done = False
        self.outcome = ""  # finish reason of the first sequence, or the error's code; set when done
        self._token_text = token_text
        self._token_bytes = token_bytes or (lambda token_id: token_text(token_id).encode())
        self._stops = stops
        self._stop_ids = frozenset(stops.token_ids)
        self._prompt_ids = prompt.token_ids if request.max_tokens == 0 else []
        count = request.num_sequences if request.beam_width > 1 else request.best_of
        self._sequences = [
            _Sequence(SequenceText(make_detokenizer(), stops), None if form.plain else form.make())
            for _ in range(count)
        ]
        for sequence in self._sequences:
            sequence.pending = prompt.echo
        self._error: RequestError | None = None

    @property
    def ended(self) -> bool:
        """Whether the next `take` will be the last one."""
        return self._error is not None or all(sequence.done for sequence in self._sequences)

    def append(self, output: EngineOutput, now_ns: int) -> None:
        """Take one engine output. Outputs after the end of a sequence are ignored."""
        if self.done or self._error is not None:
            return
        if not 0 <= output.sequence_index < len(self._sequences):
            self._error = internal(self.identity.id)
            return
        sequence = self._sequences[output.sequence_index]
        sequence.is_over |= output.finish is not None or output.error is not None
        if sequence.done:
            return
        if output.error is not None:
            refused = RequestError(ErrorCode.INVALID_ARG, output.error)
            self._error = refused if output.refusal else internal(self.identity.id)
            return
        if output.reused_blocks is not None:
            self.timing.reused_blocks = output.reused_blocks
        if output.token_ids:
            if not self.timing.first_token_ns:
                self.timing.first_token_ns = now_ns
            self.timing.last_token_ns = now_ns
            self._push(sequence, output)
        if output.finish is not None and not sequence.done:
            sequence.add(sequence.text.finish())
            if output.finish is FinishReason.STOP and output.token_ids:
                self._note_stop(sequence, output.token_ids[-1])
            sequence.end(output.finish)

    def _note_stop(self, sequence: _Sequence, token_id: int) -> None:
        """It ended with this token, if that is one to stop at."""
        if token_id not in self._stop_ids:
            return
        sequence.stop = self._stops.reasons.get(token_id, "")
        if self._stops.included:
            word = sequence.stop if sequence.stop != str(token_id) else ""
            sequence.add(word or sequence.text.text_of(token_id))

    def _push(self, sequence: _Sequence, output: EngineOutput) -> None:
        ids = output.token_ids
        by_token = output.finish is FinishReason.STOP and ids[-1] in self._stop_ids
        pushed = sequence.text.push(ids[:-1] if by_token else ids)
        used = pushed.tokens_used + (by_token and not pushed.stopped)
        sequence.add(pushed.text)
        sequence.ids += ids[:used]
        self.output_tokens += used
        if output.logprobs is not None:
            sequence.logprobs += output.logprobs[:used]
            sequence.cumulative += sum(output.logprobs[:used])
        if output.ranks is not None:
            sequence.ranks += output.ranks[:used]
        if output.top_logprobs is not None:
            sequence.top += output.top_logprobs[:used]
        if pushed.stopped:
            sequence.stop = pushed.stop
            sequence.end(FinishReason.STOP)

    def fail(self, error: RequestError) -> None:
        """End with an error, which names what the client sent. The first one wins; a stream that has ended keeps its
        end.
        """
        if not self.done and not self.ended:
            self._error = self.request.in_its_words(error)

    def break_off(self) -> None:
        """Nothing more can be told to the client: done, as an internal error."""
        self.done, self.outcome = True, ErrorCode.INTERNAL.value

    def end_by_deadline(self) -> None:
        """End every sequence with the text it has so far."""
        for sequence in self._sequences:
            if not sequence.done:
                sequence.add(sequence.text.finish())
                sequence.end(FinishReason.DEADLINE)

    def end_counted(self) -> None:
        """End a request for the prompt's tokens alone (max_tokens 0): the engine never sees it."""
        for sequence in self._sequences:
            sequence.is_over = True
            sequence.end(FinishReason.LENGTH)

    def take(self) -> Taken:
        """Everything that may be sent now. After a result with `done` every later call gives nothing."""
        if self.done:
            return Taken([])
        if self._error is not None:
            self.done, self.outcome = True, self._error.code.value
            return Taken([], done=True, error=self._error, abandon=True)
        ended = all(sequence.done for sequence in self._sequences)
        goes_on = not all(sequence.is_over for sequence in self._sequences)
        taken = Taken([], done=ended, abandon=ended and goes_on)
        if self.request.stream:
            for place in range(len(self._sequences)):
                reply = self._delta(place)
                if reply is not None:
                    taken.replies.append(reply)
        elif ended:
            taken.replies.append(self._whole())
        if ended:
            self.done, self.outcome = True, self._finish_text(self._sequences[0])
            taken.replies[-1].timing = self.timing
        taken.tokens = sum(sum(reply.num_output_tokens) for reply in taken.replies)
        return taken

    def _delta(self, place: int) -> Reply | None:
        """The new text of one sequence, or None when there is nothing to say. Held-back tokens wait for the next
        text.
        """
        sequence = self._sequences[place]
        if sequence.reported or not (sequence.has_news or sequence.done):
            return None
        sequence.reported = sequence.done
        return self._reply([(place, sequence)])

    def _whole(self) -> Reply:
        """The whole answer: of several candidates the best, likeliest first where more were made than are returned."""
        chosen = list(enumerate(self._sequences))
        if len(chosen) > self.request.num_sequences:
            chosen.sort(key=lambda item: -item[1].cumulative)
            chosen = chosen[: self.request.num_sequences]
            chosen = [(place, sequence) for place, (_, sequence) in enumerate(chosen)]
        return self._reply(chosen)

    def _reply(self, members: list[tuple[int, _Sequence]]) -> Reply:
        reply = Reply([], [], [], [], [], [], [], [], [], [], [])
        for place, sequence in members:
            parts = sequence.parts
            reply.texts.append(sequence.pending + (parts.take_answer() if parts is not None else ""))
            reply.thoughts.append(parts.take_thought() if parts is not None else "")
            reply.calls.append(parts.take_calls(whole=not self.request.stream) if parts is not None else "[]")
            reply.finishes.append(self._finish_text(sequence))
            reply.stops.append(sequence.stop if sequence.done else "")
            reply.indices.append(place)
            reply.num_output_tokens.append(len(sequence.ids))
            reply.cumulative_logprobs.append(sequence.cumulative)
            reply.token_ids += sequence.ids or self._prompt_ids
            reply.logprobs += sequence.logprobs
            if self.request.return_logprobs_json:
                reply.top_logprobs.append(self._logprobs_json(sequence))
            sequence.pending, sequence.ids, sequence.logprobs, sequence.ranks, sequence.top = "", [], [], [], []
        return reply

    @staticmethod
    def _finish_text(sequence: _Sequence) -> str:
        if sequence.finish is FinishReason.STOP and sequence.parts is not None and sequence.parts.calls:
            return "tool_calls"
        return sequence.finish.value if sequence.finish is not None else ""

    def _logprobs_json(self, sequence: _Sequence) -> str:
        """The form of vLLM's backend: a list with one {token id: {logprob, rank, decoded_token}} per new token.

        Where the prompt's tokens are asked for, they have texts and no log-probability.
        """
        entries = [{str(token_id): self._entry(token_id, None, None)} for token_id in self._prompt_ids]
        for place, (token_id, logprob) in enumerate(zip(sequence.ids, sequence.logprobs, strict=False)):
            others = sequence.top[place] if place < len(sequence.top) else {}
            ranked = sorted(others.items(), key=lambda item: -item[1])
            ranks: dict[int, int | None] = {other: rank for rank, (other, _) in enumerate(ranked, 1)}
            if token_id not in ranks:
                ranks[token_id] = self._rank(sequence, place, logprob, alone=not others)
            values = {token_id: logprob, **dict(ranked)}
            entries.append({str(other): self._entry(other, value, ranks[other]) for other, value in values.items()})
        return json.dumps(entries, ensure_ascii=False)

    def _entry(self, token_id: int, logprob: float | None, rank: int | None) -> dict[str, object]:
        """One token. Asked for by the name of vLLM's backend, it has the fields of that, which its clients count, and
        its bytes only where its text is not all of it: a part of a character.
        """
        text, data = self._token_text(token_id), self._token_bytes(token_id)
        entry: dict[str, object] = {"logprob": logprob, "rank": rank, "decoded_token": text}
        as_vllm = self.request.spelt.get("return_log_probs") == "return_logprobs"
        plain = as_vllm and text.encode("utf-8", "replace") == data
        return entry if plain else {**entry, "bytes": list(data)}

    def _rank(self, sequence: _Sequence, place: int, logprob: float, alone: bool) -> int | None:
        """Of a chosen token that is not among the likeliest: as the engine says, or, where it names none of those
        (`alone`), as it must be.
        """
        if place < len(sequence.ranks):
            return sequence.ranks[place]
        request = self.request
        greedy = request.temperature == 0.0 and request.beam_width == 1 and request.guide is None
        return 1 if alone and (greedy or logprob > _HALF) else None
