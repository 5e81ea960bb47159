"""Hugging Face-style checkpoints, quantized or not, through tensorrt_llm.LLM: the PyTorch flow, behind the engine seam.

`llm_load` makes the LLM, `llm_loop` speaks with it on a thread of its own, `llm_output` reads what it says.
"""

from __future__ import annotations

import concurrent.futures
import importlib
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from inflight.engines.adapters import adapter_folder
from inflight.engines.base import (
    EngineBroken,
    EngineInfo,
    EngineOutput,
    EngineRefusal,
    EngineRequest,
    EngineStats,
    SamplingParams,
)
from inflight.engines.faults import concerns_one_request
from inflight.engines.refusals import in_our_words
from inflight.engines.tensorrt_llm.llm_adapters import check_adapter
from inflight.engines.tensorrt_llm.llm_load import capabilities_of, load_llm, number_of
from inflight.engines.tensorrt_llm.llm_loop import LlmLoop
from inflight.engines.tensorrt_llm.llm_output import LiveRequest, Piece, Sampler
from inflight.engines.tensorrt_llm.options import TensorRtLlmOptions
from inflight.engines.tensorrt_llm.probe import Installed, first_line
from inflight.engines.tensorrt_llm.sampling import PENALTIES, llm_sampling_params, split_llm_stops
from inflight.model.files import end_token_of_tokenizer

log = logging.getLogger("inflight.engine_worker")

DEFAULT_MAX_RUNNING = 256
CALL_S = 10.0
CLOSE_S = 2.0
FIRST_ANSWER_S = 300.0  # kernels may be compiled when the first request comes; nothing has stalled yet

# What is said of a request that LLM ends; what LLM said stands above it in the log.
ENDED_BY_LLM = (
    "tensorrt_llm.LLM ended it with an error, which stands above: a step failed, which ends every request in it, or "
    "LLM does not take this one; send it again, and if that fails again, change what the error names"
)

# Said of one request, but the GPU's context is lost for all: the worker would fail every request from then on.
GPU_LOST = re.compile(r"CUDA error|cudaError|device-side assert|illegal memory access|launch failure|NCCL error", re.I)


