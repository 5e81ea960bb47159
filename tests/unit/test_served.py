"""What is served is what was loaded: an engine directory that was built again is known, and held while it is served."""

from __future__ import annotations

import io
import json
import os
import queue
import shutil
from pathlib import Path

import pytest

from build_engine.console import Console
from build_engine.output import OutputDirectory, warn_served
from inflight import manifest
from inflight.backend.served import REPLACED, ServedEngine
from inflight.engines.base import Guide
from inflight.guides.service import Decision, GuideService


def write_engine(folder: Path, tokenizer: str, date: str = "2026-01-01T00:00:00Z", described: bool = True) -> None:
    """An engine directory as the builder leaves one; `described` is whether it has a manifest."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    if not described:
        (folder / "config.json").write_text("{}", encoding="utf-8")
        return
    manifest.write(
        folder,
        manifest.Manifest(
            target="openvino",
            source=manifest.Source(name="a model", architecture="LlamaForCausalLM", sha256="0"),
            quantization=manifest.Quantization(algorithm="int8", kv_cache="u8", recipe="int8"),
            parallelism=manifest.Parallelism(),
            limits=manifest.Limits(max_seq_len=512),
            requires=manifest.Requires(),
            verification=None,
            files=manifest.list_files(folder),
            built=manifest.Built(by="test", command="", date=date, seconds=0.0),
        ),
    )


def build_again(folder: Path, tokenizer: str, date: str = "2026-01-02T00:00:00Z") -> None:
    with OutputDirectory(folder, force=True) as out:
        write_engine(out.path, tokenizer, date)
        out.commit()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_engine(tmp_path / "engine", "the first")
    return tmp_path / "engine"


def test_another_engine_in_its_place_is_known(folder: Path) -> None:
    served = ServedEngine(folder)
    assert served.change() == ""
    build_again(folder, "another")
    assert served.change() == REPLACED


def test_the_same_engine_built_again_or_measured_again_is_the_same(folder: Path) -> None:
    served = ServedEngine(folder)
    build_again(folder, "the first")
    figures = json.loads((folder / manifest.MANIFEST_NAME).read_text(encoding="utf-8"))
    figures["verification"] = {
        "perplexity": 2.0,
        "reference_perplexity": 2.0,
        "mean_kl": 0.0,
        "greedy_agreement": 1.0,
        "text": "",
        "tokens": 9,
    }
    (folder / manifest.MANIFEST_NAME).write_text(json.dumps(figures), encoding="utf-8")
    assert served.change() == ""


@pytest.mark.parametrize("change", ["rewritten", "one more", "one less", "gone"])
def test_a_checkpoint_without_a_manifest_is_known_by_its_files(tmp_path: Path, change: str) -> None:
    folder = tmp_path / "checkpoint"
    write_engine(folder, "the first", described=False)
    served = ServedEngine(folder)
    (folder / "notes.md").write_text("of no consequence", encoding="utf-8")
    assert served.change() == ""
    if change == "rewritten":
        (folder / "tokenizer.json").write_text("the other", encoding="utf-8")
        os.utime(folder / "tokenizer.json", (1.0, 1.0))
    elif change == "one more":
        (folder / "chat_template.jinja").write_text("", encoding="utf-8")
    elif change == "one less":
        (folder / "config.json").unlink()
    else:
        shutil.rmtree(folder)  # the engine that starts will say so, and may be tried again
    assert served.change() == ("" if change == "gone" else REPLACED)


def test_a_build_over_a_served_engine_says_so_and_leaves_its_files(folder: Path) -> None:
    def said() -> str:
        stream = io.StringIO()
        warn_served(folder, Console(stream))
        return stream.getvalue()

    assert said() == ""
    first, second = ServedEngine(folder), ServedEngine(folder)
    mapped = (folder / "tokenizer.json").open(encoding="utf-8")
    first.close()
    assert said().startswith(
        f"warning: a running server serves {folder}: it goes on with the engine that it has loaded"
    )
    build_again(folder, "another")
    assert mapped.read() == "the first"
    mapped.close()
    assert said() == "", "the new one is not served by anybody"
    second.close()


def test_a_refused_load_holds_nothing(folder: Path) -> None:
    ServedEngine(folder)
    assert not manifest.is_served(folder)


def test_guides_are_not_judged_by_another_tokenizer(folder: Path) -> None:
    """The process that checks is started for the first guide, which may be after the directory was built again."""
    served = ServedEngine(folder)
    build_again(folder, "another")
    service = GuideService("simulated", str(folder), changed=served.change)
    decisions: queue.SimpleQueue[Decision] = queue.SimpleQueue()
    try:
        service.ask(Guide("regex", "a+"), decisions.put)
        decision = decisions.get(timeout=60.0)
    finally:
        service.stop()
    assert decision.error is not None
    assert REPLACED in str(decision.error)
