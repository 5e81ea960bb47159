"""What the simulated engine can be told, and how long a step takes: the roofline of a decoder, as numbers. Pure."""

from __future__ import annotations

import time
from typing import Annotated, Protocol

import msgspec

from inflight.engines.base import Capability

_CAPABILITIES = frozenset(
    {
        Capability.STREAMING,
        Capability.LOGPROBS,
        Capability.PARALLEL_SAMPLING,
        Capability.MIN_P,
        Capability.CACHE_SALT,
        Capability.BATCH_INVARIANT,
        Capability.NEVER_PREEMPTS,
    }
)

_Positive = Annotated[int, msgspec.Meta(ge=1)]
_Count = Annotated[int, msgspec.Meta(ge=0)]
_Cost = Annotated[float, msgspec.Meta(ge=0)]
_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class SimulatedOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One step costs what `step_seconds` says; with `real_time` false it costs nothing and runs as fast as the machine
    can. `scripts/bench/capacity.py --engine-options` prints the costs of known models on known GPUs.

    At most `chunk_tokens` prompt tokens are read in a step, beside one decoded token for each sequence. A sequence
    starts when its worst case fits into what is left of `blocks` × `block_size` tokens, so that none is ever
    preempted (`blocks` 0: no limit). `prefix_caching` keeps the blocks of ended requests, least recently used first
    to go, for prompts that begin alike under the same cache_salt. With `draft_tokens` every sequence drafts that many
    tokens a step and keeps the leading ones that are accepted, each with probability `acceptance_rate`.

    `eos_every` ends a sequence after that many tokens (0: only max_tokens does). Faults happen at the step in which
    the N-th token of the engine's life is made: `crash_at_token` kills the process, `stall_at_token` stops it from
    returning, `raise_at_token` raises out of `step`. `fail_load` refuses to load with that sentence, `load_ms` delays.
    """

    step_ms: _Cost = 5.0
    prefill_us_per_token: _Cost = 20.0
    decode_us_per_sequence: _Cost = 50.0
    context_ns_per_token: _Cost = 0.0
    compute_us_per_token: _Cost = 0.0
    attention_ps_per_pair: _Cost = 0.0
    overhead_ms: _Cost = 0.0
    real_time: bool = True
    max_seq_len: _Positive = 8192
    max_running: _Positive = 256
    block_size: _Positive = 32
    blocks: _Count = 16_384
    chunk_tokens: _Positive = 2048
    prefix_caching: bool = True
    draft_tokens: _Count = 0
    acceptance_rate: _Share = 0.6
    eos_every: _Count = 0
    crash_at_token: _Count = 0
    stall_at_token: _Count = 0
    raise_at_token: _Count = 0
    load_ms: _Cost = 0.0
    fail_load: str = ""


def capabilities(options: SimulatedOptions) -> frozenset[Capability]:
    """What an engine with these options can do."""
    more = {Capability.PREFIX_CACHE: options.prefix_caching, Capability.SPECULATIVE: options.draft_tokens > 0}
    return _CAPABILITIES | {capability for capability, there in more.items() if there}


class Work(msgspec.Struct, gc=False):
    """What one step computes: tokens of prompts, decoding sequences, the tokens verified for them (drafts and one
    more each), the tokens of context whose keys and values they read, and pairs of a token and one it attends to.
    """

    prefilled: int = 0
    decoding: int = 0
    verified: int = 0
    context: int = 0
    pairs: int = 0


def step_seconds(options: SimulatedOptions, work: Work) -> float:
    """Seconds of one step: the longer of its memory side and its arithmetic, and what comes on top of both.

        max(step_ms + context × context_ns,  (prefilled + verified) × compute_us + pairs × attention_ps)
        + prefilled × prefill_us + decoding × decode_us + overhead_ms

    That is the roofline of one step (build_engine/planning/roofline.py has the sources): `step_ms` is the time to read
    the weights once, `context_ns_per_token` to read one token's keys and values, `overhead_ms` to schedule and launch;
    the defaults leave the arithmetic out and take a step's cost to be linear, as measured on a CPU.
    """
    memory_us = options.step_ms * 1e3 + work.context * options.context_ns_per_token / 1e3
    compute_us = (work.prefilled + work.verified) * options.compute_us_per_token
    compute_us += work.pairs * options.attention_ps_per_pair / 1e6
    on_top = work.prefilled * options.prefill_us_per_token + work.decoding * options.decode_us_per_sequence
    on_top += options.overhead_ms * 1e3
    return (max(memory_us, compute_us) + on_top) / 1e6


class Clock(Protocol):
    """Time as the engine sees it, in seconds: the machine's own, or one that a simulation turns by hand."""

    def now(self) -> float:
        """Seconds since some moment."""

    def sleep(self, seconds: float) -> None:
        """Come back that much later."""


class WallClock:
    """The machine's own."""

    def now(self) -> float:
        """Seconds since some moment."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Come back that much later."""
        time.sleep(seconds)
