#!/usr/bin/env python3
"""Measures the gateway with vLLM behind it against vLLM's own server: the same chats, streamed over HTTP, in turns.

Both compute the same checkpoint with the same vLLM and settings, so what differs is what stands around the engine. One
side is stopped (SIGSTOP) while the other is measured. CPU of the HTTP side: of vLLM's every process but its engine's
core; of ours the gateway alone, and with Triton and the model's process. Exit status: 0 done, 1 an error.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.arms import cpu_seconds
from bench.gateway import turn
from bench.gateway_cpu import gateway
from bench.peer_arms import vllm_behind_inflight
from bench.peer_inflight import InflightPeer
from bench.peer_servers import Peer
from bench.peer_vllm import VllmPeer
from bench.results import write_results
from build_engine.arguments import Parser
from inflight_tools.common import option_types as types
from inflight_tools.common.layout import CACHE, MODELS, REPOSITORY
from inflight_tools.common.report import run_main
from inflight_tools.server.processes import command_line

VLLM_PYTHON = CACHE / "vllm" / "bin" / "python"
CHECKPOINT = MODELS / "SmolLM2-135M-Instruct"
MOST = 64


class VllmServer(VllmPeer):
    """vLLM's own server, whose model has our name as well."""

    def command(self) -> list[str]:
        """See `ProcessPeer`."""
        words = super().command()
        place = words.index("--served-model-name") + 2
        return [*words[:place], "llm", *words[place:]]

    def http_side(self) -> list[int]:
        """Every process but the engine's core and what it started."""
        return [pid for pid in self._pids() if not " ".join(command_line(pid)).startswith("VLLM::")]


def around_the_engine(peer: InflightPeer) -> list[int]:
    """Triton and the model's process."""

    def computes(words: list[str]) -> bool:
        return "inflight.engine_worker" in words or " ".join(words).startswith("VLLM::")

    return [pid for pid in peer.server.processes() if not computes(command_line(pid))]


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = Parser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--streams", type=types.counts, default="1,8", metavar="N,N", help="at once (%(default)s)")
    parser.add_argument("--requests", type=types.count, default=2, help="of each stream (%(default)s)")
    parser.add_argument("--tokens", type=types.count, default=64, help="of each answer (%(default)s)")
    parser.add_argument("--repeats", type=types.count, default=3, help="in turns (%(default)s)")
    parser.add_argument("--vllm-python", type=Path, default=VLLM_PYTHON, metavar="PROGRAM", help="that has vLLM")
    parser.add_argument("--checkpoint", type=types.checkpoint, default=str(CHECKPOINT), metavar="DIR")
    parser.add_argument("--output", type=types.output_file, metavar="FILE", help="every figure, as JSON")
    options = parser.parse_args(arguments)
    python = options.vllm_python.absolute()
    theirs = VllmServer(python, options.checkpoint.absolute(), MOST)
    ours = vllm_behind_inflight(python, options.checkpoint.absolute(), MOST)
    assert isinstance(ours, InflightPeer)
    figures: dict[str, dict[str, list[float]]] = {}
    with contextlib.ExitStack() as stack:
        for peer in (ours, theirs):
            peer.start()
            stack.callback(peer.stop)
            if peer is ours:
                pid, port = stack.enter_context(gateway(ours.server.grpc_url, REPOSITORY / "gateway"))
            peer.pause()
        engine_less = around_the_engine(ours)
        print("| at once | side | tokens/s | first token p50, ms | µs a token: gateway | HTTP side |")
        print("|---|---|---|---|---|---|", flush=True)
        for streams in options.streams:
            tokens = streams * options.requests * options.tokens

            def measured(
                peer: Peer, port: int, run: str, pids: Callable[[], list[int]], streams: int = streams
            ) -> tuple[float, float, float]:
                peer.resume()
                before = sum(map(cpu_seconds, pids()))
                rate, first = turn("http", str(port), run, streams, options)
                used = sum(map(cpu_seconds, pids())) - before
                peer.pause()
                return rate, first, used

            found: dict[str, list[float]] = {}
            for repeat in range(-1, options.repeats):  # the first one warms
                for side in ("ours", "theirs")[:: 1 if repeat % 2 else -1]:
                    run = f"{side}{streams}.{repeat}"
                    if side == "ours":
                        alone = cpu_seconds(pid)
                        rate, first, used = measured(ours, port, run, lambda: engine_less)
                        alone = cpu_seconds(pid) - alone
                        used += alone
                    else:
                        rate, first, used = measured(theirs, theirs.port, run, theirs.http_side)
                        alone = used
                    if repeat < 0:
                        continue
                    told = {"tokens/s": rate, "TTFT p50, ms": first}
                    told |= {"µs a token, gateway": 1e6 * alone / tokens, "µs a token, HTTP side": 1e6 * used / tokens}
                    for name, value in told.items():
                        found.setdefault(f"{side} {name}", []).append(value)
            figures[str(streams)] = found
            for side, name in (("ours", "Inflight's gateway"), ("theirs", "vLLM's own")):
                cells = [
                    f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"
                    for key, values in found.items()
                    if key.startswith(side)
                ]
                print(f"| {streams} | {name} | {' | '.join(cells)} |", flush=True)
        for peer in (ours, theirs):
            peer.resume()
        about = {"inflight": ours.describe(), "vllm": theirs.describe()}
    if options.output:
        what = "chats streamed over HTTP: the gateway before Triton with vLLM, and vLLM's own server, in turns"
        write_results(options.output, what, "scripts/bench/gateway_vllm.py", options, sides=about, figures=figures)
    return 0


if __name__ == "__main__":
    run_main(main)
