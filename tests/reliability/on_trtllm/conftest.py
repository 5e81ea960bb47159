"""Attacks of tests/reliability once more, on the TensorRT-LLM engine over the stand-in, on one rank and on four."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from inflight_tools.common.layout import ENGINE
from tests.conftest import require_installation
from tests.doubles.folders import environment, write_engine
from tests.reliability.conftest import control_folder, report  # noqa: F401
from tests.reliability.rig import OpenRig, Parameters, rigs

HERE = Path(__file__).parent

LONGEST = 8192
BLOCK = 32
LONG = ("test_load_and_unload_again", "test_a_server_killed_hard", "test_a_warm_up")


@pytest.fixture(scope="module", params=[1, pytest.param(4, marks=pytest.mark.full)], ids=["one rank", "four ranks"])
def open_rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenRig]:
    """As in tests/reliability; what a model asks of the simulated engine is asked of the stand-in."""
    require_installation()
    world = request.param
    if world > 1 and shutil.which("mpirun") is None:
        pytest.skip("mpirun is missing: apt-get install openmpi-bin")
    site = environment(tmp_path_factory.mktemp("site"))
    with rigs(
        lambda: tmp_path_factory.mktemp("rig"),
        translate=lambda folder, parameters: translate(folder, parameters, world),
        environment=site,
    ) as make:
        yield make


def translate(folder: Path, parameters: Parameters, world: int) -> Parameters:
    """Parameters for the stand-in that mean what `parameters` ask of the simulated engine."""
    options = dict(parameters.get("engine_options", {}))
    places = options.pop("max_running", 64)
    double = {"step_ms": options.pop("step_ms", 5.0), "blocks": places * LONGEST // BLOCK}
    if "eos_every" in options:
        double["eos_every"] = options.pop("eos_every") - 1  # and then the end token, which counts
    options.pop("decode_us_per_sequence", None)  # a step of the stand-in costs the same however many are in it
    assert not options, f"the stand-in has nothing like {options}"
    limits = {"max_seq_len": LONGEST, "max_input_len": LONGEST - 1, "max_batch_size": places, "vocab_size": 49152}
    engine = write_engine(folder, ENGINE, with_manifest=False, world=world, **limits)
    (engine / "double.json").write_text(json.dumps(double))
    others = {name: value for name, value in parameters.items() if name not in ("engine", "engine_options")}
    return {**others, "engine": "tensorrt_llm", "max_running": places, "engine_dir": str(engine)}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what means nothing here: stopping mpirun does not stop the ranks that it has started. And keep the
    tier ci short.
    """
    for item in items:
        if item.path.parent == HERE and item.name.startswith(LONG):
            item.add_marker(pytest.mark.full)
    out = [item for item in items if "four ranks" in item.name and "SIGSTOP" in item.name]
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]
