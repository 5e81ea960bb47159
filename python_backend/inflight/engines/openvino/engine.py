"""OpenVINO GenAI's continuous batching on a CPU, behind the engine seam.

The KV pool is static (`num_kv_blocks`), prefix caching is on, KV values are 8 bits. Admission reserves every request's
worst case before it comes here, so the pool never runs dry; if a request is ever dropped for lack of blocks, that
promise is broken and the engine reports itself as broken.

Options (model parameter `engine_options`, JSON): see `OpenVinoOptions`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import openvino
import openvino_genai

from inflight import processor
from inflight.engines.base import (
    GUIDED,
    Capability,
    EngineBroken,
    EngineInfo,
    EngineOutput,
    EngineRequest,
    EngineStats,
    FinishReason,
)
from inflight.engines.faults import concerns_one_request
from inflight.engines.openvino import chunk
from inflight.engines.openvino.guides import CompiledGrammars, can_be_guided
from inflight.engines.openvino.lookup import Payoff, ask_for_guesses, can_be_guessed_at, load_lookup
from inflight.engines.openvino.rope import switching_length
from inflight.engines.openvino.sequence import (
    LEAST_TOKENS,
    Sequence,
    generation_config,
    owed_by,
    primer,
    second_token,
)
from inflight.engines.options import check_numbers
from inflight.engines.refusals import in_our_words
from inflight.errors import LoadError, last_line, quoted
from inflight.manifest import Manifest, ManifestError, check
from inflight.model.files import count_of, read_json_object, stop_token_ids
from inflight.model.operations import longest_step_s

log = logging.getLogger("inflight.engine_worker")

BLOCK_SIZE = 32  # tokens per KV block of OpenVINO's CPU plugin
DEFAULT_MAX_RUNNING = 64
DEFAULT_KV_CACHE_BYTES = 2 << 30
MOST_DRAFTED = 64

# A prompt that is wholly in the prefix cache has its last token computed and written again. With keys quantized by
# channel (OpenVINO's default) that re-quantizes the whole block, and every repetition moves it a little; by token it
# changes nothing.
_EXACT_REUSE = {"KEY_CACHE_QUANT_MODE": "BY_TOKEN"}

_NOT_COMPUTED = "a part of it could not be computed"

_CAPABILITIES = frozenset(
    {
        Capability.STREAMING,
        Capability.LOGPROBS,
        Capability.PARALLEL_SAMPLING,
        Capability.BEAM_SEARCH,
        Capability.PREFIX_CACHE,
        Capability.MIN_P,
        Capability.NEVER_PREEMPTS,
    }
)


class OpenVinoOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`kv_cache_gb` sizes the KV pool in GiB (0: as much as `max_running` full contexts need, at most 2 GiB).

    `max_batched_tokens` is the most tokens of one step (prefill is cut into chunks of it; 0: as `chunk.py` says);
    `max_seq_len` lowers the context; `threads` limits the CPU threads (0: all); `kv_precision` overrides the
    manifest's (u8, bf16, f16 or f32). `activation_group` is how many activations share one scale where they meet 8-bit
    weights in a batch (0: as the engine was built, else OpenVINO's default, 32); it should divide the model's widths.

    `speculative` "ngram" guesses up to `num_draft_tokens` tokens at a time, of a greedy answer that runs alone, by
    looking its last `ngram_max` tokens up in the prompt and the answer. It loads the weights a second time.
    """

    kv_cache_gb: float = 0.0
    max_batched_tokens: int = 0
    max_seq_len: int = 0
    threads: int = 0
    kv_precision: str = ""
    prefix_caching: bool = True
    activation_group: int = 0
    speculative: Literal["", "ngram"] = ""
    num_draft_tokens: int = 5
    ngram_max: int = 3


