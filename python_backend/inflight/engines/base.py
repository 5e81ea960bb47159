"""The engine seam: what every engine promises, and the messages it speaks (contract).

All types are msgspec structs, because they travel between two processes as msgpack (`frames.py`).
"""

from __future__ import annotations

import enum
from typing import Protocol

import msgspec

from inflight.grammar.thought import Thought


class Capability(enum.Enum):
    """What an engine may be able to do. A request that needs a missing one is refused before it is queued."""

    STREAMING = "streaming"
    LOGPROBS = "logprobs"
    TOP_LOGPROBS = "top_logprobs"
    PARALLEL_SAMPLING = "parallel_sampling"
    BEAM_SEARCH = "beam_search"
    GUIDED_JSON = "guided_json"
    GUIDED_REGEX = "guided_regex"
    GUIDED_EBNF = "guided_ebnf"
    GUIDED_CHOICE = "guided_choice"
    LORA = "lora"
    BAD_WORDS = "bad_words"
    CACHE_SALT = "cache_salt"
    SPECULATIVE = "speculative"
    PREFIX_CACHE = "prefix_cache"
    MIN_P = "min_p"
    BATCH_INVARIANT = "batch_invariant"
    NEVER_PREEMPTS = "never_preempts"


GUIDED = frozenset({Capability.GUIDED_JSON, Capability.GUIDED_REGEX, Capability.GUIDED_EBNF, Capability.GUIDED_CHOICE})


class FinishReason(enum.Enum):
    """Why a sequence ended, in the words of the contract."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How to choose tokens. `temperature` 0 is greedy; `top_k` 0 is all tokens; `beam_width` above 1 is beam search.

    `num_sequences` is how many sequences the engine generates (the larger of best_of and num_return_sequences, or the
    beams returned). `logprobs` is how many top log-probabilities to give besides the chosen token's; -1 is none at
    all.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    length_penalty: float = 1.0
    seed: int = 0
    num_sequences: int = 1
    beam_width: int = 1
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int = -1
    bad_words: tuple[tuple[int, ...], ...] = ()

    def seed_of(self, index: int) -> int:
        """The seed of one of several sequences, 64 bits; that of the first is the request's own."""
        return (self.seed + index * 0x9E3779B97F4A7C15) % 2**64  # the golden ratio spreads them

    def folded_seed_of(self, index: int, bits: int) -> int:
        """The same for an engine that takes a seed of 32 to 63 `bits`, or looks at the lowest 32 of them.

        The upper half, mixed, goes into the lower one. So all bits count, seeds below 2^32 stay what they are, and
        those that share an upper half still differ.
        """
        high, low = divmod(self.seed_of(index), 2**32)
        mixed = high * 0x9E3779B1 % 2**32  # an odd factor: no two upper halves give the same
        return ((high << 32) | (low ^ mixed ^ (mixed >> 15))) & ((1 << bits) - 1)


class Guide(msgspec.Struct, frozen=True, omit_defaults=True):
    """A grammar that the output must follow. `kind` is json, json_schema, regex, ebnf_grammar, choice or tools.
    `thought`: what the model may think before it; an engine gets guides in which that is worked in already.
    """

    kind: str
    text: str
    thought: Thought | None = None


class EngineRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request as the engine sees it: token ids in, token ids out."""

    request_id: int
    token_ids: list[int]
    sampling: SamplingParams
    guide: Guide | None = None
    lora_name: str | None = None
    cache_salt: str | None = None
    priority: int = 0
    perf_metrics: bool = False


class EngineOutput(msgspec.Struct, array_like=True, omit_defaults=True):
    """What one step gave one sequence.

    `token_ids` are new tokens only. A `finish` or an `error` makes it the sequence's one terminal output. An `error` is
    for the log (the client is told INTERNAL), unless it is a `refusal`: then it is a sentence for the client, which
    says what of its request the engine does not take (`refusals.refused_late`). `logprobs`
    has one value per new token, `ranks` the place of each among all tokens by likelihood (1 is the likeliest; None
    where the engine does not know); `top_logprobs` one {token id: log-probability} per new token. `reused_blocks` is
    how many KV blocks of the prompt were not computed again, told once of sequence 0, with tokens or without, if the
    request wants `perf_metrics` and the engine knows it.
    """

    request_id: int
    sequence_index: int
    token_ids: list[int]
    finish: FinishReason | None = None
    error: str | None = None
    logprobs: list[float] | None = None
    top_logprobs: list[dict[int, float]] | None = None
    ranks: list[int] | None = None
    reused_blocks: int | None = None
    refusal: bool = False


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot. Blocks are KV-cache blocks; counts with `total` only grow. None: the engine does not know."""

    blocks_used: int = 0
    blocks_max: int = 0
    reused_tokens_total: int | None = None
    draft_tokens_total: int | None = None
    accepted_tokens_total: int = 0


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine is and what it can hold, told once when it is ready.

    `max_seq_len` is prompt plus output in tokens. `blocks_total` × `block_size` tokens is the KV pool; 0 blocks means
    that the engine reserves by itself. `stop_token_ids` are the model's end-of-sequence tokens. `longest_step_s`: a
    step may take so many seconds before it counts as a stall, where that is more than the model's `stall_timeout_ms`.
    """

    name: str
    version: str
    vocab_size: int
    max_seq_len: int
    max_running: int
    block_size: int
    blocks_total: int
    stop_token_ids: tuple[int, ...]
    capabilities: frozenset[Capability]
    max_beam_width: int = 1
    longest_step_s: float = 0.0


class EngineRefusal(Exception):
    """`Engine.add` refuses one request. `parameter` names the request's parameter at fault, if one is."""

    def __init__(self, message: str, parameter: str | None = None) -> None:
        super().__init__(message)
        self.parameter = parameter


class EngineBroken(Exception):
    """The engine can serve nobody any more: raised by any of its methods, it ends the engine and all its requests."""


class Engine(Protocol):
    """One owner thread calls everything. Every added request gets exactly one terminal output per sequence."""

    info: EngineInfo

    def add(self, request: EngineRequest) -> None:
        """Take a request. Never blocks; raises `EngineRefusal`, after which the request is unknown to the engine. What
        else it raises, and what that means: `faults.py`.
        """

    def cancel(self, request_id: int) -> None:
        """End a request early. Idempotent; unknown ids are ignored; the terminal outputs still follow from `step`."""

    def step(self, timeout_s: float) -> list[EngineOutput]:
        """Do one iteration, or wait for work at most `timeout_s` seconds. Raises when the engine is broken; what
        concerns one request alone is an output with an `error`.
        """

    def stats(self) -> EngineStats:
        """A snapshot; cheap enough for every step."""

    def close(self) -> None:
        """Free everything. Called once, last."""
