"""Speculative decoding with a pair of engines: a small one drafts, the large one verifies (external draft tokens).

    draft engine:  n tokens after what is known ──▶ large engine: checks them in one iteration, adds one of its own

Round by round, for every greedy request; what samples, uses beams, a guide, an adapter or log-probabilities goes to
the large engine alone. The tokens are those that the large engine would have chosen by itself.
"""

from __future__ import annotations

import contextlib
import datetime
import time
from typing import Any

import msgspec

from inflight.engines.base import EngineInfo, EngineOutput, EngineRequest, EngineStats, FinishReason
from inflight.engines.faults import concerns_one_request
from inflight.engines.refusals import in_our_words
from inflight.engines.tensorrt_llm.executor import CLOSE_S, ExecutorEngine
from inflight.engines.tensorrt_llm.iterations import shut_down
from inflight.engines.tensorrt_llm.sampling import executor_request, split_stops

DRAFT_POLL_S = 0.001
ROUND_FAILED = "a round of its drafts failed, for the reason above; send it again, or serve the model without drafts"


class _Pair:
    """One drafted request. `known` is the prompt and everything verified; `offered` how many of its
    tokens the round in the large engine was given as a draft.
    """

    __slots__ = ("cancelled", "known", "left", "offered", "request", "verifying")

    def __init__(self, request: EngineRequest) -> None:
        self.request = request
        self.known = list(request.token_ids)
        self.left = request.sampling.max_tokens
        self.offered = 0
        self.verifying = False
        self.cancelled = False


