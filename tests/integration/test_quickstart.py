"""quickstart.sh and serve.py as a person runs them, on what is installed: answers, signals, nothing left behind."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from inflight_tools.common.layout import MODELS, REPOSITORY
from inflight_tools.server.processes import kill_all, living_pids, marked_pids
from inflight_tools.server.server import Ports
from inflight_tools.server.shm import regions
from tests.conftest import require_installation
from tests.harness.grpc_client import GrpcClient
from tests.harness.repository import write_model

pytestmark = pytest.mark.server

_MARK = "INFLIGHT_TEST_RUN"


class Run:
    """A script under way, with everything that it starts marked in its environment."""

    def __init__(self, tmp_path: Path, *command: str | Path, environment: dict[str, str] | None = None) -> None:
        self.ports = Ports.free()
        self.output = tmp_path / f"output-{time.monotonic_ns()}"
        self.mark = str(self.output)
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                env={
                    **os.environ,
                    "INFLIGHT_HTTP_PORT": str(self.ports.http),
                    "INFLIGHT_GRPC_PORT": str(self.ports.grpc),
                    "INFLIGHT_METRICS_PORT": str(self.ports.metrics),
                    _MARK: self.mark,
                    **(environment or {}),
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a process group of its own, as a terminal gives to a command
            )

    def text(self) -> str:
        return self.output.read_text()

    def wait_for(self, text: str, seconds: float = 120.0) -> None:
        self.wait_until(lambda: text in self.text(), f"{text!r} to be printed", seconds)

    def wait_until(self, condition: Callable[[], object], what: str, seconds: float = 120.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"it ended before {what}:\n{self.text()}"
            assert time.monotonic() < deadline, f"waited too long for {what}:\n{self.text()}"
            time.sleep(0.02)

    def ctrl_c(self) -> None:
        """As a terminal does: to the whole foreground process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self, seconds: float = 90.0) -> int:
        return self.process.wait(seconds)

    def left(self) -> list[int]:
        """Processes of this run that are still there after a moment."""
        deadline = time.monotonic() + 3
        while (left := marked_pids(_MARK, self.mark)) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left


