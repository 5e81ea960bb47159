"""The command `inflight`: its words, their pages, what it says to wrong ones, and what it does without any extra."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from inflight import control, manifest
from inflight_tools import cli
from inflight_tools.common.layout import REPOSITORY
from inflight_tools.common.report import Failure, missing_package
from inflight_tools.common.tiny_models import write_config
from inflight_tools.server import operate, what
from inflight_tools.server.server import Ports

pytestmark = pytest.mark.fast


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test here speaks to the models that run on this machine."""
    monkeypatch.setenv("INFLIGHT_CONTROL_DIR", str(tmp_path / "control"))


WORDS = (
    *(
        "serve",
        "gateway",
        "chat",
        "build",
        "plan",
        "verify",
        "inspect",
        "tune",
        "compile",
        "load-test",
        "import",
        "selfcheck",
    ),
    *("status", "drain", "undrain", "version"),
)


def page(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `--help` prints."""
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 0
    return capsys.readouterr().out


def bare(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a Python that has msgspec and nothing else."""
    import msgspec

    packages = tmp_path / "packages"
    packages.mkdir(exist_ok=True)
    if not (packages / "msgspec").exists():
        (packages / "msgspec").symlink_to(Path(msgspec.__file__).parent)
    path = os.pathsep.join([str(REPOSITORY / "scripts"), str(packages)])
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": path, "HOME": str(tmp_path)}
    return subprocess.run(
        [sys.executable, "-S", "-m", "inflight_tools.cli", *arguments],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_page_lists_every_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    shown = re.findall(r"^  ([a-z-]+) ", capsys.readouterr().out, re.MULTILINE)
    assert sorted(shown) == sorted(WORDS)


@pytest.mark.parametrize("word", WORDS)
def test_every_word_has_a_page_of_its_own(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = page(capsys, word, "--help")
    assert text.startswith(f"usage: inflight {word} ")
    assert "python -m" not in text.partition("\n\n")[0]


def test_nothing_said_is_a_page_and_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "usage: inflight COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize(("wrong", "right"), [("sreve", "serve"), ("chta", "chat"), ("load_test", "load-test")])
def test_a_wrong_word_gets_the_nearest_right_one(wrong: str, right: str) -> None:
    with pytest.raises(Failure, match=rf"'{wrong}' is no command of inflight \(did you mean {right}\?\)"):
        cli.main([wrong])


@pytest.mark.parametrize(
    ("line", "right"),
    [
        ("serve --quantisation int8 x", "--quantization"),
        ("serve --quantization int3 x", "int8"),
        ("serve --engine openvina x", "openvino"),
        ("chat --max-tokenz 3 hi", "--max-tokens"),
        ("plan --kv_cache fp8 x", "--kv-cache"),
        ("build x --target openvin --output y", "openvino"),
        ("drain --timeout 3", "--timeout-ms"),
        ("load-test --concurency 3", "--concurrency"),
        ("import --nmae x a b", "--name"),
        ("version --jsn", "--json"),
    ],
)
def test_a_wrong_option_gets_the_nearest_right_one(line: str, right: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(line.split())
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert f"(did you mean {right}?) (see inflight {line.split()[0]} --help)" in error


def test_help_and_version_import_next_to_nothing(tmp_path: Path) -> None:
    code = "import sys; from inflight_tools import cli; cli.main([sys.argv[1]]); print(*sorted(sys.modules))"
    for word in ("--help", "--version"):
        done = subprocess.run(
            [sys.executable, "-S", "-c", code, word],
            env={"PYTHONPATH": str(REPOSITORY / "scripts")},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        modules = done.stdout.splitlines()[-1].split()
        assert not {"argparse", "msgspec", "socket", "urllib.request"} & set(modules)
        assert {name for name in modules if name.startswith("build_engine")} == set()


def test_ports_are_checked_by_any_python_without_packages(tmp_path: Path) -> None:
    """quickstart.sh does so before it makes an environment."""
    ports = Ports.free()
    options = [word for name, number in asdict(ports).items() for word in (f"--{name}-port", str(number))]
    script = str(REPOSITORY / "scripts" / "serve.py")
    command = [sys.executable, "-S", script, "--check", *options]
    done = subprocess.run(command, env={"PATH": "/bin"}, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert what.MANIFEST_NAME == manifest.MANIFEST_NAME


def test_plan_needs_a_config_and_msgspec(tmp_path: Path) -> None:
    write_config(tmp_path / "model")
    done = bare(tmp_path, "plan", "model")
    assert done.returncode == 0, done.stderr
    assert "model: LlamaForCausalLM" in done.stdout


@pytest.mark.parametrize(
    ("line", "extra"),
    [("gateway", "gateway"), ("load-test", "client"), ("import a b", "client"), ("selfcheck", "client")],
)
def test_what_needs_an_extra_names_it(tmp_path: Path, line: str, extra: str) -> None:
    done = bare(tmp_path, *line.split())
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f'pip install "inflight[{extra}]"' in done.stderr


def test_a_build_names_its_extra_before_any_work(tmp_path: Path) -> None:
    write_config(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    done = bare(tmp_path, "build", "model", "--target", "openvino", "--output", "out")
    assert done.returncode == 2
    assert '(torch, transformers, optimum, nncf, openvino): pip install "inflight[build]"' in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_chat_asks_over_http_where_nothing_is_installed(tmp_path: Path) -> None:
    done = bare(tmp_path, "chat", "--url", "127.0.0.1:9", "hi")
    assert done.returncode == 1
    assert "no server answers over HTTP at 127.0.0.1:9 (Connection refused)" in done.stderr
    assert done.stderr.count("\n") == 1


def test_our_own_missing_module_is_a_bug_and_not_an_extra() -> None:
    assert missing_package(ModuleNotFoundError("no", name="inflight_tools.server.nothing")) is None


def test_the_one_dependency_is_the_pin_of_the_extra() -> None:
    """Read as text: tomllib came with Python 3.11."""
    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    (dependencies,) = re.findall(r"^dependencies = \[(.*)\]$", project, re.MULTILINE)
    (pin,) = re.findall(r'"([^"]+)"', dependencies)
    assert re.fullmatch(r"msgspec==[\d.]+", pin)
    assert project.partition("\nserve = [")[2].partition("]")[0].count(f'"{pin}"') == 1
    assert 'inflight = "inflight_tools.cli:run"' in project


ANSWER = {"health": "ready", "draining": False, "running": 2, "reason": "", "limits": {"context": 8}}


def test_status_says_it_in_words_and_as_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[Any, float]] = []

    def ask_all(request: Any, wait_s: float, models: Any) -> dict[str, dict[str, Any]]:
        asked.append((request, wait_s))
        return {"my-llm-41": ANSWER, "other-42": {"error": "no answer"}}

    monkeypatch.setattr(control, "ask_all", ask_all)
    assert cli.main(["status"]) == 1  # one of them did not answer
    text = capsys.readouterr().out
    assert "my-llm (process 41)\n  health    ready\n" in text
    assert "  limits    context 8\n" in text
    assert "other (process 42)\n  error  no answer\n" in text
    assert cli.main(["status", "--json"]) == 1
    first, _ = capsys.readouterr().out.splitlines()
    assert json.loads(first) == {"model": "my-llm-41", **ANSWER}
    assert asked[0] == ({"command": "status"}, control.ANSWER_WAIT_S)


def test_drain_passes_its_options_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(control, "ask_all", lambda *arguments: asked.append(arguments) or {})
    assert cli.main(["drain", "--timeout-ms", "5000", "--notice-ms", "2000", "--stop"]) == 1
    order = {"command": "drain", "stop": True, "notice_ms": 2000, "timeout_ms": 5000}
    assert asked == [(order, 7.0 + control.ANSWER_WAIT_S, [])]
    assert "start one with inflight serve" in capsys.readouterr().err
    assert cli.main(["drain", "lml"]) == 1
    assert "no model called lml runs here that this user may speak to" in capsys.readouterr().err


def test_only_the_models_that_were_named_are_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    servers = [control.ControlServer(name, {"status": lambda _: {"health": "ready"}}) for name in ("a", "b", "b-c")]
    try:
        for server in servers:
            server.start()
        found = control.ask_all({"command": "status"}, 5.0, ["b", "nothing"])
        assert list(found) == [f"b-{os.getpid()}"]
        assert len(control.ask_all({"command": "status"}, 5.0)) == 3
    finally:
        for server in servers:
            server.stop(5.0)


def test_a_value_is_shown_as_a_person_reads_it() -> None:
    assert operate.as_text("m-1", {"up": True, "why": None, "of": [1, 2]}) == (
        "m (process 1)\n  up   yes\n  why  none\n  of   1, 2"
    )
