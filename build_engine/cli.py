"""Command line: ``python -m build_engine COMMAND``. Exit codes: 0, 1 failure, 2 the user's mistake, 130 for ^C."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from build_engine import __version__
from build_engine.architectures import TARGETS
from build_engine.build import BuildOptions, build
from build_engine.console import make_console
from build_engine.errors import BuilderError, Interrupted
from build_engine.quantization import KV_CACHES, RECIPES


class _Parser(argparse.ArgumentParser):
    """Errors are one sentence, without the usage in front."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {message} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = make_parser().parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)
    try:
        return int(options.run(options, list(arguments)))
    except BuilderError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except Interrupted as interrupted:
        print("stopped; nothing was left behind", file=sys.stderr)
        return interrupted.exit_code
    except BrokenPipeError:
        return 1


def make_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m build_engine", description="Hugging Face checkpoints into verified engines.")
    parser.add_argument("--version", action="version", version=f"build_engine {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_build(commands)
    return parser


def _add_build(commands: argparse._SubParsersAction[_Parser]) -> None:
    parser = commands.add_parser("build", help="build an engine from a checkpoint", allow_abbrev=False)
    parser.add_argument("model", metavar="MODEL", help="directory of a Hugging Face checkpoint, or a hub name")
    parser.add_argument("--target", choices=TARGETS, required=True)
    parser.add_argument("--quantization", choices=tuple(RECIPES), default="int8", help="default: int8")
    parser.add_argument("--kv-cache", choices=KV_CACHES, default="auto", help="default: auto")
    parser.add_argument("--max-seq-len", type=_positive, metavar="TOKENS", help="default: the model's own limit")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--force", action="store_true", help="replace an engine that is already there")
    parser.add_argument("--json", action="store_true", help="progress as JSON lines")
    parser.set_defaults(run=_run_build)


def _run_build(options: argparse.Namespace, arguments: list[str]) -> int:
    console = make_console(as_json=options.json)
    asked = BuildOptions(
        model=options.model,
        target=options.target,
        quantization=options.quantization,
        output=options.output,
        kv_cache=options.kv_cache,
        max_seq_len=options.max_seq_len,
        force=options.force,
        command=shlex.join(["python", "-m", "build_engine", *arguments]),
    )
    build(asked, console)
    return 0


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise Interrupted(number)
