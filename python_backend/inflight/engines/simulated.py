"""An engine without weights: a cost model of prefill, decode and KV blocks, and a deterministic token stream.

For load tests of everything around an engine, for capacity planning, and for fault injection. It needs only the
directory's tokenizer. Options: see `SimulatedOptions`.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer

from inflight import __version__
from inflight.engines.base import (
    Capability,
    EngineInfo,
    EngineOutput,
    EngineRequest,
    EngineStats,
    FinishReason,
)
from inflight.errors import LoadError

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


class SimulatedOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Times in milliseconds. One step costs `step_ms` + `prefill_us_per_token` × prompt tokens +
    `decode_us_per_sequence` × sequences; with `real_time` false steps cost nothing and run as fast as the machine can.

    `eos_every` ends a sequence after that many tokens (0: only max_tokens does). Faults happen at the step in which
    the N-th token of the engine's life is made: `crash_at_token` kills the process, `stall_at_token` stops it from
    returning, `raise_at_token` raises out of `step`. `fail_load` refuses to load with that sentence.
    """

    step_ms: float = 5.0
    prefill_us_per_token: float = 20.0
    decode_us_per_sequence: float = 50.0
    real_time: bool = True
    max_seq_len: int = 8192
    max_running: int = 256
    block_size: int = 32
    blocks: int = 16_384
    chunk_tokens: int = 2048
    eos_every: int = 0
    crash_at_token: int = 0
    stall_at_token: int = 0
    raise_at_token: int = 0
    load_ms: float = 0.0
    fail_load: str = ""


class _Sequence:
    __slots__ = ("cancelled", "ids", "index", "made", "prefill_left", "request")

    def __init__(self, request: EngineRequest, index: int, ids: _TokenStream) -> None:
        self.request = request
        self.index = index
        self.ids = ids
        self.prefill_left = len(request.token_ids) if index == 0 else 0
        self.made = 0
        self.cancelled = False


class _TokenStream:
    """Tokens that depend on the prompt, the seed (when sampled) and the sequence, and on nothing else."""

    __slots__ = ("_length", "_place", "_tokens")

    def __init__(self, request: EngineRequest, index: int, tokens: list[int]) -> None:
        seed = request.sampling.seed if request.sampling.temperature > 0 else 0
        material = repr((request.token_ids, seed, index if seed else 0)).encode()
        self._place = int.from_bytes(hashlib.sha256(material).digest()[:8], "little")
        self._tokens = tokens
        self._length = len(tokens)

    def next(self) -> int:
        self._place = (self._place * 6364136223846793005 + 1442695040888963407) & (2**64 - 1)
        return self._tokens[(self._place >> 33) % self._length]


