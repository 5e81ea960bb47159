"""The command `inflight`: one word, then the same functions as the scripts and `python -m build_engine`.

Nothing is imported before the word is known, so that help is quick and what a word does not need may be missing.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from inflight import __version__
from inflight.errors import did_you_mean
from inflight_tools.common.report import Failure, missing_package, run_main

PROGRAM = "inflight"
_BUILDER = "build_engine.cli"


@dataclass(frozen=True, slots=True)
class Command:
    """One word. `module` has a `main(arguments, program)`; the builder's takes the word as its first argument."""

    name: str
    module: str
    about: str


# Group → its words, in the order in which they are shown.
COMMANDS: dict[str, tuple[Command, ...]] = {
    "serve and ask": (
        Command(
            "serve", "inflight_tools.server.serve", "start Triton with a model: a checkpoint, an engine, a repository"
        ),
        Command("gateway", "inflight_gateway.cli", "OpenAI's, Anthropic's and TGI's APIs in front of a running Triton"),
        Command("chat", "inflight_tools.clients.stream", "ask a served model and print the answer as it comes"),
        Command("status", "inflight_tools.server.operate", "what the models that run here are doing"),
        Command("drain", "inflight_tools.server.operate", "let running answers finish and take no new requests"),
        Command("undrain", "inflight_tools.server.operate", "take a drain back and serve again"),
        Command("load-test", "inflight_tools.load.load_test", "measure a served model with the real perf_analyzer"),
    ),
    "build engines": (
        Command("plan", _BUILDER, "what a model needs and what a GPU gives, from its config.json"),
        Command("build", _BUILDER, "a checkpoint into a verified, quantized engine"),
        Command("compile", _BUILDER, "the last step of a TensorRT-LLM build, on the GPU host"),
        Command("verify", _BUILDER, "measure an engine against the checkpoint it was built from"),
        Command("inspect", _BUILDER, "what an engine is, and whether it runs here"),
        Command("tune", _BUILDER, "several recipes of one model side by side"),
    ),
    "more": (
        Command("import", "inflight_tools.server.moving", "carry another server's command or repository over"),
        Command("selfcheck", "inflight_tools.selfcheck.gpu_selfcheck", "check on a GPU machine what no CPU could"),
        Command("version", "inflight_tools.server.version", "versions of Inflight, Triton and the engines found here"),
    ),
}
_BY_NAME = {command.name: command for group in COMMANDS.values() for command in group}


def help_text() -> str:
    """The page of `inflight --help`."""
    lines = [f"usage: {PROGRAM} COMMAND ...", "", "Serves large language models by streaming through Triton."]
    for title, group in COMMANDS.items():
        lines += ["", f"{title}:", *(f"  {command.name:<11}{command.about}" for command in group)]
    return "\n".join([*lines, "", f"{PROGRAM} COMMAND --help says more about each; {PROGRAM} --version."])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status. Raises `Failure` for what a user can mend."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("--help", "-h", "help"):
        print(help_text())
        return 0 if words else 2
    if words[0] in ("--version", "-V"):
        print(f"{PROGRAM} {__version__}")
        return 0
    command = _BY_NAME.get(words[0])
    if command is None:
        raise Failure(
            f"{words[0]!r} is no command of {PROGRAM}{did_you_mean(words[0], _BY_NAME)}: see {PROGRAM} --help."
        )
    try:
        run_command = _imported(command.module)
        if command.module in (_BUILDER, "inflight_tools.server.operate"):
            return run_command(words, PROGRAM)
        return run_command(words[1:], f"{PROGRAM} {command.name}")
    except ModuleNotFoundError as error:
        sentence = missing_package(error)
        if sentence is None:
            raise
        raise Failure(f"{PROGRAM} {command.name} needs {sentence}") from None


def _imported(module: str) -> Callable[[Sequence[str], str], int]:
    """The module's ``main``; Ctrl-C during the import, where its exception may be lost, ends the program at once."""
    from build_engine.interrupt import leaving_at_once

    if threading.current_thread() is not threading.main_thread():  # only it may say what a signal does
        return importlib.import_module(module).main  # type: ignore[no-any-return]
    with leaving_at_once():
        return importlib.import_module(module).main  # type: ignore[no-any-return]


def run() -> None:
    """The console entry point."""
    run_main(main)


if __name__ == "__main__":
    run()
