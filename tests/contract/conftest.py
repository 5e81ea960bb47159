"""One server with the simulated engine for all contract tests: they are about requests, not about a model.

The models differ in what a test needs: `llm` and `llm_batched` are the two shapes, and fast; `ends` ends every answer
by itself; `narrow` has a small context; `slow` takes its time and has one place and a short queue.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from inflight_tools.server.server import Server, ServerConfig
from tests.contract.forms import CHAT_TEMPLATE
from tests.harness.repository import write_model
from tests.unit.machines.tokenizer_kinds import write_folder

FAST = {"step_ms": 0.2, "prefill_us_per_token": 0.0, "decode_us_per_sequence": 0.0, "max_seq_len": 512}


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The contract's own server; models may be loaded into it besides."""
    root = tmp_path_factory.mktemp("contract")
    engine = write_folder(root / "engine", "byte_level", CHAT_TEMPLATE)
    repository = root / "models"
    for name, batched in (("llm", False), ("llm_batched", True)):
        parameters = {"engine": "simulated", "engine_options": FAST}
        write_model(repository, name, parameters, max_batch_size=int(batched), engine_dir=engine)
    for name, options, more in (
        ("ends", {**FAST, "eos_every": 6}, {}),
        ("narrow", {**FAST, "max_seq_len": 64, "blocks": 4}, {}),
        ("slow", {"step_ms": 20.0}, {"max_running": 1, "max_queue_size": 2}),
    ):
        write_model(repository, name, {"engine": "simulated", "engine_options": options, **more}, engine_dir=engine)
    models = ("llm", "llm_batched", "ends", "narrow", "slow")
    log = root / "tritonserver.log"
    with Server(ServerConfig(repository=repository, models=models, log=log, drain_timeout_s=0.0)) as running:
        running.wait_ready(120.0)
        yield running
    assert running.processes() == []