class SimulatedEngine:
    """See the module's text; the contract is `engines.base.Engine`."""

    def __init__(self, folder: Path, options: Mapping[str, Any], max_running: int) -> None:
        try:
            self._options = msgspec.convert(dict(options), SimulatedOptions)
        except msgspec.ValidationError as error:
            raise LoadError(f"model parameter engine_options does not fit the simulated engine: {error}.") from None
        time.sleep(self._options.load_ms / 1000)
        if self._options.fail_load:
            raise LoadError(self._options.fail_load)
        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # noqa: BLE001 — the library raises nothing narrower
            raise LoadError(f"the simulated engine needs tokenizer.json in the engine directory ({error}).") from None
        special = {token_id for token_id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self._tokens = [token_id for token_id in range(tokenizer.get_vocab_size()) if token_id not in special]
        random.Random(0).shuffle(self._tokens)
        self._eos = min(special, default=0)
        self.info = EngineInfo(
            name="simulated",
            version=__version__,
            vocab_size=tokenizer.get_vocab_size(),
            max_seq_len=self._options.max_seq_len,
            max_running=max_running or self._options.max_running,
            block_size=self._options.block_size,
            blocks_total=self._options.blocks,
            stop_token_ids=(self._eos,),
            capabilities=_CAPABILITIES,
        )
        self._waiting: deque[_Sequence] = deque()
        self._running: list[_Sequence] = []
        self._of_request: dict[int, list[_Sequence]] = {}
        self._total = 0
        self._due = 0.0

    def add(self, request: EngineRequest) -> None:
        sequences = [
            _Sequence(request, index, _TokenStream(request, index, self._tokens))
            for index in range(request.sampling.num_sequences)
        ]
        self._of_request[request.request_id] = sequences
        self._waiting.extend(sequences)

    def cancel(self, request_id: int) -> None:
        for sequence in self._of_request.get(request_id, ()):
            sequence.cancelled = True

    def step(self, timeout_s: float) -> list[EngineOutput]:
        while self._waiting and len(self._running) < self.info.max_running:
            self._running.append(self._waiting.popleft())
        prefilled, decoding = self._prefill()
        self._pay(prefilled, len(decoding))
        outputs: list[EngineOutput] = []
        for sequence in [*self._running, *self._waiting]:
            if sequence.cancelled:
                outputs.append(EngineOutput(sequence.request.request_id, sequence.index, [], FinishReason.CANCELLED))
        self._waiting = deque(sequence for sequence in self._waiting if not sequence.cancelled)
        outputs += [self._decode(sequence) for sequence in decoding]
        if outputs:
            ended = {(output.request_id, output.sequence_index) for output in outputs if output.finish}
            if ended:
                self._leave(ended)
        return outputs

    def _prefill(self) -> tuple[int, list[_Sequence]]:
        """Spend the step's chunk on prompts; (tokens spent, sequences that decode in this step)."""
        budget = self._options.chunk_tokens
        decoding = []
        for sequence in self._running:
            if sequence.cancelled:
                continue
            spent = min(budget, sequence.prefill_left)
            sequence.prefill_left -= spent
            budget -= spent
            if not sequence.prefill_left:
                decoding.append(sequence)
        return self._options.chunk_tokens - budget, decoding

    def _pay(self, prefilled: int, decoded: int) -> None:
        """Let the modelled time of this step pass."""
        if not self._options.real_time:
            return
        options = self._options
        cost_us = options.step_ms * 1000 + prefilled * options.prefill_us_per_token
        cost_us += decoded * options.decode_us_per_sequence
        now = time.monotonic()
        self._due = max(self._due, now) + cost_us / 1e6
        time.sleep(max(0.0, self._due - now))

    def _decode(self, sequence: _Sequence) -> EngineOutput:
        self._faults()
        sampling = sequence.request.sampling
        sequence.made += 1
        token = sequence.ids.next()
        finish = None
        at_end = self._options.eos_every and sequence.made >= self._options.eos_every
        if at_end and self._eos in sampling.stop_token_ids and sequence.made > sampling.min_tokens:
            token, finish = self._eos, FinishReason.STOP
        elif token in sampling.stop_token_ids and sequence.made > sampling.min_tokens:
            finish = FinishReason.STOP
        elif sequence.made >= sampling.max_tokens:
            finish = FinishReason.LENGTH
        logprobs = [-1.0 / (1 + sequence.made % 7)] if sampling.logprobs >= 0 else None
        return EngineOutput(sequence.request.request_id, sequence.index, [token], finish, logprobs=logprobs)

    def _faults(self) -> None:
        self._total += 1
        if self._total == self._options.crash_at_token:
            os.kill(os.getpid(), signal.SIGKILL)
        if self._total == self._options.stall_at_token:
            time.sleep(1e6)
        if self._total == self._options.raise_at_token:
            raise RuntimeError("simulated fault: raise_at_token")

    def _leave(self, ended: set[tuple[int, int]]) -> None:
        self._running = [
            sequence for sequence in self._running if (sequence.request.request_id, sequence.index) not in ended
        ]
        for request_id, index in ended:
            left = [sequence for sequence in self._of_request[request_id] if sequence.index != index]
            if left:
                self._of_request[request_id] = left
            else:
                del self._of_request[request_id]

    def stats(self) -> EngineStats:
        size = self._options.block_size
        used = sum(-(-(len(sequence.request.token_ids) + sequence.made) // size) for sequence in self._running)
        return EngineStats(
            running=len(self._running), waiting=len(self._waiting), blocks_used=used, blocks_max=self._options.blocks
        )

    def close(self) -> None:
        self._running.clear()
        self._waiting.clear()