class DraftedEngine:
    """See the module's text; the contract is `engines.base.Engine`. Wraps the large engine and owns the draft
    executor, whose longest prompt has `longest` tokens.
    """

    def __init__(self, engine: ExecutorEngine, draft: Any, num_draft_tokens: int, longest: int) -> None:
        self._engine = engine
        self._draft = draft
        self._length = num_draft_tokens
        self._longest = min(longest, engine.max_input_len)
        self.info: EngineInfo = engine.info
        self._pairs: dict[int, _Pair] = {}  # by our request id
        self._drafting: dict[int, tuple[_Pair, list[int]]] = {}  # by the draft executor's id
        self._draft_tokens = self._accepted = 0
        self._drafted = time.monotonic()  # when the small engine last had something to say, or nothing to do

    def add(self, request: EngineRequest) -> None:
        longest = len(request.token_ids) + request.sampling.max_tokens  # each round's prompt holds the answer so far
        if not _can_draft(request) or longest > self._longest:
            self._engine.add(request)
            return
        self._engine.check(request)
        pair = _Pair(request)
        self._pairs[request.request_id] = pair
        try:
            self._start_draft(pair)
        except Exception as error:
            del self._pairs[request.request_id]
            if isinstance(error, (RuntimeError, TypeError, ValueError)):
                raise in_our_words(self.info.name, error, request) from None
            raise

    def cancel(self, request_id: int) -> None:
        pair = self._pairs.get(request_id)
        if pair is None or pair.verifying:
            self._engine.cancel(request_id)
        if pair is not None:
            pair.cancelled = True

    def step(self, timeout_s: float) -> list[EngineOutput]:
        outputs: list[EngineOutput] = []
        wait = DRAFT_POLL_S if self._pairs else timeout_s
        if self._drafting:
            responses = self._draft.await_responses(timeout=datetime.timedelta(seconds=timeout_s))
            self._watch(bool(responses))
            for response in responses:
                drafting = self._drafting.get(response.request_id)
                if drafting is None:
                    continue
                try:
                    self._take_draft(response, outputs)
                except Exception as error:  # noqa: BLE001 — the large engine refuses this request's next round
                    self._give_up(error, drafting[0], outputs)
        for output in self._engine.step(wait):
            pair = self._pairs.get(output.request_id)
            if pair is None:
                outputs.append(output)
                continue
            try:
                self._take_verified(pair, output, outputs)
            except Exception as error:  # noqa: BLE001 — the small engine refuses this request's next draft
                self._give_up(error, pair, outputs)
        return outputs

    def stats(self) -> EngineStats:
        return msgspec.structs.replace(
            self._engine.stats(), draft_tokens_total=self._draft_tokens, accepted_tokens_total=self._accepted
        )

    def close(self) -> None:
        self._engine.close()
        for draft_id in self._drafting:
            with contextlib.suppress(RuntimeError):
                self._draft.cancel_request(draft_id)
        shut_down(self._draft, CLOSE_S)

    def _watch(self, progress: bool) -> None:
        """Raises for a small engine that stands still: the large one, which has nothing to do then, notices nothing."""
        now = time.monotonic()
        if progress:
            self._drafted = now
        elif now - self._drafted > self._engine.stall_timeout_s:
            raise RuntimeError(f"the draft engine said nothing for {self._engine.stall_timeout_s:g} s")

    def _start_draft(self, pair: _Pair) -> None:
        """Let the small engine go on from what is known; without room for a draft, verify nothing and finish."""
        length = min(self._length, pair.left - 1, self.info.max_seq_len - len(pair.known) - 1)
        if length < 1:
            self._verify(pair, [])
            return
        sampling = msgspec.structs.replace(pair.request.sampling, max_tokens=length, min_tokens=0, stop_token_ids=())
        request = msgspec.structs.replace(pair.request, token_ids=pair.known, sampling=sampling)
        trtllm = self._engine.bindings
        made = executor_request(trtllm, request, split_stops(sampling, ()), None, None)
        if not self._drafting:
            self._drafted = time.monotonic()
        self._drafting[self._draft.enqueue_request(made)] = (pair, [])

    def _take_draft(self, response: Any, outputs: list[EngineOutput]) -> None:
        found = self._drafting.get(response.request_id)
        if found is None:
            return
        pair, tokens = found
        if not response.has_error():
            tokens += [int(token) for token in response.result.output_token_ids[0]]
            if not response.result.is_final:
                return
        del self._drafting[response.request_id]
        if pair.cancelled:
            self._end(pair, FinishReason.CANCELLED, [], outputs)
        else:
            self._verify(pair, tokens)

    def _verify(self, pair: _Pair, draft: list[int]) -> None:
        """One round in the large engine: the draft and one token more."""
        self._draft_tokens += len(draft)
        sampling = pair.request.sampling
        made = len(pair.known) - len(pair.request.token_ids)
        round_sampling = msgspec.structs.replace(
            sampling, max_tokens=min(len(draft) + 1, pair.left), min_tokens=max(0, sampling.min_tokens - made)
        )
        pair.verifying = True
        pair.offered = len(draft)
        self._engine.add_round(
            msgspec.structs.replace(pair.request, token_ids=pair.known, sampling=round_sampling, perf_metrics=False),
            draft,
        )

    def _take_verified(self, pair: _Pair, output: EngineOutput, outputs: list[EngineOutput]) -> None:
        pair.known += output.token_ids
        pair.left -= len(output.token_ids)
        if output.finish is None and output.error is None:
            if output.token_ids:
                outputs.append(EngineOutput(output.request_id, 0, output.token_ids))
            return
        pair.verifying = False
        verified = len(pair.known)
        self._accepted += min(pair.offered, max(0, len(output.token_ids) - 1))
        goes_on = output.finish is FinishReason.LENGTH and pair.left > 0 and verified < self.info.max_seq_len
        if goes_on and not pair.cancelled:
            if output.token_ids:
                outputs.append(EngineOutput(output.request_id, 0, output.token_ids))
            self._start_draft(pair)
            return
        del self._pairs[output.request_id]
        finish = FinishReason.CANCELLED if pair.cancelled and output.error is None else output.finish
        refusal = output.refusal and verified == len(pair.request.token_ids)  # later rounds are none of the client's
        outputs.append(
            EngineOutput(output.request_id, 0, output.token_ids, finish, error=output.error, refusal=refusal)
        )

    def _give_up(self, error: Exception, pair: _Pair, outputs: list[EngineOutput]) -> None:
        """A round of one request failed: that request ends."""
        concerns_one_request(error, pair.request.request_id)
        if self._pairs.pop(pair.request.request_id, None) is not None:
            self._engine.cancel(pair.request.request_id)
            outputs.append(EngineOutput(pair.request.request_id, 0, [], error=ROUND_FAILED))

    def _end(self, pair: _Pair, reason: FinishReason, ids: list[int], outputs: list[EngineOutput]) -> None:
        del self._pairs[pair.request.request_id]
        outputs.append(EngineOutput(pair.request.request_id, 0, ids, reason))


def _can_draft(request: EngineRequest) -> bool:
    sampling = request.sampling
    alone = sampling.num_sequences == 1 and sampling.beam_width == 1 and sampling.logprobs < 0
    plain = request.guide is None and request.lora_name is None and not sampling.bad_words
    unpenalized = (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) == (
        1.0,
        0.0,
        0.0,
    )
    return sampling.temperature == 0.0 and alone and plain and unpenalized
