"""Loading a checkpoint with the transformers of every image."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from build_engine.loading import dtype_word
from inflight_tools.common.tiny_models import write_checkpoint

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.fast
def test_what_the_type_of_weights_is_called() -> None:
    words = {"4.51.3": "torch_dtype", "4.55.9": "torch_dtype", "4.56.0": "dtype", "4.57.6": "dtype", "5.17.0": "dtype"}
    assert {version: dtype_word(version) for version in words} == words


@pytest.mark.full
@pytest.mark.timeout(600)
def test_an_older_transformers_loads_it(tmp_path: Path) -> None:
    """With the release that is in images of TensorRT-LLM 1.0, beside the torch of this environment."""
    older = tmp_path / "older"
    packages = ["transformers==4.53.1", "tokenizers==0.21.4"]
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(older), *packages]
    subprocess.run(command, check=True, timeout=400)
    model = write_checkpoint(tmp_path / "model", "llama")
    program = (
        "import sys, transformers, torch; from pathlib import Path; from build_engine.loading import load_model; "
        "print(transformers.__version__, load_model(Path(sys.argv[1]), torch.float32).dtype)"
    )
    paths = os.pathsep.join(str(path) for path in (older, ROOT, ROOT / "python_backend"))
    done = subprocess.run(
        [sys.executable, "-c", program, str(model)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.stdout.split() == ["4.53.1", "torch.float32"], done.stderr
