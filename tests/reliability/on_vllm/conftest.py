"""Attacks of tests/reliability once more, on vLLM over tiny checkpoints: the real engine, whose steps take their time
by the number of layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import require_installation
from tests.doubles.vllm import cycle, ending, model_parameters, vllm_python, write_chain
from tests.reliability.conftest import control_folder, report  # noqa: F401
from tests.reliability.rig import OpenRig, Parameters, rigs
from tests.unit.machines.tokenizer_kinds import write_folder

HERE = Path(__file__).parent

LAYERS_PER_MS = 3
LONGEST = 8192


@pytest.fixture(scope="module")
def open_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenRig]:
    """As in tests/reliability; what a model asks of the simulated engine is asked of vLLM."""
    require_installation()
    vllm_python()
    with rigs(lambda: tmp_path_factory.mktemp("rig"), translate=translate) as make:
        yield make


def translate(folder: Path, parameters: Parameters) -> Parameters:
    """Parameters for vLLM that mean what `parameters` ask of the simulated engine."""
    options = dict(parameters.get("engine_options", {}))
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
    others = {name: value for name, value in parameters.items() if name not in ("engine", "engine_options")}
    return model_parameters({"kv_cache_gb": pool_gb}, max_running=running, engine_dir=str(engine), **others)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of it is long: engines load, and load again. Clients have limits of their own, derived from a measured step;
    this one only ends what hangs.
    """
    for item in items:
        if item.path.parent == HERE:
            item.add_marker(pytest.mark.full)
            item.add_marker(pytest.mark.timeout(1200))
