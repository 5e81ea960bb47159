#!/usr/bin/env python3
"""Measures Inflight against its peers: the same prompts at the same times, in turns, by one client, on one machine.

Every peer is started, then stopped with SIGSTOP while another one is measured. Levels of load are closed loops with so
many requests in flight, and Poisson arrivals; answers are greedy and have all the same length. A run in which other
programs used the CPU is repeated. A peer that is not installed is left out, with the command that installs it.
Exit status: 0 done, 1 an error, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.peer_client import Question
from bench.peer_figures import Ratio, Record, Row, compact, figures, ratios, rows
from bench.peer_inflight import InflightPeer, built_engine
from bench.peer_llamacpp import LlamaCppPeer
from bench.peer_servers import Peer
from bench.peer_transformers import TransformersPeer
from bench.peer_vllm import KV_GIB, VllmPeer
from bench.quiet import CpuTime, wait_until_quiet
from build_engine import svg
from inflight.request.tokenizer import TextTokenizer
from inflight_tools.common.layout import CACHE, MODELS, REPOSITORY
from inflight_tools.common.report import Failure, Progress, run_main
from inflight_tools.load.lengths import parse_lengths
from inflight_tools.load.perf_analyzer import Load
from inflight_tools.load.prompts import prompts

RESULTS = REPOSITORY / "docs" / "benchmarks" / "peers"
INT8, INT8_SQ, BITS16, TUNED = "inflight int8", "inflight int8-sq", "inflight 16-bit", "inflight int8 tuned"
ON_VLLM = "inflight on vllm"
_LEAST_REQUESTS = 6
_WARM_TOKENS = 8


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Our options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    option = parser.add_argument
    option("--checkpoint", type=Path, default=MODELS / "SmolLM2-135M-Instruct", help="a Hugging Face checkpoint")
    option("--without", action="append", default=[], metavar="PEER", help="leave a peer out (part of its name)")
    option("--tuned", type=json.loads, metavar="JSON", help="one more Inflight, int8 with these engine_options")
    option("--vllm-python", type=Path, default=CACHE / "vllm" / "bin" / "python", help="of an environment with vLLM")
    option("--vllm-preload", type=Path, action="append", metavar="FILE", help="libtcmalloc, libiomp5; repeatable")
    option("--llama-server", type=Path, default=CACHE / "llama.cpp" / "llama-server", help="llama.cpp's server")
    option("--gguf", type=Path, action="append", metavar="FILE", help="weights for it, named …-q8_0.gguf; repeatable")
    option("--concurrency", type=_numbers, default=[1, 4, 16, 64], metavar="N,N", help="default: 1,4,16,64")
    option("--rate", type=_numbers, default=[], metavar="R,R", help="Poisson arrivals per second as well")
    option("--seconds", type=float, default=15.0, metavar="S", help="of arrivals at each rate (default: %(default)s)")
    option("--repeats", type=int, default=3, metavar="N", help="default: %(default)s")
    option(
        "--waves", type=int, default=3, metavar="N", help="requests per run: N × concurrency, at least 6 (default: 3)"
    )
    option("--prompt-tokens", default="uniform:16-48", metavar="D", help="default: %(default)s")
    option("--max-tokens", type=int, default=64, metavar="N", help="of each answer (default: %(default)s)")
    option("--quiet", type=float, default=0.05, metavar="X", help="repeat a run in which others used more (0.05)")
    option("--retries", type=int, default=2, metavar="N", help="of such a run (default: %(default)s)")
    option("--output", type=Path, default=RESULTS / "peers.json", help="default: docs/benchmarks/peers/peers.json")
    option("--add", action="store_true", help="keep the quiet records that are in --output, and add to them")
    option("--report", action="store_true", help="measure nothing; print the tables of what is in --output")
    return parser.parse_args(arguments)


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError("must be numbers from 1 on, such as 1,4,16")
    return numbers


def vllm_behind_inflight(python: Path, checkpoint: Path, most: int) -> Peer:
    """Our backend with vLLM as its engine, with the settings that its own server gets. Raises `Failure` without it."""
    if not python.exists():
        raise Failure("vLLM is not installed: scripts/install_vllm.sh")
    options = {"dtype": "bfloat16", "max_seq_len": 8192, "kv_cache_gb": KV_GIB}
    parameters = {"engine": "vllm", "engine_python": str(python), "engine_options": options, "max_running": str(most)}
    return InflightPeer(ON_VLLM, "bf16", checkpoint, parameters)


def installed(options: argparse.Namespace, say: Callable[[str], None]) -> list[Peer]:
    """The peers of this machine, less those that were left out."""
    most = max([*options.concurrency, 16])
    checkpoint, gguf = options.checkpoint.absolute(), options.gguf or [CACHE / "llama.cpp" / "model-q8_0.gguf"]
    makers: dict[str, Callable[[], Peer]] = {
        INT8: lambda: InflightPeer(INT8, "int8", built_engine(checkpoint, "int8")),
        INT8_SQ: lambda: InflightPeer(INT8_SQ, "int8-sq", built_engine(checkpoint, "int8-sq")),
        BITS16: lambda: InflightPeer(BITS16, "16-bit", built_engine(checkpoint, "none")),
        "vllm": lambda: VllmPeer(options.vllm_python.absolute(), checkpoint, most, options.vllm_preload or ()),
        ON_VLLM: lambda: vllm_behind_inflight(options.vllm_python.absolute(), checkpoint, most),
        "transformers": lambda: TransformersPeer(checkpoint),
    }
    if options.tuned:
        tuned = {"engine_options": options.tuned}
        makers[TUNED] = lambda: InflightPeer(TUNED, "int8", built_engine(checkpoint, "int8"), tuned)
    for file in gguf:
        makers[f"llama.cpp {file.stem}"] = lambda file=file: LlamaCppPeer(options.llama_server, file, most)  # type: ignore[misc]
    found = []
    for name, make in makers.items():
        if any(part in name for part in options.without):
            continue
        try:
            found.append(make())
        except Failure as failure:
            say(f"left out: {failure}")
    return found


class Turns:
    """Every peer at every level, `repeats` times; who begins changes from repeat to repeat."""

    def __init__(
        self, options: argparse.Namespace, peers: Sequence[Peer], run: int, say: Callable[[str], None]
    ) -> None:
        """All peers are started and paused."""
        self._options = options
        self._peers = list(peers)
        self._run = run
        self._say = say
        lengths = parse_lengths(options.prompt_tokens, 0)
        self._questions = questions(built_engine(options.checkpoint, "int8"), lengths, options.max_tokens, run)

    def take(self) -> Iterator[Record]:
        """The records, as they come."""
        loads = [Load(concurrency=number) for number in self._options.concurrency]
        loads += [Load(rate=float(rate)) for rate in self._options.rate]
        for repeat, load in itertools.product(range(1, self._options.repeats + 1), loads):
            wanted = [peer for peer in self._peers if peer.most_in_flight >= (load.concurrency or 2)]
            asked = self._supply(load)
            for peer in wanted if repeat % 2 else wanted[::-1]:
                yield self._quiet_run(peer, load, repeat, asked)

    def _supply(self, load: Load) -> list[Question]:
        options = self._options
        count = options.seconds * load.rate if load.rate else options.waves * (load.concurrency or 1)
        return list(itertools.islice(self._questions, max(int(count), _LEAST_REQUESTS)))

    def _quiet_run(self, peer: Peer, load: Load, repeat: int, asked: list[Question]) -> Record:
        record = self._one(peer, load, repeat, asked)
        for _ in range(self._options.retries):
            if record.cpu_share_of_others <= self._options.quiet:
                break
            self._say(f"others used {record.cpu_share_of_others:.0%} of the CPU: once more")
            wait_until_quiet(self._options.quiet, 30.0)
            again = self._one(peer, load, repeat, self._supply(load))
            record = min(record, again, key=lambda each: each.cpu_share_of_others)
        return record

    def _one(self, peer: Peer, load: Load, repeat: int, asked: list[Question]) -> Record:
        peer.resume()
        try:
            warm = [Question(each.text, _WARM_TOKENS) for each in self._supply(Load(concurrency=1))[:2]]
            peer.drive(warm, Load(concurrency=1), "warm")
            before, theirs, ours = CpuTime.now(), peer.cpu_s(), time.process_time()
            requests = peer.drive(asked, load, f"{self._run} {repeat} {load}")
            theirs, ours = peer.cpu_s() - theirs, time.process_time() - ours
            others = CpuTime.now().share_of_others(before, theirs + ours)
            memory = peer.memory()
        finally:
            peer.pause()
        tokens = sum(request.tokens for request in requests)
        record = Record(
            run=self._run,
            repeat=repeat,
            load=str(load),
            peer=peer.name,
            figures=figures(requests, load),
            cpu_us_per_token={"peer": round(1e6 * theirs / tokens, 1), "client": round(1e6 * ours / tokens, 1)},
            memory=memory,
            cpu_share_of_others=round(others, 4),
            requests=compact(requests),
        )
        self._say(
            f"{load}, repeat {repeat}, {peer.name}: {record.figures['tokens_per_s']:.0f} tokens/s, TTFT "
            f"{record.figures['ttft_p50_ms']:.0f} ms, others {others:.1%}"
        )
        return record


def questions(tokenizer_of: Path, lengths: Any, max_tokens: int, seed: int) -> Iterator[Question]:
    """Endless questions, none like another, each cut to its length in tokens."""
    tokenizer = TextTokenizer(tokenizer_of)
    wanted = lengths.draws(f"peers {seed}")
    for text in prompts(f"peers {seed}", 2 * lengths.high):
        words, most = text.split(" "), next(wanted)
        while (found := len(tokenizer.encode(" ".join(words), add_special_tokens=True))) > most and len(words) > 1:
            del words[max(1, min(len(words) * most // found, len(words) - 1)) :]
        yield Question(" ".join(words), max_tokens)


def pairings(names: Sequence[str]) -> list[tuple[str, str]]:
    """Who is compared with whom: our int8 with everybody, our 16 bits with everybody who has 16 bits."""
    ours = [(INT8, name) for name in names if name not in (INT8, INT8_SQ)]
    ours += [(INT8_SQ, name) for name in names if INT8_SQ in names and name != INT8_SQ]
    ours += [(ON_VLLM, "vllm")] if {ON_VLLM, "vllm"} <= set(names) else []
    ours += [(TUNED, name) for name in names if TUNED in names and name != TUNED]
    return ours + [(BITS16, name) for name in names if name.endswith("bf16") or name in ("vllm", "transformers")]


def charts(made: Sequence[Row]) -> dict[str, str]:
    """SVG by file name: tokens/s and TTFT over the requests in flight."""
    found = {}
    for name, title in (("tokens_per_s", "tokens/s"), ("ttft_p50_ms", "time to first token, p50, ms")):
        series = []
        for peer in dict.fromkeys(row.peer for row in made):
            points = [
                (float(row.load.split()[1]), row.figures[name])
                for row in made
                if row.peer == peer and row.load.startswith("concurrency")
            ]
            if points:
                series.append(svg.Series(peer, sorted(points)))
        if series:
            x, y = svg.Axis("requests in flight", logarithmic=True), svg.Axis(title, logarithmic=True)
            found[f"{name}.svg"] = svg.chart(f"{title} against requests in flight", x, y, series)
    return found


def tables(made: Sequence[Row], compared: Sequence[Ratio]) -> str:
    """Figures and ratios as Markdown."""
    lines = [
        "| load | peer | tokens/s (least–most) | TTFT p50 / p99, ms | TPOT p50, ms | ITL p99, ms | latency p50, ms "
        "| others ≤ |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in made:
        (few, lots), of = row.tokens_per_s_least_most, row.figures
        lines.append(
            f"| {row.load} | {row.peer} | {of['tokens_per_s']:.0f} ({few:.0f}–{lots:.0f}) | {of['ttft_p50_ms']:.0f} / "
            f"{of['ttft_p99_ms']:.0f} | {of['tpot_p50_ms']:.1f} | {of['itl_p99_ms']:.0f} | {of['latency_p50_ms']:.0f} "
            f"| {row.cpu_share_of_others:.0%} |"
        )
    lines += ["", "| load | of | over | tokens/s (least–most) | TTFT p50 | latency p50 |", "|---|---|---|---|---|---|"]
    for each in compared:
        lines.append(
            f"| {each.load} | {each.base} | {each.peer} | {each.tokens_per_s:.2f} ({min(each.each):.2f}–"
            f"{max(each.each):.2f}) | {each.ttft_p50:.2f} | {each.latency_p50:.2f} |"
        )
    return "\n".join(lines)


def write(options: argparse.Namespace, peers: Sequence[Peer], records: Sequence[Record], earlier: Any) -> str:
    """The JSON file and the charts beside it; returns the tables."""
    made = rows(records)
    compared = ratios(records, pairings([*dict.fromkeys(record.peer for record in records)]))
    kept = ("concurrency", "rate", "seconds", "repeats", "waves", "prompt_tokens", "max_tokens", "quiet", "retries")
    run = {
        "settings": {name: getattr(options, name) for name in kept},
        "peers": {peer.name: peer.describe() for peer in peers},
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    content = {
        "what": "the same prompts at the same times, in turns, by one asyncio client on the same machine",
        "command": "python scripts/bench/peers.py",
        "model": options.checkpoint.name,
        "machine": {"cpus": os.cpu_count(), "architecture": platform.machine(), "system": platform.system()},
        "runs": [*earlier.get("runs", []), run],
        "rows": [row.to_json() for row in made],
        "ratios": [each.to_json() for each in compared],
        "records": [record.to_json() for record in records],
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(
        json.dumps(content, separators=(",", ":")).replace('{"run"', '\n{"run"') + "\n", encoding="utf-8"
    )
    for name, drawing in charts(made).items():
        (options.output.parent / name).write_text(drawing, encoding="utf-8")
    return tables(made, compared)


def main(arguments: Sequence[str] | None = None) -> int:
    """Start the peers, take turns, report."""
    options = parse(arguments)
    earlier: Any = {}
    if (options.add or options.report) and options.output.exists():
        earlier = json.loads(options.output.read_text(encoding="utf-8"))
    records = [Record(**each) for each in earlier.get("records", [])]
    records = [record for record in records if record.cpu_share_of_others <= options.quiet]
    if options.report:
        print(tables(rows(records), ratios(records, pairings([*dict.fromkeys(record.peer for record in records)]))))
        return 0
    progress = Progress(every_s=0.0)
    with ExitStack() as stack:
        peers = installed(options, progress.show)
        for peer in peers:
            progress.show(f"starting {peer.name}")
            peer.start()
            stack.callback(peer.stop)
            peer.pause()
        run = 1 + max((record.run for record in records), default=0)
        for record in Turns(options, peers, run, progress.show).take():
            records.append(record)
            write(options, peers, records, earlier)
        progress.clear()
        print(write(options, peers, records, earlier))
    return 0


if __name__ == "__main__":
    run_main(main)
