"""Command line: ``python -m build_engine COMMAND``. Exit codes: 0, 1 failure, 2 the user's mistake, 130 for ^C."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from build_engine import __version__, devices, source, tune
from build_engine.architectures import ALIASES, TARGETS
from build_engine.arguments import Parser
from build_engine.build import build, compile_engine
from build_engine.cache import default_directory
from build_engine.console import make_console
from build_engine.errors import AccuracyFailure, BuilderError, Interrupted, UserMistake
from build_engine.inspection import inspect
from build_engine.interrupt import STOPPED, interruptible
from build_engine.job import BuildOptions
from build_engine.planning import plan
from build_engine.planning.gpus import gpu_named, gpu_table, own_gpu
from build_engine.planning.roofline import Parallel
from build_engine.quantization import BY_TARGET, KV_CACHES, RECIPES
from build_engine.tensorrt.compile import SPECULATIVE
from build_engine.verification.verify import BUILD_TOKENS, DEFAULT_TOKENS, as_text, verify
from inflight import processor

PROGRAM = "python -m build_engine"


def main(arguments: Sequence[str] | None = None, program: str = PROGRAM) -> int:
    """Run one command; ``program`` is what the user typed before it (the command `inflight` has the same ones)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = make_parser(program).parse_args(arguments)
    try:
        with interruptible():
            return int(options.run(options, list(arguments)))
    except BuilderError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except Interrupted as interrupted:
        print(STOPPED, file=sys.stderr)
        return interrupted.exit_code
    except BrokenPipeError:
        return 1
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        print(f"error: {error.strerror or type(error).__name__}{place}", file=sys.stderr)
        return 1


