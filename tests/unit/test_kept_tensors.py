"""Tensors that most responses have alike are made once by each sending thread; what clients get is the same."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

pytestmark = pytest.mark.fast


class Tensor:
    """As Triton's: a name and an array."""

    def __init__(self, name: str, array: np.ndarray[Any, Any]) -> None:
        self.name, self.array = name, array

    def told(self) -> tuple[str, str, tuple[int, ...], list[Any]]:
        """Everything that a client sees of it."""
        return self.name, str(self.array.dtype), self.array.shape, self.array.tolist()


@pytest.fixture
def io(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module in front of a Triton that keeps what it is given."""
    triton = MagicMock()
    triton.Tensor = Tensor
    triton.InferenceResponse = lambda tensors: tensors
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", triton)
    sys.modules.pop("inflight.triton.io", None)
    yield importlib.import_module("inflight.triton.io")
    sys.modules.pop("inflight.triton.io", None)


def sent(io: ModuleType, responder: Any, calls: str, tokens: int, finish: str = "", cached: int = 0) -> list[Tensor]:
    """The tensors of one response of a chat with tools."""
    stream, reply = MagicMock(num_input_tokens=12, block_size=16), MagicMock()
    stream.request = MagicMock(
        num_sequences=1, beam_width=1, return_token_ids=False, return_cumulative_logprob=False, return_log_probs=False
    )
    stream.request.return_logprobs_json = stream.request.return_model_info = stream.request.return_perf_metrics = False
    reply.texts, reply.finishes, reply.stops = ["a word"], [finish], [""]
    reply.thoughts, reply.calls, reply.num_output_tokens = [""], [calls], [tokens]
    reply.timing.reused_blocks = cached
    found: list[Tensor] = responder._tensors(stream, reply)
    return found


def of(tensors: list[Tensor], name: str) -> Tensor:
    (found,) = (tensor for tensor in tensors if tensor.name == name)
    return found


@pytest.mark.parametrize("batched", [False, True])
def test_a_kept_tensor_says_what_a_new_one_would(io: ModuleType, batched: bool) -> None:
    responder = io.TritonResponder(MagicMock(), batched, False)
    for calls, tokens, finish in (("[]", 3, ""), ("[1]", 3, ""), ("[]", 63, ""), ("[]", 64, "stop"), ("[]", 0, "")):
        tensors = [tensor.told() for tensor in sent(io, responder, calls, tokens, finish)]
        one = (1, 1) if batched else (1,)

        def value(each: Any) -> list[Any]:
            return [[each]] if batched else [each]

        assert tensors == [
            ("text_output", "object", (1,), [b"a word"]),
            ("finish_reason", "object", one, value(finish.encode())),
            ("stop_reason", "object", one, value(b"")),
            ("reasoning_output", "object", one, value(b"")),
            ("tool_calls", "object", one, value(calls.encode())),
            ("num_input_tokens", "uint32", one, value(12)),
            ("num_cached_tokens", "uint32", one, value(0)),
            ("num_output_tokens", "uint32", one, value(tokens)),
        ]


def test_what_most_responses_say_is_made_once(io: ModuleType) -> None:
    first, second = (io.TritonResponder(MagicMock(), False, False) for _ in range(2))
    one, other = sent(io, first, "[]", 3), sent(io, second, "[]", 3)
    for name in ("finish_reason", "stop_reason", "reasoning_output", "tool_calls", "num_output_tokens"):
        assert of(one, name) is of(other, name)
    assert of(one, "text_output") is not of(other, "text_output")
    assert of(one, "num_input_tokens") is not of(other, "num_input_tokens"), "each request has its own"
    assert of(one, "num_input_tokens") is of(sent(io, first, "[]", 4), "num_input_tokens")


def test_a_thread_never_sends_what_another_one_keeps(io: ModuleType) -> None:
    """Triton's stub writes a tensor into shared memory when it is first sent, without a lock."""
    responder = io.TritonResponder(MagicMock(), False, False)
    mine, theirs = sent(io, responder, "[]", 3), []
    thread = threading.Thread(target=lambda: theirs.extend(sent(io, responder, "[]", 3)))
    thread.start()
    thread.join(10.0)
    assert of(mine, "tool_calls") is not of(theirs, "tool_calls")


def test_what_is_kept_is_bounded(io: ModuleType) -> None:
    for number in range(1000):
        sent(io, io.TritonResponder(MagicMock(), False, False), f'[{{"index": {number}}}]', number, f"reason {number}")
    assert len(io._kept.tensors) < 80
