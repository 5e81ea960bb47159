"""Attacks of tests/reliability once more, on the TensorRT-LLM engine over the stand-in, on one rank and on four."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from _layout import ENGINE
from tests.doubles.folders import environment, write_engine
from tests.reliability.conftest import OpenRig, control_folder, report  # noqa: F401
from tests.reliability.rig import Rig

LONGEST = 8192


@pytest.fixture(scope="module", params=[1, pytest.param(4, marks=pytest.mark.full)], ids=["one rank", "four ranks"])
def open_rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenRig]:
    """As in tests/reliability; what a model asks of the simulated engine is asked of the stand-in."""
    if request.param > 1 and shutil.which("mpirun") is None:
        pytest.skip("mpirun is missing: apt-get install openmpi-bin")
    opened: list[Rig] = []

    def make(models: Mapping[str, Mapping[str, Any]], **config: Any) -> Rig:
        root = tmp_path_factory.mktemp("rig")
        changed = {name: translate(root / name, model, request.param) for name, model in models.items()}
        rig = Rig(root, changed, environment=environment(root / "site"), **config)
        opened.append(rig)
        rig.__enter__()
        return rig

    yield make
    left = [item for rig in opened for item in rig.stop()]
    assert not left, left


def translate(folder: Path, model: Mapping[str, Any], world: int) -> dict[str, Any]:
    """Parameters for the stand-in that mean what `model` asks of the simulated engine."""
    options = dict(model["engine_options"])
    places = options.pop("max_running", 64)
    step_ms = options.pop("step_ms")
    assert not options, f"the stand-in has nothing like {options}"
    limits = {"max_seq_len": LONGEST, "max_input_len": LONGEST - 1, "max_batch_size": places, "vocab_size": 49152}
    engine = write_engine(folder, ENGINE, with_manifest=False, world=world, **limits)
    (engine / "double.json").write_text(json.dumps({"step_ms": step_ms, "blocks": places * LONGEST // 32}))
    others = {name: value for name, value in model.items() if name != "engine_options"}
    return {**others, "engine": "tensorrt_llm", "max_running": places, "engine_dir": str(engine)}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what means nothing here: stopping mpirun does not stop the ranks that it has started."""
    out = [item for item in items if "four ranks" in item.name and "SIGSTOP" in item.name]
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]
