"""Attacks of tests/reliability once more, on vLLM over tiny checkpoints: the real engine, whose steps take their time
by the number of layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import require_installation
from tests.doubles.vllm import cycle, ending, model_parameters, vllm_python, write_chain
from tests.reliability.conftest import OpenRig, control_folder, report  # noqa: F401
from tests.reliability.rig import Rig
from tests.unit.machines.tokenizer_kinds import write_folder

HERE = Path(__file__).parent

LAYERS_PER_MS = 3
LONGEST = 8192


@pytest.fixture(scope="module")
def open_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenRig]:
    """As in tests/reliability; what a model asks of the simulated engine is asked of vLLM."""
    require_installation()
    vllm_python()
    opened: list[Rig] = []

    def make(models: Mapping[str, Mapping[str, Any]], **config: Any) -> Rig:
        root = tmp_path_factory.mktemp("rig")
        rig = Rig(root, {name: translate(root / name, model) for name, model in models.items()}, **config)
        opened.append(rig)
        rig.__enter__()
        return rig

    yield make
    left = [item for rig in opened for item in rig.stop()]
    assert not left, left


def translate(folder: Path, model: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters for vLLM that mean what `model` asks of the simulated engine."""
    options = dict(model["engine_options"])
    running = options.pop("max_running", 64)
    layers = max(1, round(options.pop("step_ms", 0) * LAYERS_PER_MS))
    context = options.pop("max_seq_len", LONGEST)
    eos_every = options.pop("eos_every", 0)
    pool_gb = options.pop("kv_cache_gb", 1.5)
    for cost in ("decode_us_per_sequence", "prefill_us_per_token", "chunk_tokens", "real_time"):
        options.pop(cost, None)  # its own costs are real
    assert not options, f"vLLM has nothing like {options}"
    tokenizer = write_folder(folder / "tokenizer", "byte_level")
    chain = ending(tokenizer, eos_every) if eos_every else cycle(tokenizer)
    engine = write_chain(folder / "engine", tokenizer, chain, layers=layers, context=context)
    others = {name: value for name, value in model.items() if name != "engine_options"}
    return model_parameters({"kv_cache_gb": pool_gb}, max_running=running, engine_dir=str(engine), **others)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of it is long: engines load, and load again."""
    for item in items:
        if item.path.parent == HERE:
            item.add_marker(pytest.mark.full)
            item.add_marker(pytest.mark.timeout(600))
