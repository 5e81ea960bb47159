"""An engine without weights: a cost model of prefill, decode and KV blocks, and a deterministic token stream.

For load tests of everything around an engine, for capacity planning, and for fault injection. It batches in flight,
reads prompts in chunks beside decoding, reuses equal beginnings, never preempts, and can accept drafts. It needs only
the directory's tokenizer. Options and the cost of a step: `cost.py`; KV blocks: `cache.py`.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer

from inflight import __version__
from inflight.engines.base import EngineInfo, EngineOutput
from inflight.engines.simulated.batch import InflightBatch
from inflight.engines.simulated.cost import Clock, SimulatedOptions, WallClock, capabilities
from inflight.engines.simulated.tokens import Vocabulary
from inflight.errors import LoadError


class SimulatedEngine(InflightBatch):
    """See the module's text; the contract is `engines.base.Engine`."""

    def __init__(self, folder: Path, options: Mapping[str, Any], max_running: int, clock: Clock | None = None) -> None:
        try:
            given = msgspec.convert(dict(options), SimulatedOptions)
        except msgspec.ValidationError as error:
            raise LoadError(f"model parameter engine_options does not fit the simulated engine: {error}.") from None
        if "acceptance_rate" in options and not given.draft_tokens:
            raise LoadError("engine_options: acceptance_rate means nothing without draft_tokens; give both or neither.")
        time.sleep(given.load_ms / 1000)
        if given.fail_load:
            raise LoadError(given.fail_load)
        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # noqa: BLE001 — the library raises nothing narrower
            raise LoadError(f"the simulated engine needs tokenizer.json in the engine directory ({error}).") from None
        special = {token_id for token_id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        size = tokenizer.get_vocab_size()
        vocabulary = Vocabulary(
            [token_id for token_id in range(size) if token_id not in special], min(special, default=0)
        )
        super().__init__(vocabulary, given, max_running or given.max_running, clock or WallClock())
        self._made = 0
        self.info = EngineInfo(
            name="simulated",
            version=__version__,
            vocab_size=size,
            max_seq_len=given.max_seq_len,
            max_running=self.max_running,
            block_size=given.block_size,
            blocks_total=given.blocks,
            stop_token_ids=(vocabulary.eos,),
            capabilities=capabilities(given),
        )

    def step(self, timeout_s: float) -> list[EngineOutput]:
        """One iteration; returns at once when there is nothing to do."""
        outputs = super().step(timeout_s)
        options = self.options
        if options.crash_at_token or options.stall_at_token or options.raise_at_token:
            self._faults(sum(len(output.token_ids) for output in outputs))
        return outputs

    def _faults(self, tokens: int) -> None:
        before, self._made = self._made, self._made + tokens
        if before < self.options.crash_at_token <= self._made:
            os.kill(os.getpid(), signal.SIGKILL)
        if before < self.options.stall_at_token <= self._made:
            time.sleep(1e6)
        if before < self.options.raise_at_token <= self._made:
            raise RuntimeError("simulated fault: raise_at_token")
