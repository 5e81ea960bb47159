"""Reading requests: from what has arrived to a stream that the dispatcher admits, or to an answer that says why not.

submit ─▶ look: what is asked for ─┬▶ read: the prompt's tokens ─▶ dispatcher
                                   └▶ wait for its guide ─▶ look once more

Runs in the parse pool. Whatever goes wrong with a request on the way ends that request and nothing else.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable, MutableMapping

from inflight.answer.detokenizer import DetokenizerFactory
from inflight.answer.reasoning import Stage, stage_of
from inflight.answer.stream import Stream
from inflight.backend.about import with_left_out
from inflight.backend.forms import ModelForms
from inflight.engines.base import EngineInfo, Guide
from inflight.errors import ErrorCode, RequestError, internal
from inflight.guides.beforehand import check_combination
from inflight.guides.service import Decision, GuideService, NewGuide
from inflight.model.parameters import ModelConfig
from inflight.request.defaults import GenerationDefaults
from inflight.request.parse import GenerationRequest, RawRequest, parse_request
from inflight.request.prompt import Prompt, PromptBuilder, check_capabilities, engine_request, reading_cost
from inflight.request.stop_words import Stops, stops_of
from inflight.request.tokenizer import TextTokenizer
from inflight.serving.arrival import Arrival
from inflight.serving.delivery import Delivery, LiveStream
from inflight.serving.dispatcher import Dispatcher
from inflight.serving.parsing import ParsePool, Work

log = logging.getLogger("inflight.backend")

LOOK_SHARE = 64  # to look at what a request asks for takes so much less than to tokenize as many bytes
SHOWN_NOTES = 8  # of what a guide of tools leaves out

TOO_DEEP = "the request's JSON is nested too deeply; use fewer lists and objects within each other"
BYTES_PER_TOKEN = 4  # of a prompt that has not been tokenized: a guess


class _Ended(Exception):
    """The request was answered while it was prepared."""


class Reader:
    """Reads the requests of one model. `live` gets every stream that is made, before the dispatcher does."""

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: TextTokenizer,
        builder: PromptBuilder,
        forms: ModelForms,
        defaults: GenerationDefaults,
        pool: ParsePool,
        guides: GuideService,
        dispatcher: Dispatcher,
        delivery: Delivery,
        live: MutableMapping[int, LiveStream],
        on_left: Callable[[], None],
        on_closed: Callable[[LiveStream], None],
    ) -> None:
        """`on_left` is called once for each request that does not become a stream, `on_closed` for each stream that
        has had its terminal response.
        """
        self._config = config
        self._tokenizer = tokenizer
        self._builder = builder
        self._forms = forms
        self._defaults = defaults
        self._pool = pool
        self._guides = guides
        self._dispatcher = dispatcher
        self._delivery = delivery
        self._live = live
        self._on_left = on_left
        self._on_closed = on_closed
        self._ids = itertools.count(1)
        self._info: EngineInfo | None = None
        self._model_info = ""
        self._detokenizers: DetokenizerFactory | None = None
        self.arrivals: set[Arrival] = set()  # what has arrived and is no stream yet

    def engine_up(self, info: EngineInfo, model_info: str) -> None:
        """Read for this engine from now on; `model_info` is what clients are told of it."""
        self._model_info = model_info
        if self._detokenizers is None or self._info is None or self._info.vocab_size != info.vocab_size:
            self._detokenizers = DetokenizerFactory(self._tokenizer.library, info.vocab_size)
            beyond = self._tokenizer.tokens_beyond(info.vocab_size)
            if beyond:
                log.warning(
                    "the tokenizer has %d tokens beyond the model's vocabulary of %d (%s, ...): prompts with them are "
                    "refused",
                    len(beyond),
                    info.vocab_size,
                    ", ".join(map(repr, beyond[:3])),
                )
        self._info = info

    def tokens(self, size: int) -> int:
        """About how many tokens a prompt of that many bytes has, if it fits. An engine has been there."""
        assert self._info is not None
        return min(size // BYTES_PER_TOKEN, self._info.max_seq_len)

    def take(self, raw: RawRequest, arrival: Arrival) -> None:
        """Read a request that has arrived. Never raises, never blocks."""
        self.arrivals.add(arrival)
        if arrival.deadline is not None:
            self._dispatcher.watch(arrival, arrival.deadline)
        self._enqueue(raw, arrival, None)

    def end_all(self, error: RequestError) -> None:
        """Answer everything that is no stream yet."""
        for arrival in self.arrivals.copy():
            arrival.end(error)

    def _enqueue(self, raw: RawRequest, arrival: Arrival, decision: Decision | None) -> None:
        """Hand over to the parse pool: a request that has arrived, or one whose guide has been checked."""
        held = raw.bytes_held
        self._pool.submit(
            Work(
                lambda: self._step(arrival, lambda: self._look(raw, arrival, decision)),
                lambda error: self._leave(arrival, error),
                arrival.arrival_ns / 1e9,
                cost=held // LOOK_SHARE,
                tokens=self.tokens(held),
                held=held,
            )
        )

    def _leave(self, arrival: Arrival, error: RequestError) -> None:
        """It does not become a stream: answer it, unless it was answered before, and let it go."""
        arrival.end(error)
        self._let_go(arrival)

    def _let_go(self, arrival: Arrival) -> None:
        self.arrivals.discard(arrival)
        self._on_left()

    def _step(self, arrival: Arrival, do: Callable[[], Work | None]) -> Work | None:
        """One step of reading a request. Its trouble ends the request and nothing else."""
        if arrival.closed:
            self._let_go(arrival)
            return None
        try:
            return do()
        except _Ended:
            self._let_go(arrival)
        except RequestError as error:
            self._leave(arrival, error)
        except RecursionError:  # Python reads at one depth of calls what it cannot write again at another
            self._leave(arrival, RequestError(ErrorCode.INVALID_ARG, TOO_DEEP))
        except Exception:
            log.exception("request %s: parsing failed", arrival.identity)
            self._leave(arrival, internal(arrival.identity.id))
        return None

    def _look(self, raw: RawRequest, arrival: Arrival, decision: Decision | None) -> Work | None:
        """What a request asks for; then its prompt is read, unless a guide has to be checked first."""
        info = self._info
        assert info is not None
        request = parse_request(raw, self._config, self._defaults, self._builder.limits(info))
        request = self._forms.guided(request, self._stage)
        with request.its_words():
            check_capabilities(request, info)
            if request.guide is not None:
                check_combination(request, info)
                try:
                    request = dataclasses.replace(request, guide=self._guides.decide(request.guide, decision))
                except NewGuide as new:
                    self._tell_relaxations(request, arrival)
                    self._wait_for_guide(raw, arrival, new.guide)
                    return None
        cost = reading_cost(request)
        return Work(
            lambda: self._step(arrival, lambda: self._read(request, arrival, info)),
            lambda error: self._leave(arrival, error),
            arrival.arrival_ns / 1e9,
            cost=cost,
            tokens=self.tokens(cost) if request.input_ids is None else len(request.input_ids),
            held=raw.bytes_held,
            priority=request.priority,
        )

    def _tell_relaxations(self, request: GenerationRequest, arrival: Arrival) -> None:
        """What a new guide of tools leaves out of their schemas: once for each guide, for operators."""
        notes = self._forms.left_out(request)
        if notes:
            log.info("request %s: tools are guided without %s", arrival.identity, "; ".join(notes[:SHOWN_NOTES]))

    def _stage(self, request: GenerationRequest) -> Stage:
        """Where the prompt will leave the model, which is seen before it is made: the answer's guide says so."""
        end, prefill = self._builder.ending(request)
        return stage_of(end, self._forms.reasoning, prefill)

    def _wait_for_guide(self, raw: RawRequest, arrival: Arrival, guide: Guide) -> None:
        """It comes back into the pool with its decision; if it ends before, it is let go at once."""
        arrival.waits = "its guide was checked"

        def done(decision: Decision) -> None:
            arrival.waits = "it was parsed"
            self._enqueue(raw, arrival, decision)

        withdraw = self._guides.ask(guide, done, gone=arrival.poll_cancelled, who=arrival.identity)

        def left() -> None:
            if withdraw():
                self._let_go(arrival)

        arrival.when_left(left)

    def _read(self, request: GenerationRequest, arrival: Arrival, info: EngineInfo) -> None:
        """Make the prompt's tokens, and hand over to the dispatcher."""

        def go_on() -> None:
            if arrival.closed:
                raise _Ended

        with request.its_words():
            prompt = self._builder.build(request, info, go_on)
            stops = stops_of(request, info, self._tokenizer)
            for_engine = engine_request(next(self._ids), request, prompt, stops, info, self._tokenizer)
        live = self._make(request, prompt, stops, for_engine.request_id, arrival)
        self._live[live.request_id] = live
        self.arrivals.discard(arrival)
        if request.max_tokens == 0:
            self._delivery.end_counted(live)
        else:
            self._dispatcher.submit(live, for_engine)

    def _make(
        self, request: GenerationRequest, prompt: Prompt, stops: Stops, request_id: int, arrival: Arrival
    ) -> LiveStream:
        detokenizers = self._detokenizers
        info = self._info
        assert detokenizers is not None
        context = prompt.token_ids[-16:]
        form = self._forms.parts_of(request, prompt)
        shown: frozenset[int] = frozenset() if form.plain else self._forms.markers
        stream = Stream(
            request,
            prompt,
            stops,
            lambda: detokenizers.make(request.skip_special_tokens, context, shown),
            self._token_text,
            arrival.identity,
            arrival.arrival_ns,
            form,
            detokenizers.token_bytes,
            info.block_size if info is not None else 0,
        )
        if request.return_model_info:
            stream.model_info = with_left_out(self._model_info, self._forms.left_out(request))
        responder = arrival.hand_over()
        if responder is None:
            raise _Ended
        live = LiveStream(request_id, stream, responder)
        live.on_abandon = self._dispatcher.abandon
        live.on_closed = self._on_closed
        live.counted = not arrival.warmup
        if request.deadline_ms:
            live.deadline = arrival.arrival_ns / 1e9 + request.deadline_ms / 1000
        return live

    def _token_text(self, token_id: int) -> str:
        return self._tokenizer.decode([token_id], skip_special_tokens=False)