Start = Callable[..., Run]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts scripts; whatever of them is left at the end is killed and fails the test."""
    require_installation()
    runs: list[Run] = []
    mapped: set[str] = set()  # shared memory that their processes have had: other tests' servers leave some as well
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            for pid in [pid for run in runs for pid in marked_pids(_MARK, run.mark)]:
                with contextlib.suppress(OSError):
                    maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")
                    mapped.update(str(region) for region in regions() if str(region) in maps)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()

    def make(*command: str | Path, **options: dict[str, str]) -> Run:
        runs.append(Run(tmp_path, *command, **options))
        return runs[-1]

    yield make
    over.set()
    watcher.join(10)
    left = {run.mark: run.left() for run in runs}
    for run in runs:
        kill_all(lambda mark=run.mark: marked_pids(_MARK, mark))  # type: ignore[misc]
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.process.wait(10)
    assert not any(left.values()), left
    assert not {region for region in regions() if str(region) in mapped and not _in_use(region)}


def _in_use(region: Path) -> bool:
    from inflight_tools.server.processes import holds_any

    return any(holds_any(pid, {str(region)}) for pid in living_pids())


QUICKSTART = REPOSITORY / "scripts" / "quickstart.sh"
SERVE = (REPOSITORY / ".venv/bin/python", REPOSITORY / "scripts/serve.py")


def test_the_second_run_answers_within_seconds_and_stops_its_server(start: Start) -> None:
    run = start(QUICKSTART, "--prompt", "What is the capital of France?", "--max-tokens", "24")
    assert run.end() == 0, run.text()
    text = run.text()
    answer = text[text.index("] A streamed answer to:") : text.index("time to first token")].partition("\n")[2]
    assert len(answer.split()) > 3, text
    assert re.search(r"\d+\.\d tokens/s \| \d+ tokens \| finish reason: (stop|length)", text)
    assert text.count("(kept)") == 3  # environment, packages, engine
    done = text[text.index("Done in ") :].split()[2]
    assert float(done) < 45, text  # 5 s on an idle machine
    command = [REPOSITORY / ".venv/bin/inflight", "--version"]  # which the last lines name
    assert ".venv/bin/inflight chat" in text
    assert subprocess.run(command, capture_output=True, check=True, timeout=60).stdout.startswith(b"inflight ")


def test_serve_stays_until_sigterm(start: Start) -> None:
    run = start(QUICKSTART, "--serve", "--max-tokens", "4")
    run.wait_for("Serving: ")
    with GrpcClient(f"127.0.0.1:{run.ports.grpc}") as client:
        assert client.generate("The capital of France is", max_tokens=4).text.startswith(" Paris")
    run.process.terminate()
    assert run.end() == 0, run.text()


@pytest.mark.full
def test_serve_ends_in_order_on_ctrl_c(start: Start) -> None:
    run = start(QUICKSTART, "--serve", "--max-tokens", "4")
    run.wait_for("Serving: ")
    run.ctrl_c()
    assert run.end() == 0, run.text()
    assert "error" not in run.text()


@pytest.mark.parametrize(
    ("moment", "number"),
    [("Server", signal.SIGINT), pytest.param("A streamed answer", signal.SIGTERM, marks=pytest.mark.full)],
)
def test_stopped_while_the_server_starts_or_answers(start: Start, moment: str, number: signal.Signals) -> None:
    run = start(QUICKSTART, "--prompt", "Tell me a very long story.", "--max-tokens", "2000")
    run.wait_for(f"] {moment}")
    if number is signal.SIGINT:
        run.ctrl_c()
    else:
        run.process.terminate()
    assert run.end() == 128 + number, run.text()


@pytest.mark.full
def test_the_server_ends_when_quickstart_is_killed(start: Start) -> None:
    run = start(QUICKSTART, "--serve", "--max-tokens", "4")
    run.wait_for("Serving: ")
    run.process.kill()
    run.process.wait(10)
    deadline = time.monotonic() + 30
    while marked_pids(_MARK, run.mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert run.left() == []


def test_an_engine_that_does_not_load_is_one_sentence(start: Start, tmp_path: Path) -> None:
    write_model(tmp_path / "repository", "llm", engine_dir=tmp_path / "nothing")
    run = start(*SERVE, "--repository", tmp_path / "repository", "--log", tmp_path / "log")
    assert run.end() == 1
    (line,) = [line for line in run.text().splitlines() if line.startswith("error: ")]
    assert line.startswith("error: tritonserver did not start: model 'llm': ")
    assert "Traceback" not in run.text()
    assert "model.py(" not in line


@pytest.mark.build
def test_no_network_is_one_sentence(start: Start, tmp_path: Path) -> None:
    """In a copy of this folder, as after a fresh clone, with an index that refuses connections."""
    copy = tmp_path / "clone"
    for name in ("scripts", "requirements", "python_backend", "build_engine", "gateway", "model_repository"):
        ignored = shutil.ignore_patterns("engine", "__pycache__", ".*")
        shutil.copytree(REPOSITORY / name, copy / name, ignore=ignored, symlinks=True)
    shutil.copy(REPOSITORY / "pyproject.toml", copy)
    offline = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_CONFIG_FILE": "/dev/null", "PIP_FIND_LINKS": ""}
    offline |= {"PIP_EXTRA_INDEX_URL": "", "PIP_NO_CACHE_DIR": "1"}
    for _ in range(2):  # a second try does not trust what the first one left
        run = start(copy / "scripts" / "quickstart.sh", environment=offline)
        assert run.end() == 1
        (line,) = [line for line in run.text().splitlines() if line.startswith("error: ")]
        assert "because the package index cannot be reached: check the network" in line
    assert (copy / ".venv" / ".incomplete").exists()
    assert not list((copy / ".cache").glob(".tmp-*"))


@pytest.mark.build
def test_the_real_checkpoint_has_the_tokenizer_it_was_trained_with() -> None:
    """Ids as llama.cpp's pre-tokenizer `smollm` gives them: digits alone, no BOS, chat marks whole."""
    from tokenizers import Tokenizer

    folder = MODELS / "SmolLM2-135M-Instruct"
    assert folder.exists(), "run scripts/fetch_model.py"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.encode("Hello 12345 world's  end").tokens == [
        *("Hello", "Ġ", "1", "2", "3", "4", "5", "Ġworld", "'s", "Ġ", "Ġend"),
    ]
    assert tokenizer.encode("<|im_start|>user\nhi<|im_end|>\n").ids == [1, 4093, 198, 6004, 2, 198]
    assert (folder / "LICENSE").read_text().lstrip().startswith("Apache License")