class OpenVinoEngine:
    """See the module's text; the contract is `engines.base.Engine`."""

    def __init__(self, folder: Path, options: Mapping[str, Any], max_running: int) -> None:
        try:
            manifest = check(folder, target="openvino")
        except ManifestError as error:
            raise LoadError(str(error)) from None
        self._options = read_options(options)
        config = read_json_object(folder, "config.json")
        self._precision = self._options.kv_precision or _kv_precision(manifest.quantization.kv_cache)
        info = self._plan(folder, manifest, config, max_running or DEFAULT_MAX_RUNNING)
        cores = self._options.threads or len(os.sched_getaffinity(0))
        _tell_other_processor(manifest.built.details.get("processor"))
        self._chunk = self._options.max_batched_tokens or chunk.tokens_per_step(
            config,
            cores,
            processor.multiplies_integers(),
            info.max_running,
            cut=bool(manifest.built.details.get(processor.PRODUCTS_CUT)),
        )
        longest = longest_step_s(config, self._chunk, cores)
        self.info = msgspec.structs.replace(info, longest_step_s=longest)
        log.info("a step takes at most %d tokens", self._chunk)
        self._sequences: dict[int, Sequence] = {}  # by OpenVINO's request id
        self._of_request: dict[int, list[int]] = {}  # request id → OpenVINO's ids
        self._held: list[Sequence] = []  # came while a primer ran; submitted behind what it is for, in their order
        self._next_id = 0
        self._lookup: Any = None
        self._payoff = Payoff()
        self._pipeline = self._load(folder)
        self._grammars = CompiledGrammars(self._pipeline, folder, self.info.vocab_size)

    def _plan(self, folder: Path, manifest: Manifest, config: Mapping[str, Any], max_running: int) -> EngineInfo:
        """Sizes and capabilities, before anything heavy is loaded."""
        max_seq_len = manifest.limits.max_seq_len
        border = switching_length(config)
        if border is not None and 0 < border < max_seq_len:
            log.warning(
                "sequences end at %d tokens instead of %d: this model's LongRoPE changes every position beyond, which "
                "OpenVINO's graph does not follow; an engine that is built again says so itself",
                border,
                max_seq_len,
            )
            max_seq_len = border
        if self._options.max_seq_len:
            max_seq_len = min(max_seq_len, self._options.max_seq_len)
        block_bytes = BLOCK_SIZE * _kv_bytes_per_token(config, self._precision)
        wanted = max_running * math.ceil(max_seq_len / BLOCK_SIZE)
        budget = int(self._options.kv_cache_gb * 2**30) or DEFAULT_KV_CACHE_BYTES
        blocks = min(wanted, max(budget // block_bytes, 1))
        vocab_size = count_of(config, "vocab_size")
        stops = stop_token_ids(folder, vocab_size)
        return EngineInfo(
            name="openvino",
            version=openvino_genai.__version__,
            vocab_size=vocab_size,
            max_seq_len=min(max_seq_len, blocks * BLOCK_SIZE),
            max_running=max_running,
            block_size=BLOCK_SIZE,
            blocks_total=blocks,
            stop_token_ids=stops,
            capabilities=capabilities(self._options, can_be_guided(folder, stops)),
            max_beam_width=min(16, max_running),
        )

    def _load(self, folder: Path) -> Any:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.num_kv_blocks = self.info.blocks_total
        scheduler.max_num_seqs = self.info.max_running
        scheduler.max_num_batched_tokens = self._chunk
        scheduler.dynamic_split_fuse = True
        scheduler.enable_prefix_caching = self._options.prefix_caching
        properties: dict[str, Any] = {"KV_CACHE_PRECISION": self._precision, **_EXACT_REUSE}
        if self._options.threads:
            properties["INFERENCE_NUM_THREADS"] = self._options.threads
        if self._options.activation_group:
            properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = self._options.activation_group
        try:
            if self._options.speculative:
                self._lookup = load_lookup(
                    folder,
                    properties,
                    self.info.max_seq_len,
                    self._options.num_draft_tokens,
                    BLOCK_SIZE,
                    self._chunk,
                )
            return openvino_genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", properties)
        except RuntimeError as error:
            raise LoadError(f"OpenVINO cannot load this engine ({last_line(error)}); build it again.") from None

    def add(self, request: EngineRequest) -> None:
        sampling = request.sampling
        count = 1 if sampling.beam_width > 1 else sampling.num_sequences
        own_stops = frozenset(self.info.stop_token_ids)
        sequences = []
        for index in range(count):
            config, stop_ids = generation_config(request, index, own_stops)
            limit = sampling.max_tokens
            sequences.append(Sequence(request.request_id, index, request.token_ids, config, stop_ids, limit))
        if request.guide is not None:
            self._grammars.use(request.guide)
        first = sequences[0]
        first.followers = sequences[1:]
        if self._lookup and not self._sequences and can_be_guessed_at(request) and self._payoff.is_due():
            first.is_guessed = True
            ask_for_guesses(first.config, self._options.num_draft_tokens, self._options.ngram_max)
        elif self._is_idle() and self._needs_primer(len(request.token_ids)):
            first = primer(first)
        self._of_request[request.request_id] = []
        try:
            for sequence in sequences:  # all of them now: followers are submitted in a step
                sequence.config.validate()
            if self._is_priming():
                self._held.append(first)
            else:
                self._submit(first)
        except Exception as error:
            del self._of_request[request.request_id]
            if isinstance(error, (RuntimeError, ValueError, TypeError)):  # OpenVINO's ways to refuse a value
                raise in_our_words(self.info.name, error, request) from None
            raise

    def _needs_primer(self, length: int) -> bool:
        """Whether the prompt would be computed differently the first time and when it comes again.

        With at most one token beyond whole cached blocks, a repeated prompt computes just its last token, by the kernel
        for single tokens, whose sums differ a little from the one for prompts. A primer puts those blocks into the
        cache first, so that the request itself always takes the same way, and the same seed gives the same tokens.
        Beside others, where sums differ anyway, it would only cost the request its place: OpenVINO computes prompts in
        the order in which it got them.
        """
        return self._options.prefix_caching and length >= BLOCK_SIZE and length % BLOCK_SIZE <= 1

    def _is_idle(self) -> bool:
        """Whether nobody is being answered; what is on its way out does not count."""
        return all(sequence.cancelled or sequence.ending is not None for sequence in self._sequences.values())

    def _is_priming(self) -> bool:
        return any(sequence.primer for sequence in self._sequences.values())

    def _submit(self, sequence: Sequence) -> None:
        own_id = self._next_id
        self._next_id += 1
        prompt = openvino.Tensor(np.array([sequence.prompt], dtype=np.int64))
        pipeline = self._lookup if sequence.is_guessed else self._pipeline
        sequence.handle = pipeline.add_request(own_id, prompt, sequence.config)
        self._sequences[own_id] = sequence
        self._of_request[sequence.request_id].append(own_id)

    def cancel(self, request_id: int) -> None:
        for own_id in self._of_request.get(request_id, ()):
            self._leave(self._sequences[own_id], FinishReason.CANCELLED)
        for sequence in self._held:
            if sequence.request_id == request_id:
                sequence.leaving = FinishReason.CANCELLED

    @staticmethod
    def _leave(sequence: Sequence, finish: FinishReason) -> None:
        """End a sequence before OpenVINO would: at once, or after its second token."""
        if sequence.ending is not None:
            return  # it has ended, and is about to say so
        sequence.leaving = finish
        made = sequence.generated or int(sequence.handle.can_read())
        if not sequence.cancelled and not 0 < made < LEAST_TOKENS:
            sequence.cancelled = True
            sequence.handle.cancel()

    def step(self, timeout_s: float) -> list[EngineOutput]:
        if not self._sequences:
            return []
        guessed = sum(sequence.is_guessed for sequence in self._sequences.values())
        if guessed:
            self._lookup.step()
        if guessed < len(self._sequences):
            self._pipeline.step()
        outputs: list[EngineOutput] = []
        for own_id, sequence in list(self._sequences.items()):
            try:
                self._collect(own_id, sequence, outputs)
            except Exception as error:  # noqa: BLE001 — another request to OpenVINO that it does not take, for one
                concerns_one_request(error, sequence.request_id)
                self._fail(own_id, sequence, outputs)
        if self._held and not self._is_priming():
            self._submit_held(outputs)
        return outputs

    def _submit_held(self, outputs: list[EngineOutput]) -> None:
        held, self._held = self._held, []
        for sequence in held:
            if sequence.leaving:
                outputs += owed_by(sequence, sequence.leaving)
                del self._of_request[sequence.request_id]
                continue
            try:
                self._submit(sequence)
            except Exception as error:  # noqa: BLE001 — OpenVINO does not take it
                concerns_one_request(error, sequence.request_id)
                outputs += owed_by(sequence, error=_NOT_COMPUTED)
                del self._of_request[sequence.request_id]

    def _fail(self, own_id: int, sequence: Sequence, outputs: list[EngineOutput]) -> None:
        """End a sequence, and those that wait for it, with an error."""
        outputs += owed_by(sequence, error=_NOT_COMPUTED)
        if own_id in self._sequences:
            self._end(own_id, sequence)
            with contextlib.suppress(RuntimeError):
                sequence.handle.cancel()

    def _collect(self, own_id: int, sequence: Sequence, outputs: list[EngineOutput]) -> None:
        if sequence.cancelled:
            outputs += owed_by(sequence, sequence.leaving)
            self._end(own_id, sequence)
        elif not sequence.handle.can_read():
            if sequence.handle.get_status() == _STATUS.IGNORED:
                raise EngineBroken("OpenVINO dropped a request for lack of KV blocks, which admission rules out")
        elif sequence.primer:
            self._follow(sequence)
            self._end(own_id, sequence)
        elif sequence.ending is not None:
            if sequence.handle.get_status() != _STATUS.RUNNING:
                outputs.append(sequence.ending)
                self._end(own_id, sequence)
        elif sequence.config.is_beam_search():
            self._collect_beams(own_id, sequence, outputs)
        else:
            self._collect_one(own_id, sequence, outputs)

    def _follow(self, sequence: Sequence) -> None:
        while sequence.followers:
            self._submit(sequence.followers[0])
            del sequence.followers[0]

    def _collect_one(self, own_id: int, sequence: Sequence, outputs: list[EngineOutput]) -> None:
        if sequence.limit < LEAST_TOKENS and sequence.handle.get_status() == _STATUS.RUNNING:
            return  # its one token comes together with its end
        token_ids: list[int] = []
        logprobs: list[float] = []
        finish: FinishReason | None = None
        while sequence.handle.can_read():
            for generated in sequence.handle.read().values():
                token_ids += generated.generated_ids
                logprobs += generated.generated_log_probs
                finish = finish or _FINISH.get(generated.finish_reason)
        if not token_ids and finish is None and sequence.handle.get_status() == _STATUS.IGNORED:
            raise EngineBroken("OpenVINO dropped a request for lack of KV blocks, which admission rules out")
        room = 0 if sequence.leaving else sequence.limit - sequence.generated
        least = sequence.config.min_new_tokens - sequence.generated
        sequence.generated += len(token_ids)
        sequence.length += len(token_ids)
        sequence.steps += 1
        if len(token_ids) > room:
            del token_ids[room:], logprobs[room:]
            finish = finish and (sequence.leaving or FinishReason.LENGTH)
        hit = sequence.first_stop(token_ids, least)
        if hit:
            del token_ids[hit:], logprobs[hit:]
            finish = finish and FinishReason.STOP
        if finish is None and (hit or sequence.leaving):
            self._leave(sequence, sequence.leaving or FinishReason.STOP)
        over = finish
        is_cached = self._options.prefix_caching and not sequence.is_guessed
        if finish is not None and sequence.generated < LEAST_TOKENS and is_cached:
            self._submit(second_token(sequence, finish))
            over = None
        if token_ids or over:
            given = logprobs if sequence.config.logprobs > 0 else None
            outputs.append(EngineOutput(sequence.request_id, sequence.index, token_ids, over, logprobs=given))
        if sequence.generated:
            self._follow(sequence)
        if finish is not None:
            self._end(own_id, sequence)

    def _collect_beams(self, own_id: int, sequence: Sequence, outputs: list[EngineOutput]) -> None:
        """Beams come once, at the end, best first."""
        beams = sorted(sequence.handle.read().values(), key=lambda beam: -beam.score)
        wanted = sequence.config.num_return_sequences
        for index, beam in enumerate(beams[:wanted]):
            finish = _FINISH.get(beam.finish_reason, FinishReason.STOP)
            logprobs = list(beam.generated_log_probs) if sequence.config.logprobs > 0 else None
            ids = list(beam.generated_ids)
            hit = sequence.first_stop(ids, sequence.config.min_new_tokens)
            if hit:
                ids, logprobs, finish = ids[:hit], logprobs and logprobs[:hit], FinishReason.STOP
            outputs.append(EngineOutput(sequence.request_id, index, ids, finish, logprobs=logprobs))
        for index in range(len(beams), wanted):  # every sequence ends, found or not
            outputs.append(EngineOutput(sequence.request_id, index, [], FinishReason.STOP))
        self._end(own_id, sequence)

    def _end(self, own_id: int, sequence: Sequence) -> None:
        if sequence.is_guessed:
            self._payoff.ended(sequence.generated, sequence.steps)
        del self._sequences[own_id]
        ids = self._of_request[sequence.request_id]
        ids.remove(own_id)
        if not ids:
            del self._of_request[sequence.request_id]

    def stats(self) -> EngineStats:
        used = sum(-(-sequence.length // BLOCK_SIZE) for sequence in self._sequences.values())
        return EngineStats(
            blocks_used=used,
            blocks_max=self.info.blocks_total,
            draft_tokens_total=None,  # OpenVINO tells nobody how many it has guessed
        )

    def close(self) -> None:
        self._sequences.clear()
        self._held.clear()
        del self._pipeline, self._lookup


_LEAST = {"kv_cache_gb": 0, "max_batched_tokens": 0, "max_seq_len": 0, "threads": 0, "activation_group": 0}


def read_options(values: Mapping[str, Any]) -> OpenVinoOptions:
    """The model parameter `engine_options`. Raises `LoadError`."""
    if "lora_dir" in values:  # tests/integration/test_openvino_lora.py has what was tried
        raise LoadError(
            "engine_options: lora_dir is not for the openvino engine, which gives an adapter to all requests of a "
            "batch or to none; merge the adapter into its checkpoint (peft's merge_and_unload) and build that."
        )
    try:
        options = msgspec.convert(dict(values), OpenVinoOptions)
    except msgspec.ValidationError as error:
        raise LoadError(f"model parameter engine_options does not fit the openvino engine: {error}.") from None
    check_numbers(options, _LEAST)
    for name in ("num_draft_tokens", "ngram_max"):
        if name in values and not options.speculative:
            raise LoadError(f"engine_options: {name} means nothing without speculative; give both or neither.")
        if not 1 <= getattr(options, name) <= MOST_DRAFTED:
            raise LoadError(f"engine_options: {name} must be from 1 to {MOST_DRAFTED}.")
    return options


def capabilities(options: OpenVinoOptions, guided: bool) -> frozenset[Capability]:
    """What the engine can do; `guided`: the folder has what guides need."""
    able = _CAPABILITIES | GUIDED if guided else _CAPABILITIES
    return able | {Capability.SPECULATIVE} if options.speculative else able


_STATUS = openvino_genai.GenerationStatus
_REASON = openvino_genai.GenerationFinishReason
_FINISH = {_REASON.STOP: FinishReason.STOP, _REASON.LENGTH: FinishReason.LENGTH}


def _tell_other_processor(built_for: object) -> None:
    """Log that engine.json names another kind of processor than this; engines before 2026-11-30 name none."""
    here = processor.kind()
    if built_for in (processor.VNNI, processor.AVX2) and built_for != here:
        log.warning(
            "this engine was built for another kind of processor (%s; this one is %s): it runs, and may be slower "
            "than one that is built here or with `build_engine build --processor %s`",
            built_for,
            here,
            here,
        )


def _kv_precision(kv_cache: str) -> str:
    """OpenVINO's name for the manifest's KV-cache precision; "none" is the one this CPU computes in."""
    if kv_cache == "int8":
        return "u8"
    computes_bf16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "bf16" if computes_bf16 else "f32"


def _kv_bytes_per_token(config: Mapping[str, Any], precision: str) -> int:
    """Bytes of keys and values per token: layers × 2 × KV heads × head size × bytes; u8 adds a scale and a zero per
    head.
    """
    heads = count_of(config, "num_attention_heads")
    kv_heads = count_of(config, "num_key_value_heads", heads)
    head_size = count_of(config, "head_dim", 0) or max(count_of(config, "hidden_size") // heads, 1)
    per_head = {"u8": head_size + 8, "f16": 2 * head_size, "bf16": 2 * head_size, "f32": 4 * head_size}.get(precision)
    if per_head is None:
        raise LoadError(f"engine_options: kv_precision must be u8, f16, bf16 or f32, but is {quoted(precision)}.")
    return count_of(config, "num_hidden_layers") * 2 * kv_heads * per_head
