"""The questions of `selfcheck.probes` that need a loaded engine: of one rank, without a server in between."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inflight.engines.tensorrt_llm.config import executor_config
from inflight.engines.tensorrt_llm.options import read_options
from inflight.engines.tensorrt_llm.probe import engine_facts, read_config

WAIT_S = 60.0
PROMPT = [5, 6, 7, 8]


@dataclass(frozen=True, slots=True)
class Loaded:
    """The bindings, an executor on one engine, and how many tokens a sequence of it can have."""

    trtllm: Any
    executor: Any
    length: int

    def ask(self, prompt: list[int], tokens: int, **output: bool) -> int:
        """Enqueue a greedy request; returns its id."""
        request = self.trtllm.Request(
            prompt,
            tokens,
            streaming=False,
            sampling_config=self.trtllm.SamplingConfig(top_k=1),
            output_config=self.trtllm.OutputConfig(**output),
        )
        return int(self.executor.enqueue_request(request))

    def last(self, request_id: int) -> Any:
        """The final response of a request, or one with an error. Raises `TimeoutError`."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            for response in self.executor.await_responses(timeout=datetime.timedelta(seconds=1)):
                if response.request_id == request_id and (response.has_error() or response.result.is_final):
                    return response
        raise TimeoutError(f"no final response within {WAIT_S:g} s")

    def close(self) -> None:
        self.executor.shutdown()


def quiet_executor(trtllm: Any, make: Callable[..., Any], folder: Path) -> Loaded:
    """Load `folder` as serving would, without a guide and without options."""
    facts = engine_facts(folder, read_config(folder))
    executor = make(trtllm, folder, executor_config(trtllm, read_options({}), facts, None))
    return Loaded(trtllm, executor, facts.limit("max_seq_len"))


def plain_answer(loaded: Loaded) -> str:
    whole = loaded.last(loaded.ask(PROMPT, 4)).result.output_token_ids[0]
    alone = loaded.last(loaded.ask(PROMPT, 4, exclude_input_from_output=True)).result.output_token_ids[0]
    if list(whole[: len(PROMPT)]) != PROMPT:
        return f"an answer to {PROMPT} begins with {list(whole[: len(PROMPT)])}"
    return "" if list(whole[len(PROMPT) :]) == list(alone) else f"{list(whole)} with the prompt, {list(alone)} without"


def after_cancel(loaded: Loaded) -> str:
    request = loaded.ask(PROMPT, loaded.length - len(PROMPT))
    loaded.executor.cancel_request(request)
    loaded.executor.cancel_request(request)
    response = loaded.last(request)
    if response.has_error():
        return f"its last response is an error: {response.error_msg}"
    reason = str(response.result.finish_reasons[0]).rpartition(".")[2]
    return "" if reason == "CANCELLED" else f"its last response says {reason}"


def elapsed_wait(loaded: Loaded) -> str:
    began = time.monotonic()
    found = loaded.executor.await_responses(timeout=datetime.timedelta(milliseconds=50))
    waited = time.monotonic() - began
    if found:
        return f"{len(found)} responses of nobody"
    return "" if waited < WAIT_S / 4 else f"it took {waited:.1f} s"


def beyond_the_context(loaded: Loaded) -> str:
    try:
        response = loaded.last(loaded.ask([5] * (loaded.length + 1), 1))
    except RuntimeError:
        response = None
    if response is not None and not response.has_error():
        return "it was answered"
    return plain_answer(loaded)


def cut_to_the_room(loaded: Loaded) -> str:
    prompt = [5] * (loaded.length // 2)
    response = loaded.last(loaded.ask(prompt, loaded.length, exclude_input_from_output=True))
    if response.has_error():
        return f"it is refused: {response.error_msg}"
    made = len(response.result.output_token_ids[0])
    reason = str(response.result.finish_reasons[0]).rpartition(".")[2]
    if reason != "LENGTH":
        return f"it ended by {reason} after {made} tokens: nothing to see"
    room = loaded.length - len(prompt)
    return "" if made == room else f"{made} tokens where there is room for {room}"


def idle_statistics(loaded: Loaded) -> str:
    loaded.last(loaded.ask(PROMPT, 4))
    time.sleep(0.2)
    loaded.executor.get_latest_iteration_stats()
    time.sleep(0.2)
    again = loaded.executor.get_latest_iteration_stats()
    return f"{len(again)} iterations of an idle engine" if again else ""
