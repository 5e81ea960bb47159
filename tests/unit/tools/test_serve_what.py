"""`inflight serve WHAT`: what is told apart, what is refused, what is built once, and the repository made around it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from build_engine import source
from build_engine.console import Console
from build_engine.errors import Interrupted, UserMistake
from build_engine.job import BuildOptions
from inflight import manifest
from inflight_tools import cli
from inflight_tools.common.layout import REPOSITORY
from inflight_tools.common.report import Failure
from inflight_tools.common.tiny_models import write_config
from inflight_tools.server import prepare, serve
from inflight_tools.server.engine_cache import in_use, make_room
from inflight_tools.server.prepare import Wish, build_once, choose_engine, engine_key, write_repository
from inflight_tools.server.serve import as_they_are
from inflight_tools.server.server import Ports, Server, ServerConfig
from inflight_tools.server.what import Kind, What, recognise

pytestmark = pytest.mark.fast


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "SERVED", tmp_path / "served")


def checkpoint(directory: Path) -> Path:
    write_config(directory)
    (directory / "model.safetensors").write_bytes(b"weights")
    (directory / "tokenizer.json").write_text("{}")
    return directory


def repository(directory: Path, *models: str) -> Path:
    for model in models:
        (directory / model / "1").mkdir(parents=True)
        (directory / model / "config.pbtxt").write_text('backend: "inflight"\n')
    return directory


# --- What it is -------------------------------------------------------------------------------------------------------


def test_each_thing_is_told_by_what_lies_there(tmp_path: Path) -> None:
    models = repository(tmp_path / "models", "llm")
    assert recognise(str(models)) == What(Kind.REPOSITORY, str(models))
    assert recognise(str(models / "llm")) == What(Kind.REPOSITORY, str(models), "llm")
    bare = tmp_path / "without-config"
    (bare / "llm" / "1").mkdir(parents=True)
    assert recognise(str(bare)).kind is Kind.REPOSITORY
    folder = checkpoint(tmp_path / "checkpoint")
    assert recognise(str(folder)) == What(Kind.CHECKPOINT, str(folder))
    (folder / "engine.json").write_text("{}")  # an engine directory brings the checkpoint's config.json along
    assert recognise(str(folder)) == What(Kind.ENGINE, str(folder))
    compiled = tmp_path / "compiled"
    compiled.mkdir()
    (compiled / "rank0.engine").touch()
    assert recognise(str(compiled)).kind is Kind.ENGINE


def test_a_name_on_the_hub_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert recognise("HuggingFaceTB/SmolLM2-135M-Instruct") == What(Kind.HUB, "HuggingFaceTB/SmolLM2-135M-Instruct")
    (tmp_path / "HuggingFaceTB").mkdir()  # a folder of that name says nothing yet
    assert recognise("HuggingFaceTB/SmolLM2-135M-Instruct").kind is Kind.HUB


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            "model_repositry",
            r"there is no folder model_repositry \(did you mean model_repository\?\): name a model rep",
        ),
        ("models/smollm", r"there is no folder models/smollm \(did you mean smollm2\?\)"),
        ("./org/model", r"there is no folder \./org/model: name"),
        ("a/b/c", "there is no folder a/b/c: name"),
        ("gpt2", "there is no folder gpt2: name"),
        ("notes.txt", "notes.txt is a file: name a folder"),
        ("empty", "empty holds nothing that can be served"),
        ("broken", "broken holds nothing that can be served"),
    ],
)
def test_what_is_nothing_of_the_kind(
    given: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("model_repository", "models/smollm2", "empty", "broken"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "notes.txt").touch()
    (tmp_path / "broken" / "config.json").write_text("[")
    with pytest.raises(Failure, match=sentence):
        recognise(given)


# --- Which engine, and the build --------------------------------------------------------------------------------------


class FakeBuild:
    """Stands in for build_engine.build.build: writes an engine directory, whole, and notes what was asked for."""

    def __init__(self) -> None:
        self.asked: list[BuildOptions] = []

    def __call__(self, options: BuildOptions, console: Console) -> None:
        self.asked.append(options)
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "weights.bin").write_bytes(b"1234")
        manifest.write(
            options.output,
            manifest.Manifest(
                target="openvino",
                source=manifest.Source(name="m", architecture="LlamaForCausalLM", sha256=""),
                quantization=manifest.Quantization(algorithm="", kv_cache="int8"),
                parallelism=manifest.Parallelism(),
                limits=manifest.Limits(max_seq_len=8),
                requires=manifest.Requires(),
                verification=None,
                files=manifest.list_files(options.output),
                built=manifest.Built(by="", command="", date="", seconds=0.0),
            ),
        )


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> FakeBuild:
    fake = FakeBuild()
    monkeypatch.setattr(prepare, "build", fake)
    return fake


def test_a_checkpoint_is_built_once(tmp_path: Path, builder: FakeBuild) -> None:
    folder = checkpoint(tmp_path / "my model")
    what = What(Kind.CHECKPOINT, str(folder))
    first = prepare.prepare(what, Wish(), Console())
    assert prepare.prepare(what, Wish(), Console()) == first
    (options,) = builder.asked
    assert first.directory == options.output
    assert (options.target, options.quantization, options.force) == ("openvino", "int8", False)
    assert options.verify_tokens > 0
    assert options.output.name.startswith("my_model-int8-")
    assert f'string_value: "{options.output}"' in (first.repository / "llm" / "config.pbtxt").read_text()
    prepare.prepare(what, Wish(quantization="int4"), Console())
    assert [options.quantization for options in builder.asked] == ["int8", "int4"]
    (options.output / "weights.bin").write_bytes(b"1")  # damaged: built again, in its place
    prepare.prepare(what, Wish(), Console())
    assert (builder.asked[-1].force, builder.asked[-1].output) == (True, options.output)


def test_another_checkpoint_is_another_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint(tmp_path / "m")
    keys = {key := engine_key(source.resolve(str(folder)), "openvino", "int8")}
    assert engine_key(source.resolve(str(folder)), "openvino", "int8") == key
    moved = tmp_path / "moved"
    folder.rename(moved)
    assert engine_key(source.resolve(str(moved)), "openvino", "int8") == key  # what it is, not where it lies
    keys.add(engine_key(source.resolve(str(moved)), "openvino", "int4"))
    for name, text in (
        ("tokenizer.json", '{"a": 1}'),
        ("generation_config.json", "{}"),
        ("model.safetensors", "weighty"),
    ):
        before = os.stat(moved / name) if (moved / name).exists() else None
        (moved / name).write_text(text)
        if before and name != "model.safetensors":
            os.utime(moved / name, ns=(before.st_atime_ns, before.st_mtime_ns))
        keys.add(engine_key(source.resolve(str(moved)), "openvino", "int8"))
    monkeypatch.setattr(prepare, "__version__", "9.9")
    keys.add(engine_key(source.resolve(str(moved)), "openvino", "int8"))
    assert len(keys) == 6


def test_a_recipe_that_the_target_lacks_is_said_before_any_work(tmp_path: Path, builder: FakeBuild) -> None:
    folder = checkpoint(tmp_path / "m")
    with pytest.raises(Failure, match=r"--quantization fp8 cannot be built for openvino, which takes: none, int8"):
        prepare.prepare(What(Kind.CHECKPOINT, str(folder)), Wish(quantization="fp8"), Console())
    assert builder.asked == []


def test_a_mistake_of_the_builder_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise UserMistake("this model needs a larger machine")

    monkeypatch.setattr(prepare, "build", refuse)
    with pytest.raises(Failure, match=r"^this model needs a larger machine\.$"):
        prepare.prepare(What(Kind.CHECKPOINT, str(checkpoint(tmp_path / "m"))), Wish(), Console())


def test_ctrl_c_in_the_build_leaves_with_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any) -> None:
        raise Interrupted(2)

    monkeypatch.setattr(prepare, "build", interrupted)
    monkeypatch.setattr(serve, "find_triton", lambda _: None)
    assert cli.main(["serve", str(checkpoint(tmp_path / "m")), *free_ports()]) == 130
    assert capsys.readouterr().err.endswith("stopped; nothing was left behind\n")


def test_what_an_installed_engine_takes_as_it_comes_is_not_built(
    tmp_path: Path, builder: FakeBuild, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint(tmp_path / "m")
    assert choose_engine(folder, Wish()) == "openvino"
    monkeypatch.setattr(prepare, "find_packages", lambda names: {"vllm": "0.32.0"})
    assert choose_engine(folder, Wish()) == "vllm"
    assert choose_engine(folder, Wish(engine="openvino")) == "openvino"
    made = prepare.prepare(What(Kind.CHECKPOINT, str(folder)), Wish(name="chat"), Console()).repository
    assert builder.asked == []
    text = (made / "chat" / "config.pbtxt").read_text()
    assert f'key: "engine_dir" value {{ string_value: "{folder}" }}' in text
    assert 'key: "engine" value { string_value: "vllm" }' in text
    prepare.prepare(What(Kind.CHECKPOINT, str(folder)), Wish(quantization="int8-sq"), Console())
    (options,) = builder.asked
    assert options.target == "hf-quantized"


def test_a_quantized_checkpoint_is_served_by_what_reads_it_or_refused_with_its_name(
    tmp_path: Path, builder: FakeBuild, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    what = What(Kind.CHECKPOINT, str(folder))
    with pytest.raises(Failure, match=r"vLLM is not installed.*pip install vllm.*the checkpoint it was made from"):
        prepare.prepare(what, Wish(), Console())
    monkeypatch.setattr(prepare, "find_packages", lambda names: {"vllm": "0.32.0", "tensorrt_llm": "1.2.1"})
    made = prepare.prepare(what, Wish(), Console())
    assert made.directory == folder
    assert 'key: "engine" value { string_value: "vllm" }' in (made.repository / "llm" / "config.pbtxt").read_text()
    assert builder.asked == []


def test_an_engine_in_an_environment_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="no engine here runs this Hugging Face-style checkpoint"):
        choose_engine(checkpoint(tmp_path / "m"), Wish(engine_python=sys.executable))
    with pytest.raises(Failure, match="does not answer as Python does"):
        choose_engine(tmp_path / "m", Wish(engine_python="/bin/false"))


def test_engines_used_longest_ago_make_room(tmp_path: Path) -> None:
    folder = tmp_path / "engines"
    for age, name in enumerate(("oldest", "old", "served", "new")):
        (folder / name / "inner").mkdir(parents=True)
        (folder / name / "inner" / "weights").write_bytes(b"x" * 100)
        os.utime(folder / name, (age, age))
    (folder / ".new.building-1").mkdir()  # a build at work
    with in_use(folder / "served"):
        assert make_room(folder, needed=100, limit=500) == []
        assert make_room(folder, needed=100, limit=400) == [folder / "oldest"]
        os.utime(folder / "served", (0, 0))
        assert make_room(folder, needed=500, limit=400) == [folder / "old", folder / "new"]
        assert sorted(path.name for path in folder.iterdir()) == [".new.building-1", "served"]
    assert make_room(folder, needed=500, limit=400) == [folder / "served"]
    assert make_room(tmp_path / "nothing", needed=1, limit=0) == []


def test_what_is_served_counts_as_used(tmp_path: Path) -> None:
    os.utime(tmp_path, (1, 1))
    with in_use(tmp_path):
        assert tmp_path.stat().st_mtime > 1


# --- The repository ---------------------------------------------------------------------------------------------------


def test_an_engine_directory_is_linked_to_and_left_alone(tmp_path: Path) -> None:
    engine = tmp_path / "engine ☂"
    engine.mkdir()
    (engine / "engine.json").write_text("{}")
    made = prepare.prepare(What(Kind.ENGINE, str(engine)), Wish(), Console()).repository
    assert sorted(path.relative_to(made).as_posix() for path in made.rglob("*")) == ["llm", "llm/1", "llm/config.pbtxt"]
    assert f'key: "engine_dir" value {{ string_value: "{engine}" }}' in (made / "llm" / "config.pbtxt").read_text(
        "utf-8"
    )
    assert [path.name for path in engine.iterdir()] == ["engine.json"]
    with pytest.raises(Failure, match="is built already: leave out --quantization"):
        prepare.prepare(What(Kind.ENGINE, str(engine)), Wish(quantization="int8"), Console())


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "-x"])
def test_a_name_that_no_folder_may_have(name: str, tmp_path: Path) -> None:
    with pytest.raises(Failure, match="--name is"):
        prepare.prepare(What(Kind.ENGINE, str(tmp_path)), Wish(name=name), Console())


def test_what_is_written_here_needs_nothing_from_triton(tmp_path: Path) -> None:
    """Triton then starts the backend once instead of twice; a single model that leaves something open needs both."""
    repository = write_repository(tmp_path, "llm", {"engine_dir": "/x"})
    assert as_they_are(repository) == ("--disable-auto-complete-config",)
    (repository / "other").mkdir()
    assert as_they_are(repository) == (), "without a config.pbtxt Triton has to make one"
    (repository / "other" / "config.pbtxt").write_text('backend: "inflight"\n', encoding="utf-8")
    assert as_they_are(repository) == ()
    assert as_they_are(tmp_path / "nothing") == (), "what is wrong is said by who loads it"


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Failure, match=r"cannot be written \(Not a directory\): name another folder"):
        write_repository(tmp_path / "file", "llm", {})


# --- The hub ----------------------------------------------------------------------------------------------------------


HALF_SENT = threading.Event()
GO_ON = threading.Event()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """A hub with two models over the real library's protocol; everything else is 404 there. The weights of tiny/slow
    come by half, the rest not before `GO_ON`.
    """
    HALF_SENT.clear()
    GO_ON.clear()
    files = {path.name: path.read_bytes() for path in checkpoint(tmp_path / "on-the-hub").iterdir()}
    commit = "a" * 40

    class Handler(BaseHTTPRequestHandler):
        def reply(self, *, head: bool) -> None:
            model, _, name = self.path.removeprefix("/").partition(f"/resolve/{commit}/")
            if self.path.startswith(("/api/models/tiny/llama", "/api/models/tiny/slow")):
                siblings = [{"rfilename": name} for name in [*files, "pytorch_model.bin", "run_me.py"]]
                content = json.dumps({"id": "tiny/llama", "sha": commit, "siblings": siblings}).encode()
            elif model in ("tiny/llama", "tiny/slow") and name in files:
                content = files[name]
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hash(content) & 0xFFFFFFFF:x}"')
            self.send_header("X-Repo-Commit", commit)
            self.end_headers()
            if head:
                return
            if model == "tiny/slow" and name == "model.safetensors":
                self.wfile.write(content[:3])
                content = content[3:]
                HALF_SENT.set()
                GO_ON.wait(60)
            with contextlib.suppress(OSError):
                self.wfile.write(content)

        def do_GET(self) -> None:
            self.reply(head=False)

        def do_HEAD(self) -> None:
            self.reply(head=True)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    GO_ON.set()
    server.shutdown()
    server.server_close()
    thread.join(5)


_PREPARE = """
import sys
from pathlib import Path
from build_engine.console import Console
from inflight_tools.common.report import Failure
from inflight_tools.server import prepare
from inflight_tools.server.what import recognise
prepare.SERVED = Path(sys.argv[2])
def build(options, console):
    print("build", options.model, options.target, options.quantization, options.output.name)
    print(*sorted(path.name for path in Path(options.model).iterdir()))
