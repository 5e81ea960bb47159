"""The contract's own tests once more, on the TensorRT-LLM engine over the stand-in instead of the simulated engine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from inflight_tools.server.server import Server, ServerConfig
from tests.contract.forms import CHAT_TEMPLATE, is_refused_elsewhere
from tests.doubles.folders import environment, write_checkpoint, write_engine
from tests.harness.repository import write_model
from tests.unit.machines.tokenizer_kinds import write_folder

HERE = Path(__file__).parent


KINDS = {"one rank": ("1.2", 1), "four ranks": ("1.2", 4), "checkpoint 1.2": ("1.2", 0), "checkpoint 1.3": ("1.3", 0)}


@pytest.fixture(scope="package", params=KINDS.values(), ids=KINDS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The same models as in tests/contract/conftest.py: each an engine on one rank, or on four under a real mpirun, or
    a checkpoint on the PyTorch flow, whose sampler is TRTLLMSampler in 1.2 and TorchSampler in 1.3.
    """
    profile, world = request.param
    if world > 1 and shutil.which("mpirun") is None:
        pytest.skip("mpirun is missing: apt-get install openmpi-bin")
    root = tmp_path_factory.mktemp("contract-trtllm")
    tokenizer = write_folder(root / "tokenizer", "byte_level", CHAT_TEMPLATE)
    (tokenizer / "generation_config.json").write_text('{"eos_token_id": 1}')
    repository = root / "models"
    for name, double, build, parameters in (
        ("llm", {"step_ms": 0.2}, {}, {}),
        ("llm_batched", {"step_ms": 0.2}, {}, {}),
        ("ends", {"step_ms": 0.2, "eos_every": 5}, {}, {}),  # and then the end token, which counts
        ("narrow", {"step_ms": 0.2}, {"max_seq_len": 64, "max_input_len": 63}, {}),
        ("slow", {"step_ms": 20.0}, {}, {"max_running": 1, "max_queue_size": 2}),
    ):
        limits = {"max_seq_len": 512, "max_input_len": 511, "max_batch_size": 256, "vocab_size": 403, **build}
        if world:
            engine = write_engine(root / name, tokenizer, profile, with_manifest=False, world=world, **limits)
        else:
            engine = write_checkpoint(root / name, tokenizer, 403, int(limits["max_seq_len"]))
        (engine / "double.json").write_text(json.dumps(double))
        (engine / "chat_template.jinja").write_text(CHAT_TEMPLATE)
        parameters = {"engine": "tensorrt_llm", **parameters}  # a checkpoint could be vLLM's as well
        write_model(repository, name, parameters, max_batch_size=int(name == "llm_batched"), engine_dir=engine)
    config = ServerConfig(
        repository=repository,
        models=("llm", "llm_batched", "ends", "narrow", "slow"),
        log=root / "tritonserver.log",
        drain_timeout_s=0.0,
        environment=environment(root / "site", profile),
    )
    with Server(config) as running:
        running.wait_ready(120.0)
        yield running
    assert running.processes() == []


# What these tests expect to be refused because the simulated engine lacks it, and the words "the simulated engine".
OTHER_CAPABILITIES = (
    "test_a_missing_capability",
    "named_tool",
    "model_info-return_model_info",
    "bad_words=",
    "beam_width=",
    "logprobs=",
    "guided_decoding_guide",
    "guided_decoding=",
    "structured_outputs=",
    "lora_name=",
)

# What TRTLLMSampler on the PyTorch flow, which "checkpoint 1.2" runs, is known to refuse: min_p, and log-probabilities
# beside min_tokens (docs/engines/tensorrt_llm_pytorch.md).
NOT_WITH_TRTLLM_SAMPLER = ("min_p=0.5", "ensemble[checkpoint 1.2-every input")


def is_left_out(item: pytest.Item) -> bool:
    """Whether it asks for what this engine, or the sampler of this release, refuses; unit tests see the refusals."""
    lacks = NOT_WITH_TRTLLM_SAMPLER if "checkpoint 1.2" in item.name else ()
    return any(part in item.name for part in (*OTHER_CAPABILITIES, *lacks)) or is_refused_elsewhere(item)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is about another engine's capabilities. On four ranks the tier ci asks how requests end, which is
    where ranks differ, and the tier full everything; checkpoints are the tier full's.
    """
    ours = [item for item in items if item.path.parent == HERE]
    for item in ours:
        ends_on_ranks = "ranks" in item.name and getattr(item, "function", item).__module__.endswith("test_ends")
        if "one rank" not in item.name and not ends_on_ranks:
            item.add_marker(pytest.mark.full)
    out = [item for item in ours if is_left_out(item)]
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]