def make_parser(program: str = PROGRAM) -> Parser:
    parser = Parser(prog=program, description="Hugging Face checkpoints into verified engines.")
    parser.add_argument("--version", action="version", version=f"build_engine {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_plan(commands)
    _add_build(commands)
    _add_compile(commands)
    _add_verify(commands)
    _add_inspect(commands)
    _add_tune(commands)
    return parser


def _add_plan(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser("plan", help="what a model needs and what a GPU gives", allow_abbrev=False)
    parser.add_argument("model", metavar="MODEL", help="directory with a config.json, or a hub name")
    parser.add_argument("--quantization", metavar="NAMES", help=f"comma-separated, default all: {', '.join(RECIPES)}")
    parser.add_argument("--kv-cache", choices=("none", "fp8", "int8"), default="none", help="default: none (16 bits)")
    parser.add_argument("--max-seq-len", type=_positive, metavar="TOKENS", help="length of a sequence (default: 2048)")
    parser.add_argument("--max-num-tokens", type=_positive, default=8192, metavar="N", help="tokens a step")
    parser.add_argument("--gpu", metavar="NAME", help=f"one of {', '.join(gpu_table())}")
    parser.add_argument("--gpu-memory", type=float, metavar="GB")
    parser.add_argument("--gpu-bandwidth", type=float, metavar="GB/S")
    parser.add_argument("--gpu-tflops", type=float, metavar="TFLOPS", help="dense rate of the arithmetic you use")
    parser.add_argument("--tensor-parallel", type=_positive, default=1, metavar="N")
    parser.add_argument("--pipeline-parallel", type=_positive, default=1, metavar="N")
    parser.add_argument("--json", action="store_true", help="the plan as JSON on standard output")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="write the decode roofline as a chart")
    parser.set_defaults(run=_run_plan)


def _run_plan(options: argparse.Namespace, arguments: list[str]) -> int:
    origin = source.resolve(options.model, need_weights=False)
    own = (options.gpu_memory, options.gpu_bandwidth, options.gpu_tflops)
    gpu = gpu_named(options.gpu) if options.gpu else None
    if any(value is not None for value in own):
        if gpu is not None or not all(value is not None and value > 0 for value in own):
            raise UserMistake("a GPU of your own takes --gpu-memory, --gpu-bandwidth and --gpu-tflops, without --gpu")
        gpu = own_gpu(*own)
    planned = plan.make_plan(
        origin.name,
        origin.config,
        recipes=plan.recipe_names(options.quantization),
        kv_cache=options.kv_cache,
        length=options.max_seq_len or min(2048, origin.config.max_position_embeddings),
        gpu=gpu,
        parallel=Parallel(options.tensor_parallel, options.pipeline_parallel),
        max_num_tokens=options.max_num_tokens,
    )
    if options.plot is not None:
        options.plot.write_text(plan.as_svg(planned), encoding="utf-8")
    print(json.dumps(plan.as_json(planned), indent=2) if options.json else plan.as_text(planned))
    return 0


def _add_build(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser("build", help="build an engine from a checkpoint", allow_abbrev=False)
    parser.add_argument(
        "model", metavar="MODEL", help="directory of a Hugging Face checkpoint, a GGUF file, or a hub name"
    )
    parser.add_argument("--target", choices=TARGETS, type=_target, required=True)
    parser.add_argument("--quantization", choices=tuple(RECIPES), default="int8", help="default: int8")
    parser.add_argument("--kv-cache", choices=KV_CACHES, default="auto", help="default: auto")
    parser.add_argument("--max-seq-len", type=_positive, metavar="TOKENS", help="default: the model's own limit")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    trt = parser.add_argument_group("TensorRT-LLM")
    trt.add_argument("--tensor-parallel", type=_positive, default=1, metavar="N")
    trt.add_argument("--pipeline-parallel", type=_positive, default=1, metavar="N")
    trt.add_argument("--max-batch-size", type=_positive, metavar="N", help="default: 256")
    trt.add_argument("--max-input-len", type=_positive, metavar="TOKENS", help="default: the sequence less one")
    trt.add_argument("--max-num-tokens", type=_positive, metavar="N", help="tokens a step (default: 8192)")
    trt.add_argument("--max-beam-width", type=_positive, metavar="N", help="default: 1")
    trt.add_argument("--speculative", choices=tuple(SPECULATIVE), default="none")
    trt.add_argument("--max-draft-len", type=_positive, default=0, metavar="TOKENS")
    trt.add_argument("--stop-after", choices=("checkpoint",), help="end before trtllm-build and say how to run it")
    trt.add_argument("--gpu", metavar="NAME", help="that will serve, to refuse what cannot be compiled for it")
    trt.add_argument(
        "--smoothquant-alpha", type=_share, metavar="A", help="0 to 1, for int8-sq (default: 0.85; openvino 0.5)"
    )
    trt.add_argument("--calibration-text", type=Path, metavar="FILE", help="default: a packaged English text")
    trt.add_argument("--calibration-tokens", type=_positive, metavar="N", help="default: 8192; openvino 4096")
    _add_device(parser)
    openvino = parser.add_argument_group("OpenVINO")
    openvino.add_argument(
        "--processor",
        choices=(processor.VNNI, processor.AVX2),
        help="that will serve, if it is another than this: vnni multiplies 8-bit numbers as such (as AMX, and i8mm on "
        "ARM), avx2 does not",
    )
    parser.add_argument("--force", action="store_true", help="replace an engine that is already there")
    parser.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        default=True,
        help=f"compare the engine with its source on {BUILD_TOKENS} tokens (default: yes)",
    )
    parser.add_argument(
        "--accept-accuracy",
        action="store_true",
        help="keep an engine that is further from its source than its recipe may be; engine.json says so",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="where finished steps are kept (default: $INFLIGHT_BUILD_CACHE or the user's cache directory)",
    )
    parser.add_argument("--no-cache", action="store_true", help="neither use nor keep finished steps")
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
        parallel=Parallel(options.tensor_parallel, options.pipeline_parallel),
        max_batch_size=options.max_batch_size,
        max_input_len=options.max_input_len,
        max_seq_len=options.max_seq_len,
        max_num_tokens=options.max_num_tokens,
        max_beam_width=options.max_beam_width,
        speculative=options.speculative,
        max_draft_len=options.max_draft_len,
        stop_after=options.stop_after,
        gpu=options.gpu,
        processor=options.processor,
        device=options.device,
        smoothquant_alpha=options.smoothquant_alpha,
        calibration_text=options.calibration_text,
        calibration_tokens=options.calibration_tokens,
        force=options.force,
        verify_tokens=BUILD_TOKENS if options.verify else 0,
        accept_accuracy=options.accept_accuracy,
        cache=None if options.no_cache else options.cache or default_directory(),
        command=_command_line(arguments),
    )
    build(asked, console)
    return 0


