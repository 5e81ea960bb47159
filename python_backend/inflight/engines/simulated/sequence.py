"""One sequence inside the simulated engine."""

from __future__ import annotations

import enum
import random

from inflight.engines.base import EngineRequest
from inflight.engines.simulated.cache import Lease
from inflight.engines.simulated.tokens import Answer


class State(enum.Enum):
    """Where it is in its life."""

    WAITING = "waiting"
    READING = "reading"  # its prompt
    DECODING = "decoding"
    ENDED = "ended"


class SimulatedSequence:
    """`reserved` is its worst case in blocks. The further ones of a request wait until `leader` has read the prompt."""

    __slots__ = (
        "answer", "began", "chances", "ids", "index", "keys", "last_step", "leader", "lease", "logprobs", "made",
        "prefill_left", "prompt", "request", "request_id", "reserved", "reused_blocks", "state",
    )  # fmt: skip

    def __init__(self, request: EngineRequest, index: int, answer: Answer, leader: SimulatedSequence | None) -> None:
        self.request = request
        self.request_id = request.request_id
        self.index = index
        self.answer = answer
        self.ids = answer.ids
        self.leader = leader
        self.prompt = len(request.token_ids)
        self.prefill_left = self.prompt if leader is None else 0
        self.logprobs = request.sampling.logprobs >= 0
        self.state = State.WAITING
        self.reserved = 0
        self.reused_blocks = 0  # of its prompt
        self.keys: list[int] = []
        self.lease: Lease | None = None
        self.chances: random.Random | None = None  # of its drafts
        self.made = 0  # tokens; of those on the agenda only once they have left it
        self.began = self.last_step = 0  # steps with its first and last token
