"""One answer driven by a random schedule, with a plain model beside it that says what must have been sent.

A script fixes what the engine will make of every sequence; a schedule decides in which pieces it arrives, when a sender
comes to take, and whether the client, a deadline or an error ends it before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from inflight.answer.detokenizer import DetokenizerFactory
from inflight.answer.sequence import SequenceText
from inflight.answer.stream import Reply, Stream, Taken
from inflight.engines.base import EngineOutput, FinishReason
from inflight.identity import Identity
from inflight.request.prompt import Prompt
from inflight.request.stop_words import Stops
from tests.unit.machines.strategies import request
from tests.unit.machines.tokenizer_kinds import KINDS

PROMPT_IDS = tuple(KINDS["byte_level"]().encode("hello").ids)
EOS = 1
FACTORY = DetokenizerFactory(KINDS["byte_level"](), KINDS["byte_level"]().get_vocab_size())


@dataclasses.dataclass(frozen=True)
class Script:
    """What the engine makes of one sequence: its tokens and why it ends. With STOP the last token may be EOS."""

    token_ids: tuple[int, ...]
    finish: FinishReason

    def output(self, index: int, start: int, end: int) -> EngineOutput:
        """The engine's output for tokens `start` to `end`; the last piece carries the finish."""
        last = end == len(self.token_ids)
        ids = list(self.token_ids[start:end])
        logprobs = [logprob(place) for place in range(start, end)]
        return EngineOutput(1, index, ids, self.finish if last else None, logprobs=logprobs)


def logprob(place: int) -> float:
    """The log-probability of a sequence's token at `place`: sums of these are exact in floating point."""
    return -0.25 * (1 + place % 8)


def make_stream(stream: bool, sequences: int, stops: Sequence[str], echo: str = "") -> Stream:
    """A stream as the backend would make it."""
    values = {"stop_words": list(stops)} if stops else {}
    parsed = request(stream=stream, num_return_sequences=sequences, return_log_probs=True, **values)
    return Stream(
        parsed,
        Prompt(list(PROMPT_IDS), echo),
        Stops((EOS,), parsed.stops),
        lambda: FACTORY.make(True, PROMPT_IDS),
        lambda token_id: str(token_id),
        Identity("r1"),
        1,
    )


@dataclasses.dataclass(frozen=True)
class Expected:
    """What one sequence must have sent when it is over."""

    text: str
    tokens: int
    finish: str


def expected(script: Script, stops: Sequence[str], echo: str = "", arrived: int | None = None) -> Expected:
    """The answer of one sequence, decoded at once; `arrived` tokens of it when a deadline ended it there."""
    upto = len(script.token_ids) if arrived is None else arrived
    whole = arrived is None or upto == len(script.token_ids)
    ids = list(script.token_ids[:upto])
    by_token = whole and script.finish is FinishReason.STOP and bool(ids) and ids[-1] == EOS
    text = SequenceText(FACTORY.make(True, PROMPT_IDS), Stops((), tuple(stops)))
    pushed = text.push(ids[:-1] if by_token else ids)
    if pushed.stopped:
        return Expected(echo + pushed.text, pushed.tokens_used, "stop")
    reason = script.finish.value if whole else "deadline"
    return Expected(echo + pushed.text + text.finish(), len(ids), reason)


class Client:
    """Collects what a stream sends and checks, at every response, what must hold at any time."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        count = stream.request.num_sequences
        self.texts = [""] * count
        self.tokens = [0] * count
        self.ids: list[list[int]] = [[] for _ in range(count)]
        self.finishes: list[str] = [""] * count
        self.cumulative = [0.0] * count
        self.terminals = 0
        self.errors = 0
        self.abandoned = 0
        self.last: Reply | None = None

    def take(self, under_way: bool) -> Taken:
        """One visit of a sender; `under_way`: the engine has not ended every sequence of what has arrived."""
        was_done = self.stream.done
        taken = self.stream.take()
        if was_done:
            assert not taken.replies, "a response after the terminal one"
            assert not taken.done, "a second terminal response"
            assert taken.error is None, "an error after the terminal response"
            assert not taken.abandon
        elif taken.done:
            assert taken.abandon or not under_way, "the engine goes on for nobody"
            assert under_way or taken.error is not None or not taken.abandon, "a cancel of what has ended"
        else:
            assert not taken.abandon, "the engine is stopped while somebody waits"
        self.terminals += taken.done
        self.abandoned += taken.abandon
        self.errors += taken.error is not None
        assert taken.error is None or taken.done
        assert not (taken.error is not None and taken.replies), "text may not be lost in an error response"
        assert taken.tokens == sum(sum(reply.num_output_tokens) for reply in taken.replies)
        for place, reply in enumerate(taken.replies):
            self._read(reply, final=taken.done and place == len(taken.replies) - 1)
        if taken.done and taken.error is None:
            assert taken.replies, "the terminal response must ride on a reply"
        return taken

    def _read(self, reply: Reply, final: bool) -> None:
        request_ = self.stream.request
        assert len(reply.texts) == len(reply.finishes) == len(reply.indices) == len(reply.num_output_tokens)
        assert len(reply.token_ids) == len(reply.logprobs) == sum(reply.num_output_tokens)
        if request_.stream:
            assert len(reply.indices) == 1, "a streamed response is about one sequence"
            assert reply.texts[0] or reply.finishes[0], "a response that says nothing"
        else:
            assert final, "an answer that is not streamed is one response"
            assert reply.indices == list(range(request_.num_sequences))
        assert (reply.timing is not None) == final
        start = 0
        for place, index in enumerate(reply.indices):
            assert not self.finishes[index], "a response for a sequence that has ended"
            count = reply.num_output_tokens[place]
            self.texts[index] += reply.texts[place]
            self.tokens[index] += count
            self.ids[index] += reply.token_ids[start : start + count]
            self.finishes[index] = reply.finishes[place]
            self.cumulative[index] = reply.cumulative_logprobs[place]
            start += count
        self.last = reply
