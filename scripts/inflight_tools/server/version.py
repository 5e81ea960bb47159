"""`inflight version`: what is installed here, as far as it decides what can be served and built."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from build_engine.arguments import Parser
from inflight import __version__, manifest
from inflight_tools.common.layout import IS_CHECKOUT, REPOSITORY
from inflight_tools.common.report import Failure
from inflight_tools.server.find import find_triton

# Name shown → package; how to get what is missing.
ENGINES = {"OpenVINO GenAI": "openvino-genai", "TensorRT-LLM": "tensorrt-llm", "vLLM": "vllm"}
PARTS = {
    'serve (pip install "inflight[serve]")': ("openvino-genai", "tokenizers", "jinja2", "numpy"),
    'client (pip install "inflight[client]")': ("tritonclient", "grpcio"),
    'build (pip install "inflight[build]")': ("torch", "transformers", "nncf", "optimum-intel"),
}


def facts() -> dict[str, str | None]:
    """Name → version or place; None for what is not here."""
    try:
        server: str | None = str(find_triton().program)
    except Failure:
        server = None
    found: dict[str, str | None] = {
        "inflight": __version__,
        "from": str(REPOSITORY if IS_CHECKOUT else Path(__file__).resolve().parents[1]),
        "python": f"{platform.python_version()} ({sys.executable})",
        "tritonserver": server,
    }
    return found | {name: manifest.installed_version(package) for name, package in ENGINES.items()}


def missing_parts() -> dict[str, list[str]]:
    """Extra → its packages that are not installed, of those that tell whether it is there."""
    lacking = {
        part: [package for package in packages if manifest.installed_version(package) is None]
        for part, packages in PARTS.items()
    }
    return {part: packages for part, packages in lacking.items() if packages}


def main(arguments: Sequence[str], program: str) -> int:
    """Print what is here."""
    parser = Parser(prog=program, description="Versions of Inflight, of the server and of the engines found here.")
    parser.add_argument("--json", action="store_true", help="as JSON")
    options = parser.parse_args(arguments)
    found = facts()
    if options.json:
        print(json.dumps({**found, "not_installed": missing_parts()}))
        return 0
    for name, value in found.items():
        print(f"{name:<16}{value or 'not found here'}")
    for part, packages in missing_parts().items():
        print(f"extra {part}: not installed ({', '.join(packages)})")
    return 0
