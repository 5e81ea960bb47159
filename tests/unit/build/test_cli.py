from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from build_engine import cli, console, stages
from build_engine.errors import Interrupted, StageFailure, UserMistake
from inflight_tools.common.tiny_models import write_config

pytestmark = pytest.mark.fast


def run(*arguments: object) -> int:
    try:
        return cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


def mistake(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def checkpoint(directory: Path, **changes: object) -> Path:
    write_config(directory, **changes)
    (directory / "model.safetensors").write_bytes(b"")
    (directory / "tokenizer.json").write_text("{}")
    return directory


def test_mistakes_are_one_sentence_and_leave_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = checkpoint(tmp_path / "m")
    out = tmp_path / "engine"
    build = ("build", model, "--target", "openvino", "--output", out)
    assert "no/such" in mistake(capsys, "build", "no/such/model", "--target", "openvino", "--output", out)
    assert "--target" in mistake(capsys, "build", model, "--output", out)
    assert "invalid choice: 'int7'" in mistake(capsys, *build, "--quantization", "int7")
    able = "none, int8, int8-sq, int4, int4-awq, int4-gptq"
    assert f"which takes: {able}" in mistake(capsys, *build, "--quantization", "nvfp4")
    assert "--kv-cache fp8" in mistake(capsys, *build, "--kv-cache", "fp8")
    assert "goes with --quantization int8-sq only" in mistake(capsys, *build, "--smoothquant-alpha", 0.5)
    assert "own limit of 256 tokens" in mistake(capsys, *build, "--max-seq-len", 512)
    for target in ("tensorrt-llm", "hf-quantized"):
        other = ("build", model, "--target", target, "--output", out, "--quantization", "none", "--processor", "avx2")
        assert "--processor is not for --target" in mistake(capsys, *other)
    strange = checkpoint(tmp_path / "s", architectures=["MambaForCausalLM"])
    assert "MambaForCausalLM" in mistake(capsys, "build", strange, "--target", "openvino", "--output", out)
    packed = checkpoint(tmp_path / "q", quantization_config={"quant_method": "gptq"})
    assert "GPTQ" in mistake(capsys, "build", packed, "--target", "openvino", "--output", out)
    out.mkdir()
    (out / "notes.txt").write_text("")
    assert "exists already" in mistake(capsys, *build)
    assert "not an engine directory" in mistake(capsys, *build, "--force")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engine", "m", "q", "s"]


def test_no_disk_is_said_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = checkpoint(tmp_path / "m")
    monkeypatch.setattr("build_engine.preflight.DISK_MARGIN", 1 << 60)
    monkeypatch.setattr("build_engine.job.run_stage", lambda *_, **__: pytest.fail("work was begun"))
    assert "of disk under" in mistake(capsys, "build", model, "--target", "openvino", "--output", tmp_path / "e")


def test_signal_gives_its_exit_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> None:
        raise Interrupted(2)

    monkeypatch.setattr(cli, "build", interrupted)
    assert run("build", "m", "--target", "openvino", "--output", "o") == 130
    assert "nothing was left behind" in capsys.readouterr().err


def test_a_stage_that_does_not_exist_is_a_failure_with_a_log(tmp_path: Path) -> None:
    log = tmp_path / "build.log"
    with pytest.raises(StageFailure, match=r"KeyError.*build\.log"):
        stages.run_stage("no.such.stage", {}, console=console.Console(io.StringIO()), log=log, title="x")
    assert "Traceback" in log.read_text()


def test_json_console_writes_one_object_a_line() -> None:
    stream = io.StringIO()
    speaker = console.make_console(as_json=True, stream=stream)
    with speaker.step("work", 2.0) as step:
        step.update(0.5)
    speaker.warn("careful")
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [event["event"] for event in events] == ["start", "progress", "end", "warn"]
    assert events[1]["fraction"] == 0.5


def test_plain_console_says_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    clock = iter([0.0, 30.0, 60.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with console.Console(stream).step("work") as step:
        step.update(0.25)
    assert "work 25 % after 30.0 s, 90.0 s left" in stream.getvalue()


@pytest.mark.parametrize(("seconds", "text"), [(1.25, "1.2 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")])
def test_format_seconds(seconds: float, text: str) -> None:
    assert console.format_seconds(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(5, "5 B"), (135_234_821, "135 MB"), (1.6e9, "1.6 GB")])
def test_format_bytes(count: float, text: str) -> None:
    assert console.format_bytes(count) == text


def test_user_mistake_is_two() -> None:
    assert UserMistake("x").exit_code == 2
    assert StageFailure("x").exit_code == 1
