"""The engine without weights, and with it the promises of the engine seam (engines/base.py)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, rule

from inflight.engines.base import Capability, EngineOutput, FinishReason
from inflight.engines.factory import create_engine, resolve_engine
from inflight.engines.simulated.engine import SimulatedEngine
from inflight.engines.spec import WorkerSpec
from inflight.errors import LoadError
from tests.unit.machines.strategies import budget, engine_request
from tests.unit.machines.tokenizer_kinds import KINDS, write_folder

pytestmark = pytest.mark.fast


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("engine"))


def engine_of(folder: Path, max_running: int = 0, **options: Any) -> SimulatedEngine:
    return SimulatedEngine(folder, {"real_time": False, **options}, max_running)


def run(engine: SimulatedEngine, limit: int = 2000) -> dict[tuple[int, int], list[EngineOutput]]:
    """Step until nothing comes any more; outputs per sequence."""
    found: dict[tuple[int, int], list[EngineOutput]] = {}
    idle = 0
    for _ in range(limit):
        outputs = engine.step(0.0)
        idle = 0 if outputs else idle + 1
        for output in outputs:
            found.setdefault((output.request_id, output.sequence_index), []).append(output)
        if idle > 20:
            return found
    raise AssertionError("the engine does not come to an end")


def tokens(outputs: list[EngineOutput]) -> list[int]:
    return [token_id for output in outputs for token_id in output.token_ids]


def test_what_it_says_about_itself(folder: Path) -> None:
    info = engine_of(folder, 3, max_seq_len=99, blocks=7, block_size=8).info
    assert (info.name, info.max_running, info.max_seq_len, info.blocks_total, info.block_size) == (
        "simulated",
        3,
        99,
        7,
        8,
    )
    assert info.vocab_size == KINDS["byte_level"]().get_vocab_size()
    assert {
        Capability.STREAMING,
        Capability.LOGPROBS,
        Capability.PARALLEL_SAMPLING,
        Capability.CACHE_SALT,
    } <= info.capabilities
    assert Capability.BEAM_SEARCH not in info.capabilities


def test_every_sequence_ends_once_with_as_many_tokens_as_asked_for(folder: Path) -> None:
    engine = engine_of(folder)
    engine.add(engine_request(1, max_tokens=5, num_sequences=3))
    engine.add(engine_request(2, max_tokens=1))
    found = run(engine)
    assert set(found) == {(1, 0), (1, 1), (1, 2), (2, 0)}
    for (request_id, _), outputs in found.items():
        assert [output.finish for output in outputs[:-1]] == [None] * (len(outputs) - 1)
        assert outputs[-1].finish is FinishReason.LENGTH
        assert len(tokens(outputs)) == (5 if request_id == 1 else 1)
    assert engine.stats().blocks_used == 0


def test_greedy_depends_on_the_prompt_alone_and_a_seed_decides_when_sampled(folder: Path) -> None:
    engine = engine_of(folder)
    for request_id, changes in enumerate(
        [
            {"token_ids": [5, 6], "seed": 1},
            {"token_ids": [5, 6], "seed": 2},
            {"token_ids": [5, 7], "seed": 1},
            {"token_ids": [5, 6], "seed": 1, "temperature": 1.0},
            {"token_ids": [5, 6], "seed": 2, "temperature": 1.0},
            {"token_ids": [5, 6], "seed": 1, "temperature": 1.0},
        ]
    ):
        engine.add(engine_request(request_id, max_tokens=12, **changes))
    answers = {key[0]: tokens(outputs) for key, outputs in run(engine).items()}
    assert answers[0] == answers[1] != answers[2]
    assert answers[3] == answers[5] != answers[4]
    assert answers[3] != answers[0]


def test_sampled_sequences_of_one_request_differ_and_greedy_ones_do_not(folder: Path) -> None:
    engine = engine_of(folder)
    engine.add(engine_request(1, max_tokens=12, num_sequences=2, temperature=1.0, seed=3))
    engine.add(engine_request(2, max_tokens=12, num_sequences=2))
    found = {key: tokens(outputs) for key, outputs in run(engine).items()}
    assert found[1, 0] != found[1, 1]
    assert found[2, 0] == found[2, 1]


def test_no_special_token_is_ever_made_up(folder: Path) -> None:
    engine = engine_of(folder)
    engine.add(engine_request(1, max_tokens=3000))
    assert not {0, 1} & set(tokens(run(engine, 4000)[1, 0]))


def test_the_end_of_sequence_token_ends_it_unless_ignored(folder: Path) -> None:
    engine = engine_of(folder, eos_every=4)
    eos = engine.info.stop_token_ids[0]
    engine.add(engine_request(1, max_tokens=20, stop_token_ids=(eos,)))
    engine.add(engine_request(2, max_tokens=20))
    engine.add(engine_request(3, max_tokens=20, stop_token_ids=(eos,), min_tokens=10))
    found = run(engine)
    assert (tokens(found[1, 0])[-1], len(tokens(found[1, 0])), found[1, 0][-1].finish) == (eos, 4, FinishReason.STOP)
    assert (len(tokens(found[2, 0])), found[2, 0][-1].finish) == (20, FinishReason.LENGTH)
    assert (len(tokens(found[3, 0])), found[3, 0][-1].finish) == (11, FinishReason.STOP)


def test_any_token_may_be_a_stop_token(folder: Path) -> None:
    engine = engine_of(folder)
    engine.add(engine_request(1, max_tokens=8))
    plain = tokens(run(engine)[1, 0])
    engine.add(engine_request(2, max_tokens=8, stop_token_ids=(plain[3],)))
    outputs = run(engine)[2, 0]
    assert tokens(outputs) == plain[: plain.index(plain[3]) + 1]
    assert outputs[-1].finish is FinishReason.STOP


def test_log_probabilities_come_when_wanted(folder: Path) -> None:
    engine = engine_of(folder)
    engine.add(engine_request(1, max_tokens=3, logprobs=0))
    engine.add(engine_request(2, max_tokens=3))
    found = run(engine)
    assert all(output.logprobs is not None and len(output.logprobs) == 1 for output in found[1, 0])
    assert all(output.logprobs is None for output in found[2, 0])


def test_a_cancelled_request_ends_once_whether_it_runs_or_waits(folder: Path) -> None:
    engine = engine_of(folder, 1)
    for request_id in (1, 2, 3):
        engine.add(engine_request(request_id, max_tokens=5))
    engine.step(0.0)
    for request_id in (1, 2, 99):
        engine.cancel(request_id)
        engine.cancel(request_id)
    found = run(engine)
    assert [found[1, 0][-1].finish, found[2, 0][-1].finish] == [FinishReason.CANCELLED] * 2
    assert len(found[2, 0]) == 1
    assert found[3, 0][-1].finish is FinishReason.LENGTH
    engine.cancel(3)
    assert run(engine) == {}


def test_never_more_sequences_at_work_than_places(folder: Path) -> None:
    engine = engine_of(folder, 2)
    for request_id in range(5):
        engine.add(engine_request(request_id, max_tokens=4))
    most = 0
    for _ in range(40):
        most = max(most, len(engine.step(0.0)))
    assert most == 2


def test_prompts_are_read_in_chunks_beside_decoding(folder: Path) -> None:
    engine = engine_of(folder, chunk_tokens=10)
    engine.add(engine_request(1, prompt_tokens=1, max_tokens=20))
    assert len(engine.step(0.0)) == 1
    engine.add(engine_request(2, prompt_tokens=35, max_tokens=5))
    per_step = [{output.request_id for output in engine.step(0.0)} for _ in range(5)]
    assert per_step == [{1}, {1}, {1}, {1, 2}, {1, 2}]


def test_time_is_modelled(folder: Path) -> None:
    engine = engine_of(folder, real_time=True, step_ms=10.0, prefill_us_per_token=0.0, decode_us_per_sequence=0.0)
    engine.add(engine_request(1, max_tokens=20))
    began = time.monotonic()
    for _ in range(20):
        engine.step(0.0)
    assert 0.19 < time.monotonic() - began < 2.0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"step_mss": 1}, "step_mss"),
        ({"step_ms": "fast"}, "step_ms"),
        ({"acceptance_rate": 1.5, "draft_tokens": 2}, "acceptance_rate"),
        ({"acceptance_rate": 0.5}, "means nothing without draft_tokens"),
        ({"block_size": 0}, "block_size"),
        ({"fail_load": "no such weights; build it again."}, "no such weights"),
    ],
)
def test_a_wrong_option_fails_the_load_by_its_name(folder: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(LoadError, match=says):
        engine_of(folder, **options)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="tokenizer"):
        engine_of(tmp_path)


def test_a_fault_is_raised_out_of_the_step_it_is_set_for(folder: Path) -> None:
    engine = engine_of(folder, raise_at_token=3)
    engine.add(engine_request(1, max_tokens=9))
    engine.step(0.0)
    engine.step(0.0)
    with pytest.raises(RuntimeError, match="simulated fault"):
        engine.step(0.0)


def test_the_factory_makes_it(folder: Path) -> None:
    spec = WorkerSpec("simulated", str(folder), {"real_time": False}, 5)
    assert WorkerSpec.from_json(spec.to_json()) == spec
    assert create_engine(spec).info.max_running == 5
    assert resolve_engine("simulated", folder) == "simulated"
    with pytest.raises(LoadError, match="unheard-of"):
        create_engine(WorkerSpec("unheard-of", str(folder), {}, 0))
    with pytest.raises(LoadError):
        resolve_engine("auto", folder)


class EngineMachine(RuleBasedStateMachine):
    """Requests, cancels and steps in any order: each added request gets exactly one terminal output per sequence."""

    requests = Bundle("requests")
    folder: Path

    @initialize(places=st.integers(1, 4), eos_every=st.integers(0, 5), draft_tokens=st.integers(0, 2))
    def begin(self, places: int, eos_every: int, draft_tokens: int) -> None:
        self.engine = engine_of(
            self.folder,
            places,
            eos_every=eos_every,
            chunk_tokens=8,
            draft_tokens=draft_tokens,
            block_size=4,
            blocks=20,  # two or three requests of the longest kind
        )
        self.added: dict[int, Any] = {}
        self.seen: dict[tuple[int, int], int] = {}
        self.ended: set[tuple[int, int]] = set()

    @rule(
        target=requests,
        prompt=st.integers(1, 20),
        answer=st.integers(1, 8),
        sequences=st.integers(1, 3),
        sampled=st.booleans(),
    )
    def add(self, prompt: int, answer: int, sequences: int, sampled: bool) -> int:
        request_id = len(self.added) + 1
        request = engine_request(
            request_id,
            prompt,
            answer,
            num_sequences=sequences,
            temperature=float(sampled),
            seed=request_id,
            stop_token_ids=(0,),
        )
        self.added[request_id] = request
        self.engine.add(request)
        return request_id

    @rule(request_id=requests)
    def cancel(self, request_id: int) -> None:
        self.engine.cancel(request_id)

    @rule(times=st.integers(1, 4))
    def step(self, times: int) -> None:
        for _ in range(times):
            for output in self.engine.step(0.0):
                key = (output.request_id, output.sequence_index)
                assert key not in self.ended, "an output after the terminal one"
                assert 0 <= output.sequence_index < self.added[output.request_id].sampling.num_sequences
                assert output.token_ids or output.finish is not None
                self.seen[key] = self.seen.get(key, 0) + len(output.token_ids)
                assert self.seen[key] <= self.added[output.request_id].sampling.max_tokens
                if output.finish is not None:
                    self.ended.add(key)
        stats = self.engine.stats()
        batch = self.engine
        assert len(batch._reading) + len(batch._steady) + len(batch._varied) <= self.engine.info.max_running
        assert stats.blocks_used <= self.engine.info.blocks_total

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        for _ in range(60):
            self.step(20)
        assert self.ended == {
            (request_id, index)
            for request_id, request in self.added.items()
            for index in range(request.sampling.num_sequences)
        }
        assert self.engine.stats().blocks_used == 0


def test_any_order_of_requests_cancels_and_steps(folder: Path) -> None:
    EngineMachine.folder = folder
    test = EngineMachine.TestCase()
    test.settings = settings(budget(60), stateful_step_count=25)
    test.runTest()