class LlmEngine:
    """See the module's text; the contract is `engines.base.Engine`."""

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        options: TensorRtLlmOptions,
        installed: Installed,
        max_running: int,
        stop_tokens: tuple[int, ...],
    ) -> None:
        # Several greedy answers to one prompt are equal, but no mistake; LLM refuses them unless told otherwise.
        os.environ.setdefault("TLLM_ALLOW_N_GREEDY_DECODING", "1")
        self._api = importlib.import_module("tensorrt_llm.llmapi")
        self._lora_dir = Path(options.lora_dir) if options.lora_dir else None
        self._adapters: dict[str, Any] = {}
        loaded = load_llm(folder, options, installed, max_running or DEFAULT_MAX_RUNNING)
        self._llm, self._sampler, self._features = loaded.llm, loaded.sampler, loaded.features
        self._room = loaded.adapters
        self._guides_end = end_token_of_tokenizer(folder)
        self.info = EngineInfo(
            name="tensorrt_llm",
            version=installed.version,
            vocab_size=number_of(config, "vocab_size"),
            max_seq_len=self._context(options, config),
            max_running=max_running or DEFAULT_MAX_RUNNING,
            block_size=32,
            blocks_total=0,
            stop_token_ids=stop_tokens,
            capabilities=capabilities_of(loaded, options),
            max_beam_width=options.max_beam_width,
        )
        limit = getattr(getattr(self._llm, "args", None), "max_num_tokens", None)
        self._max_prompt = limit if isinstance(limit, int) and not options.enable_chunked_context else None
        self._live: dict[int, LiveRequest] = {}
        self._stats = EngineStats()
        self._stall_timeout = options.stall_timeout_ms / 1000
        self._progress = time.monotonic()
        self._has_executor = getattr(self._llm, "_executor", None) is not None
        self._answered = False
        self._late_since: float | None = None  # since when LLM has taken no request in time
        self._loop = LlmLoop(self._llm)

    def _context(self, options: TensorRtLlmOptions, config: Mapping[str, Any]) -> int:
        """Prompt plus output: what LLM settled on, where it says so, else the checkpoint's."""
        known = getattr(getattr(self._llm, "args", None), "max_seq_len", None)
        context = known if isinstance(known, int) else number_of(config, "max_position_embeddings")
        return min(context, options.max_seq_len) if options.max_seq_len else context

    # -- the seam ----------------------------------------------------------------------------------------------------

    def add(self, request: EngineRequest) -> None:
        self._check_alive()
        self._check_prompt(len(request.token_ids))
        self._check_beams(request.sampling.beam_width)
        self._check_sampler(request.sampling)
        stops = split_llm_stops(
            self._with_guides_end(request), self.info.stop_token_ids, end_in_output=self._sampler is not Sampler.TRTLLM
        )
        live = LiveRequest(request, stops)
        try:
            params = llm_sampling_params(self._api, request, stops)
            extra: dict[str, Any] = {}
            if request.lora_name is not None:
                extra["lora_request"] = self._adapter(request.lora_name)
            if request.cache_salt is not None:
                extra["cache_salt"] = request.cache_salt
            self._loop.start(live, params, extra, CALL_S)
        except (TimeoutError, concurrent.futures.TimeoutError):
            self._late()
            raise
        except EngineRefusal:
            raise
        except Exception as error:
            self._check_alive()  # it may be what the worker died of
            if isinstance(error, (ValueError, TypeError, RuntimeError)):
                raise in_our_words(self.info.name, error, request) from None
            raise
        self._late_since = None
        if not self._live:
            self._progress = time.monotonic()  # an idle engine has not been standing still
        self._live[request.request_id] = live

    def cancel(self, request_id: int) -> None:
        live = self._live.get(request_id)
        if live is not None and not live.cancelled:
            live.cancelled = True
            self._loop.abort(live)

    def step(self, timeout_s: float) -> list[EngineOutput]:
        outputs: list[EngineOutput] = []
        try:
            request_id, said = self._loop.arrived.get(timeout=timeout_s)
            while True:
                self._progress, self._answered = time.monotonic(), True
                if isinstance(said, EngineStats):
                    self._stats = said
                elif request_id in self._live:
                    self._hear(self._live[request_id], said, outputs)
                request_id, said = self._loop.arrived.get_nowait()
        except queue.Empty:
            pass
        if self._live:
            self._check_alive()
            limit = self._stall_timeout if self._answered else max(self._stall_timeout, FIRST_ANSWER_S)
            if time.monotonic() - self._progress > limit:
                raise EngineBroken(f"tensorrt_llm.LLM made no progress for {limit:g} s with requests under way")
        return outputs

    def stats(self) -> EngineStats:
        if not self._live:
            return EngineStats(blocks_max=self._stats.blocks_max, reused_tokens_total=self._stats.reused_tokens_total)
        return self._stats

    def close(self) -> None:
        self._loop.closing = True
        for live in self._live.values():
            self._loop.abort(live)
        closing = threading.Thread(target=self._llm.shutdown, name="inflight-trtllm-shutdown", daemon=True)
        closing.start()
        closing.join(CLOSE_S)
        self._loop.close()

    # -- whether LLM can go on ---------------------------------------------------------------------------------------

    def _check_alive(self) -> None:
        """LLM shuts itself down when its worker has died, and refuses everybody from then on. Raises `EngineBroken`."""
        executor = getattr(self._llm, "_executor", None)
        if (executor is None and self._has_executor) or getattr(executor, "doing_shutdown", False):
            raise EngineBroken("tensorrt_llm.LLM has shut itself down; its worker's error is in the log above")

    def _late(self) -> None:
        """LLM's thread has not taken a request in time: this one's misfortune, until it has lasted as long as a stall.
        Raises `EngineBroken`.
        """
        now = time.monotonic()
        self._late_since = self._late_since or now - CALL_S
        if now - self._late_since > self._stall_timeout:
            raise EngineBroken(f"tensorrt_llm.LLM has taken no request for {self._stall_timeout:g} s") from None

    # -- requests ----------------------------------------------------------------------------------------------------

    def _with_guides_end(self, request: EngineRequest) -> SamplingParams:
        """At the end of a guide xgrammar lets the tokenizer's end token through and no other of the model's."""
        sampling, end = request.sampling, self._guides_end
        if request.guide is None or end is None or end in sampling.stop_token_ids or not sampling.stop_token_ids:
            return sampling
        return msgspec.structs.replace(sampling, stop_token_ids=(*sampling.stop_token_ids, end))

    def _check_prompt(self, tokens: int) -> None:
        """Without chunks a prompt is read in one iteration. Raises `EngineRefusal`."""
        if self._max_prompt is not None and tokens > self._max_prompt:
            raise EngineRefusal(
                f"has {tokens} tokens and the engine takes {self._max_prompt} at most in one prompt (max_num_tokens, "
                "without enable_chunked_context); shorten it",
                "input_ids",
            )

    def _check_beams(self, width: int) -> None:
        """The PyTorch flow has one beam width for all requests; it would fail a request of another one late, in
        words of its own. Raises `EngineRefusal`.
        """
        if width != self.info.max_beam_width:
            raise EngineRefusal(
                f"is {width}, and on the PyTorch flow every request of this model searches with "
                f"{self.info.max_beam_width} beams (max_beam_width); set it to that, or use a model without it",
                "beam_width",
            )

    def _check_sampler(self, sampling: SamplingParams) -> None:
        """What this release's sampler would leave out without a word. Raises `EngineRefusal`."""
        if self._sampler is Sampler.TRTLLM and sampling.logprobs >= 0 and sampling.min_tokens > 0:
            raise EngineRefusal(
                "cannot be had together with min_tokens on this release's PyTorch flow, which does not tell that of "
                "the end token then; leave out one of the two",
                "logprobs",
            )
        if self._features.penalties:
            return
        for name, neutral in PENALTIES:
            if getattr(sampling, name) != neutral:
                raise EngineRefusal(
                    "is not to be had: the sampler of this TensorRT-LLM has no penalties; leave it out", name
                )

    def _hear(self, live: LiveRequest, said: list[Piece] | Exception | None, outputs: list[EngineOutput]) -> None:
        """What has come of one request. Raises `EngineBroken` where it shows that LLM cannot go on."""
        try:
            if isinstance(said, Exception):
                self._failed(live, said, outputs)
            elif said is None:
                self._end(live, outputs)
            else:
                self._advance(live, said, outputs)
        except EngineRefusal as refusal:
            self._give_up(live, outputs, refusal)
        except Exception as error:  # noqa: BLE001 — LLM's words for one request, which we fail to read
            concerns_one_request(error, live.request.request_id)
            self._give_up(live, outputs, "what TensorRT-LLM said of it could not be read")

    def _advance(self, live: LiveRequest, pieces: list[Piece], outputs: list[EngineOutput]) -> None:
        for piece in pieces:
            output = live.advance(piece, self._sampler, self.info.block_size)
            if output is not None:
                outputs.append(output)
        if live.done:
            if live.stops.watched:  # LLM knows nothing of these ends
                self._loop.abort(live)
            del self._live[live.request.request_id]

    def _end(self, live: LiveRequest, outputs: list[EngineOutput]) -> None:
        """Every sequence that has not ended does now."""
        for index in range(live.request.sampling.num_sequences):
            if index not in live.ended:
                outputs.append(live.end(index, self._sampler, self.info.max_seq_len))
        del self._live[live.request.request_id]

    def _failed(self, live: LiveRequest, error: Exception, outputs: list[EngineOutput]) -> None:
        self._check_alive()
        words = first_line(error)
        if GPU_LOST.search(str(error)):
            raise EngineBroken(f"TensorRT-LLM has lost the GPU: {words}")
        log.error("request %d failed in TensorRT-LLM: %s", live.request.request_id, words)
        outputs.extend(live.failed(ENDED_BY_LLM))
        del self._live[live.request.request_id]

    def _give_up(self, live: LiveRequest, outputs: list[EngineOutput], why: str | EngineRefusal) -> None:
        """End a request with an error that LLM knows nothing of."""
        self._loop.abort(live)
        outputs.extend(live.failed(why))
        self._live.pop(live.request.request_id, None)

    def _adapter(self, name: str) -> Any:
        """A LoRARequest. Raises `EngineRefusal` for an adapter that is not there or cannot be loaded."""
        folder = adapter_folder(self._lora_dir, name)
        if name not in self._adapters:
            assert self._room is not None  # a folder was found, so there is a lora_dir
            check_adapter(folder, name, self._room)
            request = importlib.import_module("tensorrt_llm.executor.request")
            self._adapters[name] = request.LoRARequest(name, len(self._adapters) + 1, str(folder))
        return self._adapters[name]
