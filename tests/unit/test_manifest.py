from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

import inflight.manifest as manifest
from inflight.manifest import ManifestError

pytestmark = pytest.mark.fast

OPENVINO = {"openvino": "2026.4.1"}


def make_engine(directory: Path, **changes: Any) -> manifest.Manifest:
    directory.mkdir(exist_ok=True)
    (directory / "openvino_model.bin").write_bytes(b"weights" * 100)
    (directory / "tokenizer.json").write_text("{}")
    written = manifest.Manifest(
        target="openvino",
        source=manifest.Source(name="tiny", architecture="LlamaForCausalLM", sha256="0" * 64),
        quantization=manifest.Quantization(algorithm="int8_asym", kv_cache="int8", recipe="int8"),
        parallelism=manifest.Parallelism(),
        limits=manifest.Limits(max_seq_len=256),
        requires=manifest.Requires(packages={"openvino": "2026.4.0"}),
        verification=None,
        files=manifest.list_files(directory),
        built=manifest.Built(by="build_engine 0", command="python -m build_engine build tiny", date="x", seconds=1.0),
    )
    written = msgspec.structs.replace(written, **changes)
    manifest.write(directory, written)
    return written


def failure(directory: Path, **options: Any) -> str:
    with pytest.raises(ManifestError) as caught:
        manifest.check(directory, **{"installed": OPENVINO, **options})
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    written = make_engine(tmp_path / "engine")
    assert manifest.check(tmp_path / "engine", target="openvino", installed=OPENVINO, deep=True) == written
    assert [entry.path for entry in written.files] == ["openvino_model.bin", "tokenizer.json"]
    assert written.files[0].bytes == 700


def test_contract_keys(tmp_path: Path) -> None:
    make_engine(tmp_path)
    data = json.loads((tmp_path / "engine.json").read_text())
    assert set(data) == {
        *("schema", "target", "stage", "source", "quantization", "parallelism", "limits", "requires"),
        *("verification", "files", "built"),
    }
    assert set(data["source"]) == {"name", "architecture", "sha256"}
    assert {"algorithm", "kv_cache"} <= set(data["quantization"])
    assert set(data["parallelism"]) == {"tensor", "pipeline"}
    assert set(data["limits"]) == {
        *("max_batch_size", "max_input_len", "max_seq_len", "max_num_tokens", "max_beam_width"),
        "max_attention_window",
    }
    assert set(data["files"][0]) == {"path", "bytes", "sha256"}
    assert {"by", "command", "date", "seconds"} <= set(data["built"])


def test_missing_manifest_says_how_to_build(tmp_path: Path) -> None:
    text = failure(tmp_path)
    assert "engine.json is missing" in text
    assert "python -m build_engine build" in text


def test_other_schema_is_refused_before_the_rest_is_read(tmp_path: Path) -> None:
    (tmp_path / "engine.json").write_text('{"schema": 99, "anything": []}')
    assert "schema 99" in failure(tmp_path)


@pytest.mark.parametrize("text", ["", "{", '{"schema": "one"}', '{"schema": 1}', "\xff\xfe", "[]"])
def test_damaged_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / "engine.json").write_bytes(text.encode("latin-1"))
    assert "damaged" in failure(tmp_path)


def test_missing_file(tmp_path: Path) -> None:
    make_engine(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    text = failure(tmp_path)
    assert "tokenizer.json is missing" in text
    assert "python -m build_engine build tiny --force" in text


def test_truncated_file(tmp_path: Path) -> None:
    make_engine(tmp_path)
    os.truncate(tmp_path / "openvino_model.bin", 699)
    assert "699 bytes instead of 700" in failure(tmp_path)


def test_altered_file_is_found_only_by_the_deep_check(tmp_path: Path) -> None:
    make_engine(tmp_path)
    data = bytearray((tmp_path / "openvino_model.bin").read_bytes())
    data[3] ^= 1
    (tmp_path / "openvino_model.bin").write_bytes(data)
    manifest.check(tmp_path, installed=OPENVINO)
    assert "was altered" in failure(tmp_path, deep=True)


@pytest.mark.parametrize(
    ("found", "fits"), [("2026.4.9", True), ("2026.4.1.0", True), ("2026.3.0", False), ("2027.4.1", False)]
)
def test_package_version(tmp_path: Path, found: str, fits: bool) -> None:
    make_engine(tmp_path)
    if fits:
        manifest.check(tmp_path, installed={"openvino": found})
    else:
        assert f"built for openvino 2026.4 and {found} is installed" in failure(tmp_path, installed={"openvino": found})


def test_missing_package(tmp_path: Path) -> None:
    make_engine(tmp_path)
    assert "not installed" in failure(tmp_path, installed={})


def test_compiled_engine_needs_the_exact_release_and_gpu(tmp_path: Path) -> None:
    requires = manifest.Requires(packages={"tensorrt_llm": "1.2.1"}, compute_capability="9.0")
    make_engine(tmp_path, target="tensorrt_llm", requires=requires)
    packages = {"tensorrt_llm": "1.2.1"}
    manifest.check(tmp_path, installed=packages, compute_capability="9.0")
    assert "1.2.0 is installed" in failure(tmp_path, installed={"tensorrt_llm": "1.2.0"})
    assert "compute capability 9.0" in failure(tmp_path, installed=packages, compute_capability="8.9")


def test_a_checkpoint_has_to_be_compiled_first(tmp_path: Path) -> None:
    make_engine(tmp_path, target="tensorrt_llm", stage="checkpoint")
    assert manifest.check_whole(tmp_path).stage == "checkpoint"
    assert "python -m build_engine compile" in failure(tmp_path)


def test_other_target(tmp_path: Path) -> None:
    make_engine(tmp_path)
    assert "--target tensorrt-llm" in failure(tmp_path, target="tensorrt_llm")


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "a/../../b", ""])
def test_files_outside_the_directory_are_refused(tmp_path: Path, path: str) -> None:
    make_engine(tmp_path, files=[manifest.FileEntry(path=path, bytes=1, sha256="0")])
    assert "outside the engine directory" in failure(tmp_path)


def test_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    make_engine(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engine.json", "openvino_model.bin", "tokenizer.json"]


def test_importing_it_imports_nothing_heavy() -> None:
    code = "import sys, inflight.manifest; print([m for m in ('torch', 'numpy', 'openvino') if m in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(Path(manifest.__file__).parents[1])}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert found.stdout.strip() == "[]", found.stderr


def test_structs_cannot_be_changed(tmp_path: Path) -> None:
    written = make_engine(tmp_path)
    with pytest.raises(AttributeError):
        written.limits.max_seq_len = 1  # type: ignore[misc]
    assert not dataclasses.is_dataclass(written)
