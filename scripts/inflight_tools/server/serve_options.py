"""What `inflight serve` can be told."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from build_engine.arguments import Parser
from build_engine.quantization import RECIPES
from inflight_gateway import options as gateway_options
from inflight_tools.server.server import Ports
from inflight_tools.server.what import KINDS


def port(text: str) -> int:
    """A port number from the command line."""
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: it has to be a number from 1 to 65535")
    return int(text)


def port_or_none(text: str) -> int:
    """A port number from the command line, or 0 for none."""
    return 0 if text == "0" else port(text)


def parse(arguments: Sequence[str] | None, program: str | None, about: str) -> tuple[argparse.Namespace, list[str]]:
    """Our options, and after `--` those of tritonserver."""
    parser = Parser(
        prog=program,
        description=about,
        epilog="What follows -- goes to tritonserver as it is.",
    )
    ports = Ports()
    parser.add_argument("what", nargs="?", metavar="WHAT", help=f"{KINDS}; default: this checkout's model repository")
    parser.add_argument("--repository", type=Path, metavar="DIR", help="model repository, instead of WHAT")
    parser.add_argument(
        "--model",
        action="append",
        metavar="NAME",
        help="model of a repository to load, may repeat (default: llm, and where WHAT has no such model, every one); "
        "'all' loads every one",
    )
    made = parser.add_argument_group("engine or checkpoint", "what is not in a model repository yet")
    made.add_argument("--name", metavar="NAME", help="what clients call the model (default: llm)")
    made.add_argument(
        "--quantization",
        choices=tuple(RECIPES),
        metavar="Q",
        help=f"of a checkpoint that is built first: {', '.join(RECIPES)} (default: int8 on OpenVINO; what vLLM or "
        "TensorRT-LLM serves is taken as it comes)",
    )
    made.add_argument(
        "--engine",
        choices=("auto", "openvino", "vllm", "tensorrt_llm"),
        default="auto",
        help="auto: what can serve a checkpoint as it comes, if it is installed, else OpenVINO",
    )
    made.add_argument(
        "--engine-python", default="", metavar="PROGRAM", help="of an engine in an environment of its own"
    )
    parser.add_argument(
        "--host",
        default=os.environ.get("INFLIGHT_HOST", "127.0.0.1"),
        help="address to listen on (default: %(default)s)",
    )
    for name, default in (("http", ports.http), ("grpc", ports.grpc), ("metrics", ports.metrics)):
        variable = f"INFLIGHT_{name.upper()}_PORT"
        parser.add_argument(
            f"--{name}-port",
            type=port,
            default=os.environ.get(variable, str(default)),
            help=f"default: ${variable} or {default}",
        )
    parser.add_argument(
        "--health-port",
        type=port_or_none,
        default=os.environ.get("INFLIGHT_HEALTH_PORT", str(ports.health)),
        help=f"where probes and balancers ask /ready and /live; 0: nowhere (default: $INFLIGHT_HEALTH_PORT or "
        f"{ports.health})",
    )
    gateway = parser.add_argument_group("the gateway: OpenAI's API beside Triton (docs/gateway.md)")
    gateway.add_argument(
        "--gateway-port",
        type=port_or_none,
        metavar="N",
        help=f"default: $INFLIGHT_GATEWAY_PORT or {ports.gateway}",
    )
    gateway.add_argument("--no-gateway", action="store_true", help="start none; so does the port 0")
    gateway_options.add(gateway)
    parser.add_argument("--tritonserver", type=Path, metavar="PROGRAM", help="server to use instead of the one found")
    parser.add_argument(
        "--gather",
        action="store_true",
        help="keep Triton and the backend on as few processors as they need, which makes a response cheaper where one "
        "server has the machine; engines keep all",
    )
    parser.add_argument("--log", type=Path, metavar="FILE", help="write the server's log here (default: the terminal)")
    parser.add_argument("--ready-file", type=Path, metavar="FILE", help="write addresses here (JSON) once it is ready")
    parser.add_argument("--check", action="store_true", help="only check whether the ports can be listened on")
    parser.add_argument(
        "--end-with-parent",
        action="store_true",
        help="for scripts: leave the terminal's Ctrl-C to the process that started this one, and stop when it ends",
    )
    parser.add_argument("--ready-timeout", type=float, default=300.0, metavar="S", help="default: %(default)s")
    parser.add_argument(
        "--drain-notice",
        type=float,
        metavar="S",
        help="on SIGTERM, not ready and serving all the same, so that balancers notice (default: the model's "
        "drain_notice_ms)",
    )
    parser.add_argument(
        "--drain-timeout", type=float, default=30.0, metavar="S", help="for streams to finish (default: %(default)s)"
    )
    parser.add_argument(
        "--stop-timeout", type=float, default=30.0, metavar="S", help="for the server after that (default: %(default)s)"
    )
    own, passed = list(sys.argv[1:] if arguments is None else arguments), []
    if "--" in own:
        split = own.index("--")
        own, passed = own[:split], own[split + 1 :]
    options = parser.parse_args(own)
    options.gateway_asked = options.gateway_port is not None
    if options.no_gateway:
        options.gateway_port = 0
    elif options.gateway_port is None:
        options.gateway_port = _gateway_port(parser, os.environ.get("INFLIGHT_GATEWAY_PORT", str(ports.gateway)))
    given = gateway_options.words(options)
    if given and not options.gateway_port:
        why = "--gateway-port 0" if options.gateway_asked else "INFLIGHT_GATEWAY_PORT=0"
        parser.error(
            f"{given[0]} is for the gateway, and none is started here: leave out "
            f"{'--no-gateway' if options.no_gateway else why}, or start `inflight gateway` with it"
        )
    return options, passed


def _gateway_port(parser: Parser, text: str) -> int:
    try:
        return port_or_none(text)
    except argparse.ArgumentTypeError as error:
        parser.error(f"INFLIGHT_GATEWAY_PORT: {error}")
