"""Documents, Dockerfile and compose file say what is so."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from inflight.control import ANSWER_WAIT_S
from inflight.model.parameters import ModelConfig
from inflight_tools.server.serve_options import parse
from inflight_tools.server.server import Ports
from tests.doubles import tables
from tests.unit.machines.tokenizer_kinds import write_folder

ROOT = Path(__file__).resolve().parents[4]
DOCUMENT = ROOT / "docs" / "engines" / "tensorrt_llm.md"


def part(mark: str) -> str:
    text = tables.DOCUMENTS[mark].read_text(encoding="utf-8")
    begin, end = tables.between(text, mark)
    return text[begin:end].rstrip("\n")


@pytest.mark.fast
def test_the_table_of_parameters() -> None:
    assert part("parameters") == tables.parameter_table(), "run python -m tests.doubles.tables --write"


@pytest.mark.full
def test_the_table_of_capabilities(tmp_path: Path) -> None:
    tokenizer = write_folder(tmp_path / "tokenizer")
    (tokenizer / "generation_config.json").write_text('{"eos_token_id": 1}')
    made = tables.tables(tokenizer)["capabilities"]
    assert part("capabilities") == made, "run python -m tests.doubles.tables --write"


@pytest.mark.fast
def test_every_trap_of_the_list_has_its_test() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    rows = [line for line in text[text.index("## Traps") :].splitlines() if line.startswith("| ")][1:]
    known = "\n".join(path.read_text() for path in ROOT.glob("tests/**/test_*.py"))
    assert len(rows) >= 26
    for row in rows:
        names = [name.strip() for name in row.split("|")[2].split(",")]
        assert [name for name in names if f"def {name}(" not in known] == [], row


@pytest.mark.fast
def test_what_was_never_run_says_so() -> None:
    assert "Never built" in (ROOT / "Dockerfile").read_text().splitlines()[0]
    assert "Never run" in (ROOT / "compose.yaml").read_text().splitlines()[0]
    assert "has never run on real hardware" in DOCUMENT.read_text()
    assert "Nothing on this page was ever run on a GPU by its authors" in (ROOT / "docs" / "gpu.md").read_text()


@pytest.mark.fast
def test_what_the_image_starts_drains_and_says_how_it_is() -> None:
    """A raw tritonserver does neither on SIGTERM; Triton's own readiness is that of a server without models, too."""
    docker, compose = ((ROOT / name).read_text() for name in ("Dockerfile", "compose.yaml"))
    (command,) = re.findall(r"^CMD (\[.*\])$", docker, re.MULTILINE)
    python, dash_m, module, *arguments = json.loads(command)
    assert (python, dash_m, module) == ("python3", "-m", "inflight_tools.server.serve")
    options, passed = parse(arguments, "serve", "")
    assert (str(options.repository), options.model, options.host, passed) == ("/models", ["llm"], "0.0.0.0", [])
    assert options.health_port == Ports().health == 8003
    for text in (docker, compose):
        assert re.findall(r"urlopen\('([^']+)'", text) == [f"http://127.0.0.1:{Ports().health}/ready"]
    assert "EXPOSE 8000 8001 8002 8003 8080" in docker
    assert "}:8080:8080" in compose
    grace = re.search(r"stop_grace_period: (\d+)s", compose)
    assert grace is not None
    longest = ModelConfig().drain_notice_ms / 1000 + options.drain_timeout + options.stop_timeout + ANSWER_WAIT_S
    assert int(grace[1]) > longest


@pytest.mark.fast
def test_the_images_of_the_two_lists_agree() -> None:
    from inflight.engines.tensorrt_llm.checks import IMAGES

    rows = re.findall(
        r"^\| \**([\d.]+)\** \| \**([\d., to]+)\** \|", (ROOT / "docs" / "gpu.md").read_text(), re.MULTILINE
    )
    listed = {".".join(version.split(".")[:2]): images for version, images in rows}
    for version, image in IMAGES.items():
        assert image in listed[version]
