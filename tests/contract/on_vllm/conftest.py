"""The contract's own tests once more, on vLLM over tiny checkpoints instead of the simulated engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from inflight_tools.server.server import Server, ServerConfig
from tests.contract.forms import CHAT_TEMPLATE, is_refused_elsewhere
from tests.doubles.vllm import cycle, ending, model_parameters, write_chain
from tests.harness.repository import write_model
from tests.unit.machines.tokenizer_kinds import write_folder

HERE = Path(__file__).parent

READY_TIMEOUT_S = 280.0  # five engines load


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The same models as in tests/contract/conftest.py."""
    parameters = model_parameters()  # skips where there is no vLLM
    root = tmp_path_factory.mktemp("contract-vllm")
    tokenizer = write_folder(root / "tokenizer", "byte_level", CHAT_TEMPLATE)
    repository = root / "models"
    endless = cycle(tokenizer)
    plain = write_chain(root / "plain", tokenizer, endless)
    ends = write_chain(root / "ends", tokenizer, ending(tokenizer, 6))
    narrow = write_chain(root / "narrow", tokenizer, endless, context=64)
    slow = write_chain(root / "slow", tokenizer, endless, layers=160, context=4608)
    for name, engine, more in (
        ("llm", plain, {}),
        ("llm_batched", plain, {}),
        ("ends", ends, {}),
        ("narrow", narrow, {}),
        ("slow", slow, {"max_running": 1, "max_queue_size": 2}),
    ):
        batch = int(name == "llm_batched")
        write_model(repository, name, {**parameters, **more}, max_batch_size=batch, engine_dir=engine)
    config = ServerConfig(
        repository=repository,
        models=("llm", "llm_batched", "ends", "narrow", "slow"),
        log=root / "tritonserver.log",
        drain_timeout_s=0.0,
    )
    with Server(config) as running:
        running.wait_ready(READY_TIMEOUT_S)
        yield running
    assert running.processes() == []


# What these tests expect to be refused because the simulated engine lacks it, and the words "the simulated engine".
OTHER_CAPABILITIES = (
    "test_a_missing_capability",
    "named_tool",
    "model_info-return_model_info",
    "bad_words=",
    "beam_width=2-",
    "lora_name=",
    "logprobs=",
    "guided_decoding_guide",
    "guided_decoding=",
    "structured_outputs=",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is about another engine's capabilities; the rest is long: five engines load."""
    ours = [item for item in items if item.path.parent == HERE]
    for item in ours:
        item.add_marker(pytest.mark.full)
        item.add_marker(pytest.mark.timeout(600))
    out = [item for item in ours if any(part in item.name for part in OTHER_CAPABILITIES) or is_refused_elsewhere(item)]
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]
