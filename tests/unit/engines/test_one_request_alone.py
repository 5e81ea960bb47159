"""What one request brings ends that request: adapters, half-added requests, words that cannot be read, on every engine
that can be had here. vLLM's own part is a stand-in of a few lines.
"""

from __future__ import annotations

import errno
import os
import sys
import types
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from inflight.engines.base import EngineBroken, EngineRefusal, FinishReason
from inflight.engines.faults import end_of_add
from inflight.engines.tensorrt_llm import llmapi
from inflight.engines.vllm.engine import VllmEngine
from inflight.engines.vllm.load import refusals_of_vllm
from inflight.errors import ErrorCode
from tests.doubles.folders import write_checkpoint
from tests.doubles.stand_in import collect, request, run, stand_in

pytestmark = pytest.mark.fast

PROMPT = [11, 12, 13, 14]


class VLLMValidationError(Exception):
    """As vllm.exceptions has it from 0.32 on: no ValueError."""


class VllmCore:
    """As much of vLLM's LLMEngine as a request passes."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.aborted: list[str] = []
        self.fails_at = ""  # this id cannot be added
        self.error: Exception = RuntimeError("no")
        self.loaded: list[int] = []
        self.results: list[Any] = []

    def add_request(self, key: str, *_: object, **__: object) -> None:
        if key == self.fails_at:
            raise self.error
        self.requests.append(key)

    def abort_request(self, keys: list[str]) -> None:
        self.aborted += keys
        self.requests = [key for key in self.requests if key not in keys]

    def add_lora(self, lora: Any) -> None:
        self.loaded.append(lora[1])
        if "damaged" in lora[0]:
            raise KeyError("base_model.model.lm_head")

    def step(self) -> list[Any]:
        found, self.results = self.results, []
        return found


def vllm_engine(lora_dir: Path | None = None) -> tuple[Any, VllmCore]:
    """The engine, without what it does to load."""
    engine: Any = object.__new__(VllmEngine)
    core = VllmCore()
    engine._engine = core
    engine._vllm = types.SimpleNamespace(
        lora_request=lambda *arguments: arguments,
        tokens_input=lambda ids, **_: ids,
        sampling_params=lambda **values: types.SimpleNamespace(**values),
        delta="delta",
        refusals=refusals_of_vllm(),
    )
    engine._lora_dir = lora_dir
    engine._adapters, engine._sequences, engine._of_request, engine._ended = {}, {}, {}, []
    engine._numbers = iter(range(1, 100))
    engine._reused_tokens = 0
    engine._drafts = None
    engine.info = types.SimpleNamespace(name="vllm", stop_token_ids=(1,), block_size=16)
    return engine, core


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as found:
        yield found


def engine_with_adapters(kind: str, stack: ExitStack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """An engine of that kind whose lora_dir is `tmp_path`/lora."""
    lora = tmp_path / "lora"
    lora.mkdir()
    if kind == "vllm":
        return vllm_engine(lora)[0]
    double = stack.enter_context(stand_in(monkeypatch, tmp_path, "1.3" if kind == "llm" else "1.2"))
    if kind == "llm":
        return double.engine(write_checkpoint(tmp_path / "checkpoint", double.tokenizer), lora_dir=str(lora))
    return double.engine(double.folder(plugin_config={"lora_plugin": "auto"}), lora_dir=str(lora))


@pytest.mark.parametrize("kind", ["executor", "llm", "vllm"])
def test_a_name_that_is_no_folder_is_an_adapter_that_is_not_there(
    kind: str, stack: ExitStack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine = engine_with_adapters(kind, stack, monkeypatch, tmp_path)
    for name in ("blue", "x" * 255, "x" * 256, "é" * 128, "a\0b", "../lora", "/", ".", "", "\udc80"):
        with pytest.raises(EngineRefusal) as caught:
            engine.add(request(1, PROMPT, lora_name=name))
        assert caught.value.parameter == "lora_name"


@pytest.mark.parametrize("kind", ["executor", "vllm"])
def test_an_adapter_that_may_not_be_read_is_refused_by_its_name(
    kind: str, stack: ExitStack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And so is one whose name is not there, beside a folder that nobody may look into."""
    engine = engine_with_adapters(kind, stack, monkeypatch, tmp_path)
    for name in ("closed", "open"):
        (tmp_path / "lora" / name).mkdir()
    access, is_file, opens, is_dir = os.access, Path.is_file, os.open, Path.is_dir

    def closed(path: Any) -> bool:
        return "closed" in Path(path).parts

    def refuse(path: Any) -> None:
        if closed(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "access", lambda path, *mode: not closed(path) and access(path, *mode))
    monkeypatch.setattr(Path, "is_file", lambda path: refuse(path) or is_file(path))
    monkeypatch.setattr(os, "open", lambda path, *how: refuse(path) or opens(path, *how))
    with pytest.raises(EngineRefusal, match="'closed' may not be read by the server") as caught:
        engine.add(request(1, PROMPT, lora_name="closed"))
    assert caught.value.parameter == "lora_name"
    monkeypatch.setattr(Path, "is_dir", lambda path: refuse(path) or is_dir(path))
    with pytest.raises(EngineRefusal, match=r"the adapters of this model are open$"):
        engine.add(request(2, PROMPT, lora_name="red"))


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"not numpy", b"PK\x03\x04broken", b"\x80\x04N."])
@pytest.mark.parametrize("damaged", ["model.lora_weights.npy", "model.lora_config.npy"])
def test_a_damaged_adapter_is_refused_by_its_name(
    damaged: str, content: bytes, stack: ExitStack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import numpy as np

    engine = engine_with_adapters("executor", stack, monkeypatch, tmp_path)
    folder = tmp_path / "lora" / "red"
    folder.mkdir()
    for file in ("model.lora_weights.npy", "model.lora_config.npy"):
        np.save(folder / file, np.zeros((1, 4, 3), dtype=np.int32))
    (folder / damaged).write_bytes(content)
    with pytest.raises(EngineRefusal, match="'red' is damaged"):
        engine.add(request(1, PROMPT, lora_name="red"))
    assert run(engine, request(2, PROMPT))


def test_an_adapter_that_vllm_could_not_load_leaves_its_number_to_nobody(tmp_path: Path) -> None:
    engine, core = vllm_engine(tmp_path)
    for name in ("damaged", "red"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_model.safetensors").touch()
    with pytest.raises(EngineRefusal, match="'damaged' cannot be loaded"):
        engine.add(request(1, PROMPT, lora_name="damaged"))
    engine.add(request(2, PROMPT, lora_name="red"))
    assert core.loaded == [1, 2]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("min_p must be in [0, 1]"), ErrorCode.INVALID_ARG),
        (VLLMValidationError("temperature must be in [0, 2], got 64.0."), ErrorCode.INVALID_ARG),
        (MemoryError(), ErrorCode.UNAVAILABLE),
        (KeyError("red"), ErrorCode.INTERNAL),
        (AssertionError(), ErrorCode.INTERNAL),
    ],
)
def test_vllm_takes_a_request_whole_or_not_at_all(
    error: Exception, code: ErrorCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = types.ModuleType("vllm.exceptions")
    installed.VLLMValidationError = VLLMValidationError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", types.ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, "vllm.exceptions", installed)
    engine, core = vllm_engine()
    engine.add(request(1, PROMPT))
    core.fails_at, core.error = "2.1", error
    with pytest.raises(Exception) as caught:
        engine.add(request(2, PROMPT, num_sequences=3))
    assert end_of_add(caught.value).code is code
    assert core.requests == ["1.0"]
    assert set(engine._of_request) == {1}


def test_what_vllm_says_of_one_request_and_we_cannot_read_ends_that_one() -> None:
    engine, core = vllm_engine()
    engine.add(request(1, PROMPT))
    engine.add(request(2, PROMPT))
    good = types.SimpleNamespace(token_ids=[7], finish_reason="length", logprobs=None)
    core.results = [
        types.SimpleNamespace(request_id="1.0", outputs=[], num_cached_tokens=0),
        types.SimpleNamespace(request_id="2.0", outputs=[good], num_cached_tokens=0),
    ]
    first, second = engine.step(0.0)
    assert (first.request_id, bool(first.error)) == (1, True)
    assert (second.request_id, second.finish) == (2, FinishReason.LENGTH)
    assert core.aborted == ["1.0"]


def test_a_cancel_that_vllm_fails_leaves_the_request_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, core = vllm_engine()
    engine.add(request(1, PROMPT))

    def fails(_: object) -> None:
        raise KeyError("1.0")

    monkeypatch.setattr(core, "abort_request", fails)
    with pytest.raises(KeyError):
        engine.cancel(1)
    good = types.SimpleNamespace(token_ids=[7], finish_reason="length", logprobs=None)
    core.results = [types.SimpleNamespace(request_id="1.0", outputs=[good], num_cached_tokens=0)]
    (output,) = engine.step(0.0)
    assert output.finish is FinishReason.LENGTH


def test_a_request_that_llm_does_not_take_in_time_is_taken_back(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The loop is busy, so the call times out, and LLM has the request after all a little later."""
    double = stack.enter_context(stand_in(monkeypatch, tmp_path, "1.3"))
    engine: Any = double.engine(write_checkpoint(tmp_path / "checkpoint", double.tokenizer))
    monkeypatch.setattr(llmapi, "CALL_S", 0.05)
    made: list[Any] = []
    generate = engine._llm.generate_async

    def slow(*arguments: Any, **named: Any) -> Any:
        import time

        time.sleep(0.3)
        made.append(generate(*arguments, **named))
        return made[-1]

    engine._llm.generate_async = slow
    with pytest.raises(Exception) as caught:
        engine.add(request(1, PROMPT))
    assert end_of_add(caught.value).code is ErrorCode.UNAVAILABLE
    engine._llm.generate_async = generate
    monkeypatch.setattr(llmapi, "CALL_S", 10.0)
    assert run(engine, request(2, PROMPT)), "the engine serves, and says nothing of the other"
    assert made[0].aborted()


def test_what_llm_says_of_one_request_and_we_cannot_read_ends_that_one(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    double = stack.enter_context(stand_in(monkeypatch, tmp_path, "1.3"))
    engine: Any = double.engine(write_checkpoint(tmp_path / "checkpoint", double.tokenizer))
    advance = engine._advance

    def fails(live: Any, *arguments: Any) -> None:
        if live.request.request_id == 1:
            raise KeyError("logprobs")
        advance(live, *arguments)

    engine._advance = fails
    engine.add(request(1, PROMPT))
    engine.add(request(2, PROMPT))
    found = collect(engine, {(1, 0), (2, 0)})
    assert found[1, 0][-1].error
    assert found[2, 0][-1].finish is FinishReason.LENGTH


def test_an_executor_that_takes_nothing_any_more_is_broken(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine: Any = stack.enter_context(stand_in(monkeypatch, tmp_path)).engine()

    def fails(_: object) -> int:
        raise RuntimeError("Executor is shut down")

    engine._executor.enqueue_request = fails
    with pytest.raises(EngineRefusal):
        engine.add(request(1, PROMPT))
    engine._executor.can_enqueue_requests = lambda: False
    with pytest.raises(EngineBroken):
        engine.add(request(2, PROMPT))


def test_what_the_executor_says_of_one_request_and_we_cannot_read_ends_that_one(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine: Any = stack.enter_context(stand_in(monkeypatch, tmp_path)).engine()
    increment = engine._increment

    def fails(live: Any, *arguments: Any) -> None:
        if live.request.request_id == 1:
            raise IndexError("log_probs")
        increment(live, *arguments)

    engine._increment = fails
    engine.add(request(1, PROMPT, num_sequences=2))
    engine.add(request(2, PROMPT))
    found = collect(engine, {(1, 0), (1, 1), (2, 0)})
    assert [found[1, index][-1].error is not None for index in (0, 1)] == [True, True]
    assert found[2, 0][-1].finish is FinishReason.LENGTH


def pair_of_engines(double: Any, **build: Any) -> Any:
    """A large engine and a small one that drafts for it."""
    large = double.folder("large", speculative_decoding_mode=2, max_draft_len=5, **build)
    return double.engine(large, draft_engine_dir=str(double.folder("small")), num_draft_tokens=4)


@pytest.mark.parametrize("which", ["large", "small"])
def test_a_round_that_an_engine_refuses_ends_its_request_alone(
    which: str, stack: ExitStack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Rounds after the first are begun in a step, where a refusal ended the engine for everybody."""
    double = stack.enter_context(stand_in(monkeypatch, tmp_path))
    engine = pair_of_engines(double)
    engine.add(request(1, PROMPT, max_tokens=20))
    engine.add(request(2, [*PROMPT, 9], max_tokens=20, temperature=1.0, seed=4))

    def refuses(*_: object) -> None:
        raise EngineRefusal("the prompt is too long") if which == "large" else RuntimeError("no")

    monkeypatch.setattr(
        engine._engine if which == "large" else engine._draft,
        *(("add_round", refuses) if which == "large" else ("enqueue_request", refuses)),
    )
    found = collect(engine, {(1, 0), (2, 0)})
    assert found[1, 0][-1].error
    assert found[2, 0][-1].finish is FinishReason.LENGTH
    assert not engine._pairs


def test_a_first_round_that_is_refused_leaves_nothing(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine = pair_of_engines(stack.enter_context(stand_in(monkeypatch, tmp_path)))

    def refuses(*_: object) -> None:
        raise EngineRefusal("no")

    monkeypatch.setattr(engine._engine, "add_round", refuses)
    with pytest.raises(EngineRefusal):
        engine.add(request(1, PROMPT, max_tokens=1))  # no room for a draft: the large engine at once
    assert not engine._pairs, "the engine would poll for it for ever"


def test_what_would_outgrow_the_longest_prompt_is_not_drafted(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each round's prompt holds the answer so far; the large engine takes prompts of 16 tokens here."""
    double = stack.enter_context(stand_in(monkeypatch, tmp_path))
    engine = pair_of_engines(double, max_input_len=16)
    (outputs,) = run(engine, request(1, PROMPT, max_tokens=40)).values()
    assert [token for output in outputs for token in output.token_ids] == double.expected(PROMPT, 40)
    assert outputs[-1].finish is FinishReason.LENGTH


def test_an_llm_that_has_shut_itself_down_is_broken(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What it then says against a request is no client's fault, and no other request would fare better."""
    double = stack.enter_context(stand_in(monkeypatch, tmp_path, "1.3", error_at=3))
    engine: Any = double.engine(write_checkpoint(tmp_path / "checkpoint", double.tokenizer))
    engine.add(request(1, PROMPT))
    engine._llm._executor.doing_shutdown = True
    with pytest.raises(EngineBroken):
        collect(engine, {(1, 0)})

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("the worker has died")

    engine._llm.generate_async = fails
    with pytest.raises(EngineBroken):
        engine.add(request(2, PROMPT))
    engine._llm._executor.doing_shutdown = False
    with pytest.raises(EngineRefusal):
        engine.add(request(3, PROMPT))


def test_nobody_suffers_for_statistics_that_cannot_be_read(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine: Any = stack.enter_context(stand_in(monkeypatch, tmp_path)).engine()
    engine._executor.get_latest_iteration_stats = lambda: [types.SimpleNamespace()]
    assert run(engine, request(1, PROMPT, max_tokens=200))
