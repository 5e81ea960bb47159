"""What LLM is made of: its executor's proxy, a request in the worker, and what its arguments come to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trtllm_double import tokens
from trtllm_double.llm_results import IterationResult, RequestOutput
from trtllm_double.llm_samplers import Sequence
from trtllm_double.options import profile


class Executor:
    """What LLM hands its requests to: the proxy of a worker that may die (executor.py, proxy.py)."""

    def __init__(self) -> None:
        self.doing_shutdown = False
        self.background_error: Exception | None = None
        self.stats: IterationResult | None = None
        if profile().get("llm_stats_rpc"):
            self.rpc_client = self  # from 1.3 on statistics come by a call (proxy.py, stored copy 3493716097)

    def is_shutdown(self) -> bool:
        """Whether it takes nothing any more."""
        return self.doing_shutdown

    def shutdown(self) -> None:
        """For good."""
        self.doing_shutdown = True

    def handle_background_error(self) -> None:
        """Shut down and raise what the worker died of, where it has; only requests and responses ask."""
        error, self.background_error = self.background_error, None
        if error is not None:
            self.shutdown()
            raise error


class Request:
    """One request in the worker."""

    def __init__(self, output: RequestOutput, sequences: list[Sequence], forced: list[int] | None, limit: int) -> None:
        self.output = output
        self.sequences = sequences
        self.forced = forced
        self.limit = limit
        self.cancelled = False

    def cancel(self) -> None:
        """At the next iteration."""
        self.cancelled = True


class Prefixes:
    """What is left of earlier prompts in the KV cache, token by token: blocks that match in part are copied."""

    MOST = 200_000  # beginnings of prompts; then all are dropped

    def __init__(self) -> None:
        self._known: set[tuple[str, int]] = set()

    def cached(self, prompt: list[int], salt: str, adapter: int) -> int:
        """How many tokens of a prompt are not computed again; its last one always is. Remembers the prompt."""
        if len(self._known) > self.MOST:
            self._known.clear()
        count, state = 0, tokens.start([], adapter=adapter)
        for place, token in enumerate(prompt[:-1], 1):
            state = tokens.advance(state, token)
            if (salt, state) in self._known:
                count = place
            self._known.add((salt, state))
        return count


def check_arguments(kwargs: dict[str, Any]) -> None:
    """What the validators of llm_args.py and create_py_executor refuse."""
    speculative, guided = kwargs.get("speculative_config"), kwargs.get("guided_decoding_backend")
    if type(speculative).__name__ == "NGramDecodingConfig" and not (
        (speculative.max_draft_len or 0) > 0 and (speculative.max_matching_ngram_size or 0) > 0
    ):
        raise ValueError(
            "1 validation error for TorchLlmArgs\n  Assertion failed, [type=assertion_error, input_value=…]"
        )
    # py_executor_creator.py: stored copies 9841842691, 2869238873 (1.0), 1239867052 (1.1)
    if guided and speculative is not None and not profile().get("llm_guided_speculative", False):
        raise RuntimeError("Guided decoding is not supported with speculative decoding.")
    # The sampling page of 1.0's documentation: with TRTLLMSampler there are no beams without these.
    plain = kwargs.get("disable_overlap_scheduler") and kwargs.get("cuda_graph_config", ...) is None
    if kwargs.get("max_beam_width", 1) > 1 and sampler_of(kwargs) == "TRTLLMSampler" and not plain:
        raise RuntimeError("beams need disable_overlap_scheduler and no CUDA graphs")
    overlapped = not kwargs.get("disable_overlap_scheduler")
    if guided and overlapped and not profile().get("llm_guided_overlap", True):
        raise RuntimeError("Guided decoding is not supported with overlap scheduler.")


def sampler_of(kwargs: dict[str, Any]) -> str:
    """The sampler that create_py_executor makes (`instantiate_sampler`): with speculation always its own one."""
    speculation = kwargs.get("speculative_config")
    if speculation is not None:
        return "OneModelSampler" if getattr(speculation, "eagle3_one_model", False) else "TorchSampler"
    if kwargs.get("enable_trtllm_sampler") or kwargs.get("sampler_type") == "TRTLLMSampler":
        return "TRTLLMSampler"
    return "TorchSampler"


def greedy_only(kwargs: dict[str, Any]) -> bool:
    """Drafts inside the model are compared with the likeliest tokens, unless it is told to sample."""
    speculation = kwargs.get("speculative_config")
    one_model = getattr(speculation, "eagle3_one_model", False)
    return bool(one_model and not getattr(speculation, "allow_advanced_sampling", False))


def end_token(folder: Path | None) -> int:
    """What the model ends its texts with, as generation_config.json says; the first of several."""
    path = folder / "generation_config.json" if folder is not None else None
    if path is None or not path.is_file():
        return 2
    found = json.loads(path.read_text()).get("eos_token_id")
    return int(found[0] if isinstance(found, list) else found)


def tokenizer_end(folder: Path) -> int:
    """The tokenizer's own end token, which it is asked for when the guides' configuration is made; -1 for none."""
    config, tokenizer = folder / "tokenizer_config.json", folder / "tokenizer.json"
    named = json.loads(config.read_text()).get("eos_token") if config.is_file() else None
    named = named.get("content") if isinstance(named, dict) else named
    added = json.loads(tokenizer.read_text()).get("added_tokens") or []
    return next((int(entry["id"]) for entry in added if entry["content"] == named), -1)