def _add_compile(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser("compile", help="compile a TensorRT-LLM checkpoint on a GPU host", allow_abbrev=False)
    parser.add_argument("directory", type=Path, metavar="DIR", help="what build --stop-after checkpoint wrote")
    parser.add_argument("--output", type=Path, required=True, metavar="ENGINE")
    parser.add_argument("--force", action="store_true", help="replace an engine that is already there")
    parser.add_argument("--json", action="store_true", help="progress as JSON lines")
    parser.set_defaults(run=_run_compile)


def _run_compile(options: argparse.Namespace, arguments: list[str]) -> int:
    compile_engine(
        options.directory,
        options.output,
        force=options.force,
        command=_command_line(arguments),
        console=make_console(as_json=options.json),
    )
    return 0


def _add_verify(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser("verify", help="measure an engine against its source", allow_abbrev=False)
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--reference", required=True, metavar="MODEL", help="the checkpoint it was built from")
    parser.add_argument("--tokens", type=_positive, default=DEFAULT_TOKENS, help=f"default: {DEFAULT_TOKENS}")
    parser.add_argument("--text", type=Path, metavar="FILE", help="a text of your own (default: a packaged one)")
    parser.add_argument("--record", action="store_true", help="write the figures into engine.json")
    _add_device(parser)
    parser.add_argument("--json", action="store_true", help="figures as JSON on standard output")
    parser.set_defaults(run=_run_verify)


def _run_verify(options: argparse.Namespace, arguments: list[str]) -> int:
    figures, problem = verify(
        options.directory,
        options.reference,
        tokens=options.tokens,
        text=options.text,
        record=options.record,
        device=options.device,
        console=make_console(as_json=options.json),
    )
    if options.json:
        print(json.dumps({**msgspec.to_builtins(figures), "passed": problem is None, "problem": problem}))
    else:
        print(as_text(figures))
    if problem:
        raise AccuracyFailure(problem)
    return 0


def _add_inspect(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser("inspect", help="what an engine is, and whether it runs here", allow_abbrev=False)
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--benchmark-fusion", action="store_true", help="time decoding with fusions broken (OpenVINO)")
    parser.add_argument("--json", action="store_true", help="the inspection as JSON on standard output")
    parser.set_defaults(run=_run_inspect)


def _run_inspect(options: argparse.Namespace, arguments: list[str]) -> int:
    console = make_console(as_json=options.json)
    found = inspect.inspect(options.directory, benchmark=options.benchmark_fusion, console=console)
    print(json.dumps(inspect.as_json(found), indent=2) if options.json else inspect.as_text(found))
    return 0 if found.usable else 1


def _add_tune(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser("tune", help="several recipes of one model side by side", allow_abbrev=False)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--target", choices=tuple(BY_TARGET), type=_target, required=True)
    parser.add_argument("--quantization", metavar="NAMES", help="comma-separated (default: all of the target)")
    parser.add_argument("--tokens", type=_positive, default=4096, help="tokens to compare on (default: 4096)")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="write size against KL divergence as a chart")
    parser.add_argument("--json", action="store_true", help="the trials as JSON on standard output")
    parser.set_defaults(run=_run_tune)


def _run_tune(options: argparse.Namespace, arguments: list[str]) -> int:
    names = options.quantization.split(",") if options.quantization else list(BY_TARGET[options.target])
    console = make_console(as_json=options.json)
    trials = tune.tune(
        options.model, options.target, names, tokens=options.tokens, cache=default_directory(), console=console
    )
    if options.plot is not None:
        options.plot.write_text(tune.as_svg(trials, f"{options.model} for {options.target}"), encoding="utf-8")
    print(json.dumps(tune.as_json(trials), indent=2) if options.json else tune.as_text(trials))
    return 1 if any(trial.problem for trial in trials) else 0


def _add_device(parser: Parser) -> None:
    parser.add_argument(
        "--device",
        choices=devices.CHOICES,
        default="auto",
        help="where to calibrate and compare (default: auto, a GPU that has the room)",
    )


def _command_line(arguments: list[str]) -> str:
    return shlex.join(["python", "-m", "build_engine", *arguments])


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _target(text: str) -> str:
    return ALIASES.get(text, text)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value
