"""Thousands of LoRA adapters through the real server on the stand-in, which keeps a few of them: what it has evicted is
sent again, answers stay each adapter's own, and nothing of an adapter stays behind in the engine's process.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from inflight_tools.common.layout import ENGINE
from tests.conftest import require_installation
from tests.doubles.adapters import write_adapter
from tests.doubles.folders import environment, write_checkpoint, write_engine
from tests.doubles.hf_adapters import write_hf_adapter
from tests.harness.grpc_client import GrpcClient, RequestFailed
from tests.reliability.conftest import Report
from tests.reliability.rig import Parameters, rigs

pytestmark = [pytest.mark.server, pytest.mark.full, pytest.mark.timeout(900)]

ADAPTERS = 2000
SLOTS = 64
AT_ONCE = 32
WIDTH = 16_384  # 64 KiB of weights each: 125 MiB would be seen to stay
LEFT_BEHIND = 24 << 20
LONGEST_REFUSAL_S = 0.1


def compiled(root: Path) -> Parameters:
    for number in range(ADAPTERS):
        exponent, fraction = divmod(number, 128)  # as many values as bfloat16, the engine's type, tells apart
        value = (1 + fraction / 128) * 2.0 ** (exponent - 8)
        write_adapter(root / "lora" / f"adapter-{number}", value, width=WIDTH)
    limits = {"max_seq_len": 512, "max_input_len": 511, "max_batch_size": 64, "vocab_size": 49152}
    engine = write_engine(root / "engine", ENGINE, with_manifest=False, plugin_config={"lora_plugin": "auto"}, **limits)
    return {"engine_dir": str(engine)}


def checkpoint(root: Path) -> Parameters:
    for number in range(ADAPTERS):
        write_hf_adapter(root / "lora" / f"adapter-{number}")
    return {"engine_dir": str(write_checkpoint(root / "checkpoint", ENGINE))}


@pytest.mark.parametrize("write", [compiled, checkpoint])
def test_two_thousand_adapters(write: Callable[[Path], Parameters], tmp_path: Path, report: Report) -> None:
    require_installation()
    parameters = {
        "engine": "tensorrt_llm",
        "max_running": 64,
        "engine_options": {"lora_dir": str(tmp_path / "lora")},
        **write(tmp_path),
    }
    site = environment(tmp_path / "site", "1.2", lora_slots=SLOTS, step_ms=0.5, blocks=4096)
    names = [f"adapter-{number}" for number in range(ADAPTERS)]
    chance = random.Random(5)
    with rigs(lambda: tmp_path / "rig", environment=site) as make:
        rig = make({"llm": parameters})
        engine = psutil.Process(rig.engine_pid())

        def ask(name: str) -> tuple[str, float]:
            with GrpcClient(rig.grpc) as grpc:
                began = time.monotonic()
                return grpc.generate("Tell me", stream=False, max_tokens=8, lora_name=name).text, (
                    time.monotonic() - began
                )

        def whole_pass() -> tuple[dict[str, str], float, float]:
            """(answer by adapter, seconds, median latency); in another order each time."""
            order = chance.sample(names, len(names))
            began = time.monotonic()
            with ThreadPoolExecutor(AT_ONCE) as pool:
                found = list(pool.map(ask, order))
            seconds = time.monotonic() - began
            answers = dict(zip(order, (text for text, _ in found), strict=True))
            return answers, seconds, statistics.median(latency for _, latency in found)

        first, *_ = whole_pass()
        resident, files, threads = engine.memory_info().rss, engine.num_fds(), engine.num_threads()
        for _ in range(2):
            again, seconds, latency = whole_pass()
            assert again == first, "an adapter that came back after others is the same one"
        assert len(set(first.values())) > ADAPTERS * 0.99, "each adapter answers in its own way"
        grown = engine.memory_info().rss - resident

        refusals = []
        with GrpcClient(rig.grpc) as grpc:
            for number in range(50):
                began = time.monotonic()
                with pytest.raises(RequestFailed, match="lora_name is 'nobody-"):
                    grpc.generate("Tell me", lora_name=f"nobody-{number}")
                refusals.append(time.monotonic() - began)
            about = grpc.generate("x", stream=False, max_tokens=0, return_model_info=True)
        told = json.loads(about.responses[0].outputs["model_info"][0])["adapters"]
        report(
            f"{write.__name__}: {ADAPTERS} adapters three times, {SLOTS} kept: {ADAPTERS / seconds:.0f} requests/s, "
            f"median {latency * 1000:.1f} ms, engine grown by {grown / 2**20:.1f} MiB, "
            f"refusal of an unknown one {statistics.median(refusals) * 1000:.1f} ms, {len(told)} told in model_info"
        )
        assert grown < LEFT_BEHIND, f"{grown >> 20} MiB stay of {2 * ADAPTERS} uses of adapters"
        assert engine.num_fds() <= files + 4
        assert engine.num_threads() <= threads + 4
        assert statistics.median(refusals) < LONGEST_REFUSAL_S
        assert rig.engine_pid() == engine.pid, "the engine is the one that it was"
        rig.at_rest()
        rig.assert_nothing_left()