prepare.build = build
try:
    print(prepare.prepare(recognise(sys.argv[1]), prepare.Wish(), Console()).repository)
except Failure as failure:
    sys.exit(str(failure))
"""


def of_hub(endpoint: str, tmp_path: Path) -> dict[str, str]:
    """The environment of a process of its own: the library reads its address and its cache when it is imported."""
    path = os.pathsep.join(str(REPOSITORY / part) for part in ("scripts", "python_backend", "."))
    left_out = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "HTTP_PROXY", "http_proxy")
    inherited = {name: value for name, value in os.environ.items() if name not in left_out}
    return {**inherited, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": path}


def ask_hub(endpoint: str, name: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _PREPARE, name, tmp_path / "served"],
        env=of_hub(endpoint, tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_name_on_the_hub_is_fetched_and_built(hub: str, tmp_path: Path) -> None:
    done = ask_hub(hub, "tiny/llama", tmp_path)
    assert done.returncode == 0, done.stderr
    built, files, made = done.stdout.splitlines()
    _, model, *rest = built.split()
    assert rest[:2] == ["openvino", "int8"]
    assert rest[2].startswith("tiny_llama-int8-")
    assert str(tmp_path / "hf") in model
    assert files.split() == ["config.json", "model.safetensors", "tokenizer.json"]  # no pickle, no code
    assert (Path(made) / "llm" / "config.pbtxt").is_file()


def test_a_name_that_the_hub_does_not_have(hub: str, tmp_path: Path) -> None:
    done = ask_hub(hub, "tiny/lama", tmp_path)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.strip()]
    assert line.startswith("tiny/lama is not a directory here and could not be fetched from the hub (404 ")


def test_ctrl_c_in_the_middle_of_a_large_file_does_not_wait_for_its_end(hub: str, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "inflight_tools.cli", "build", "tiny/slow", "--target", "openvino", "--output", "out"],
        env=of_hub(hub, tmp_path),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert HALF_SENT.wait(60)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)  # the file itself would take 60 s
    assert process.returncode == 130
    assert errors.endswith("stopped; nothing was left behind\n")


# --- What is said before anything is begun ----------------------------------------------------------------------------


def free_ports() -> list[str]:
    ports = Ports.free()
    numbers = {"http": ports.http, "grpc": ports.grpc, "metrics": ports.metrics}
    return [word for name, number in numbers.items() for word in (f"--{name}-port", str(number))]


def test_a_taken_port_is_said_before_the_build(
    tmp_path: Path, builder: FakeBuild, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "find_triton", lambda _: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Failure, match=rf"port {port} on 127\.0\.0\.1 cannot be used \(Address already in use\)"):
            cli.main(["serve", str(checkpoint(tmp_path / "m")), *free_ports(), "--grpc-port", str(port)])
    assert builder.asked == []


def test_no_server_is_said_before_the_build(tmp_path: Path, builder: FakeBuild) -> None:
    with pytest.raises(Failure, match="nowhere is not a program"):
        cli.main(["serve", str(checkpoint(tmp_path / "m")), "--tritonserver", "nowhere"])
    assert builder.asked == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["models", "--name", "x"], "--name does not go with a model repository"),
        (["models", "--quantization", "int8"], "--quantization does not go with a model repository"),
        (["models", "--engine", "vllm"], "--engine does not go with a model repository"),
        (["models", "--engine-python", "x"], "--engine-python does not go with a model repository"),
        (["m", "--model", "x"], "--model goes with a model repository: the model made of m is named with --name"),
        (["models", "--repository", "models"], "WHAT and --repository say the same"),
        (["models", "--model", "lml"], "has no model 'lml'"),
    ],
)
def test_options_that_do_not_go_together(
    options: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(serve, "StopRequest", lambda: None)
    repository(tmp_path / "models", "llm")
    checkpoint(tmp_path / "m")
    with pytest.raises(Failure, match=sentence):
        cli.main(["serve", *options])


def test_which_models_of_a_repository_are_loaded(tmp_path: Path) -> None:
    with_llm = What(Kind.REPOSITORY, str(repository(tmp_path / "a", "llm", "other")))
    without = What(Kind.REPOSITORY, str(repository(tmp_path / "b", "one", "two")))
    assert serve.models_of(with_llm, [], choose=True) == ("llm",)
    assert serve.models_of(without, [], choose=True) == ()  # every one
    assert serve.models_of(without, [], choose=False) == ("llm",)  # as scripts/serve.py always did
    assert serve.models_of(without, ["two"], choose=True) == ("two",)
    assert serve.models_of(with_llm, ["all"], choose=True) == ()
    assert serve.models_of(What(Kind.REPOSITORY, str(tmp_path / "b"), "one"), [], choose=True) == ("one",)


def test_it_ends_in_lines_that_can_be_copied(tmp_path: Path) -> None:
    repository(tmp_path, "llm", "my")
    usual = Server(ServerConfig(repository=tmp_path, ports=Ports(), log=tmp_path / "log"), triton=object())  # type: ignore[arg-type]
    curl, chat = serve.how_to_ask(usual, {"PATH": ""})
    assert curl.startswith('curl -s 127.0.0.1:8000/v2/models/llm/generate -d \'{"text_input": ')
    assert chat.endswith('inflight chat "Tell me a joke."')
    config = ServerConfig(repository=tmp_path, models=("my",), ports=Ports(1, 2, 3), log=tmp_path / "log")
    _, chat = serve.how_to_ask(Server(config, triton=object()), {"PATH": ""})  # type: ignore[arg-type]
    assert chat.endswith('inflight chat --url 127.0.0.1:2 --model my "Tell me a joke."')


def test_the_builders_own_lock_and_sweep_guard_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that build the same at the same time: the second is told, and nothing of the first is touched."""
    monkeypatch.setattr("build_engine.build.check_weights", lambda origin: None)  # its weights are made up
    from build_engine.output import OutputDirectory

    origin = source.resolve(str(checkpoint(tmp_path / "m")))
    output = prepare.SERVED / "engines" / f"m-int8-{engine_key(origin, 'openvino', 'int8')}"
    with OutputDirectory(output) as first:
        (first.path / "x").touch()
        with pytest.raises(UserMistake, match="another build is writing"):
            build_once(origin, "openvino", "int8", Console())
        assert (first.path / "x").exists()
