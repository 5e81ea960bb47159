#!/usr/bin/env python3
"""Measures Inflight against its peers: the same prompts at the same times, in turns, by one client, on one machine.

Every peer is started, then stopped with SIGSTOP while another one is measured. Levels of load are closed loops with so
many requests in flight, and Poisson arrivals; answers are greedy and have all the same length. A run in which other
programs used the CPU is repeated. A peer that is not installed is left out, with the command that installs it.

Every run is written to --output at once, and rounds (all peers at one level) that are whole there are not taken again:
the same command goes on where it was broken off, and other levels, lengths and engines come beside what is there.
Exit status: 0 done, 1 an error, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.peer_arms import installed, pairings
from bench.peer_client import Question
from bench.peer_figures import Record, compact, figures, ratios, rows
from bench.peer_plan import Round, rounds, takes_part, unfinished, workload
from bench.peer_report import charts, tables
from bench.peer_servers import Peer
from bench.peer_vllm import BF16
from bench.quiet import CpuTime, holding, wait_until_quiet
from bench.results import machine
from build_engine.arguments import Parser
from inflight.request.tokenizer import TextTokenizer
from inflight_tools.common import option_types as types
from inflight_tools.common.layout import CACHE, MODELS, REPOSITORY
from inflight_tools.common.report import Failure, Progress, run_main
from inflight_tools.load.lengths import parse_lengths
from inflight_tools.load.perf_analyzer import Load
from inflight_tools.load.prompts import prompts

RESULTS = REPOSITORY / "docs" / "benchmarks" / "peers"
_WARM_TOKENS = 8
_WARM_WORDS = 32
_LOCK_S = 3600.0


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Our options."""
    parser = Parser(description=(__doc__ or "").split("\n", 1)[0])
    option = parser.add_argument
    option("--checkpoint", type=Path, default=MODELS / "SmolLM2-135M-Instruct", help="a Hugging Face checkpoint")
    option(
        "--engine",
        type=_named,
        action="append",
        metavar="NAME=DIR",
        help="an engine directory of ours, such as int8=DIR, instead of building three of the checkpoint; repeatable",
    )
    option(
        "--vllm",
        type=_named,
        action="append",
        metavar="NAME=DIR",
        help="a quantized checkpoint for vLLM beside the plain one; repeatable",
    )
    option("--without", action="append", default=[], metavar="PEER", help="leave a peer out (part of its name)")
    option("--only", action="append", metavar="NAME", help="measure this peer, by its whole name; repeatable")
    option("--tuned", type=types.json_object, metavar="JSON", help="one more Inflight, int8 with these engine_options")
    option("--vllm-python", type=Path, default=CACHE / "vllm" / "bin" / "python", help="of an environment with vLLM")
    option("--vllm-dtype", choices=(BF16, "float32"), default=BF16, help="what vLLM computes in (default: %(default)s)")
    option("--vllm-preload", type=Path, action="append", metavar="FILE", help="libtcmalloc, libiomp5; repeatable")
    option("--llama-server", type=Path, default=CACHE / "llama.cpp" / "llama-server", help="llama.cpp's server")
    option("--gguf", type=Path, action="append", metavar="FILE", help="weights for it, named …-q8_0.gguf; repeatable")
    option("--concurrency", type=_levels, default=[1, 4, 16, 64], metavar="N,N", help="default: 1,4,16,64; or none")
    option("--rate", type=types.numbers, default=[], metavar="R,R", help="Poisson arrivals per second as well")
    option(
        "--seconds",
        type=types.positive,
        default=15.0,
        metavar="S",
        help="of arrivals at each rate (default: %(default)s)",
    )
    option("--repeats", type=types.count, default=3, metavar="N", help="default: %(default)s")
    option("--waves", type=types.count, default=3, metavar="N", help="requests per run: N × concurrency (default: 3)")
    option("--least", type=types.count, default=6, metavar="N", help="requests per run at the least (default: 6)")
    option(
        "--most",
        type=types.count,
        metavar="N",
        help="sequences that peers are started for (default: as the plan needs)",
    )
    option(
        "--prompt-tokens",
        type=types.accepted_by(lambda text: parse_lengths(text, 1)),
        default="uniform:16-48",
        metavar="D",
        help="default: %(default)s",
    )
    option("--max-tokens", type=types.count, default=64, metavar="N", help="of each answer (default: %(default)s)")
    option("--quiet", type=types.share, default=0.05, metavar="X", help="repeat a run in which others used more (0.05)")
    option("--retries", type=types.count_or_none, default=2, metavar="N", help="of such a run (default: %(default)s)")
    option("--lock", type=Path, action="append", default=[], metavar="FILE", help="hold it during a round; repeatable")
    option(
        "--stop-after",
        type=types.not_negative,
        metavar="S",
        help="begin no round later than this; go on with the same command",
    )
    option(
        "--output",
        type=types.output_file,
        default=RESULTS / "peers.json",
        help="default: docs/benchmarks/peers/peers.json",
    )
    option("--restart", action="store_true", help="forget what is in --output instead of going on from it")
    option("--report", action="store_true", help="measure nothing; print the tables of what is in --output")
    return parser.parse_args(arguments)


def _levels(text: str) -> list[int]:
    return [] if text == "none" else types.counts(text)


def _named(text: str) -> tuple[str, Path]:
    name, _, folder = text.partition("=")
    if not name or not Path(folder).is_dir() or not folder:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=DIR with a folder that is there")
    return name, Path(folder)


class Turns:
    """Every peer in every round; who begins changes from repeat to repeat."""

    def __init__(
        self, options: argparse.Namespace, peers: Sequence[Peer], run: int, say: Callable[[str], None]
    ) -> None:
        """All peers are started and paused."""
        self._options = options
        self._peers = list(peers)
        self._run = run
        self._say = say
        self._work = workload(options.prompt_tokens, options.max_tokens)
        lengths = parse_lengths(options.prompt_tokens, 0)
        self._questions = questions(options.checkpoint, lengths, options.max_tokens, run)

    def take(self, each: Round) -> Iterator[Record]:
        """The records of one round, as they come."""
        wanted = [peer for peer in self._peers if takes_part(peer.most_in_flight, each.load)]
        asked = self._supply(each.load)
        for peer in wanted if each.repeat % 2 else wanted[::-1]:
            yield self._quiet_run(peer, each.load, each.repeat, asked)

    def _supply(self, load: Load) -> list[Question]:
        options = self._options
        count = options.seconds * load.rate if load.rate else options.waves * (load.concurrency or 1)
        return list(itertools.islice(self._questions, max(int(count), options.least)))

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
            warm = " ".join(next(self._questions).text.split(" ")[:_WARM_WORDS])
            peer.drive([Question(warm, _WARM_TOKENS)], Load(concurrency=1), "warm")
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
            workload=self._work,
        )
        self._say(
            f"{load}, repeat {repeat}, {peer.name}: {record.figures['tokens_per_s']:.1f} tokens/s, TTFT "
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


def write(options: argparse.Namespace, peers: Sequence[Peer], records: Sequence[Record], earlier: Any) -> str:
    """The JSON file and the charts beside it; returns the tables."""
    made = rows(records)
    compared = ratios(records, pairings([*dict.fromkeys(record.peer for record in records)]))
    kept = ["concurrency", "rate", "seconds", "repeats", "waves", "least", "most"]
    kept += ["prompt_tokens", "max_tokens", "quiet", "retries"]
    run = {
        "settings": {name: getattr(options, name) for name in kept},
        "peers": {peer.name: peer.describe() for peer in peers},
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    content = {
        "what": "the same prompts at the same times, in turns, by one asyncio client on the same machine",
        "command": "python scripts/bench/peers.py",
        "model": options.checkpoint.name,
        "machine": earlier.get("machine") or machine(),
        "runs": [*earlier.get("runs", []), run],
        "rows": [row.to_json() for row in made],
        "ratios": [each.to_json() for each in compared],
        "records": [record.to_json() for record in records],
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, separators=(",", ":")).replace('{"run"', '\n{"run"') + "\n"
    beside = options.output.with_suffix(".part")  # a run that is killed while it writes leaves the file as it was
    beside.write_text(text, encoding="utf-8")
    beside.replace(options.output)
    prefix = "" if options.output.stem == RESULTS.name else f"{options.output.stem}_"
    for name, drawing in charts(made).items():
        (options.output.parent / f"{prefix}{name}").write_text(drawing, encoding="utf-8")
    return tables(made, compared)


def read(options: argparse.Namespace) -> Any:
    """What is in --output; nothing where there is no such file, or with --restart. Raises `Failure`."""
    if options.restart or not options.output.exists():
        return {}
    try:
        found = json.loads(options.output.read_text(encoding="utf-8"))
        [Record(**each) for each in found["records"]]
    except (ValueError, KeyError, TypeError) as error:
        raise Failure(f"--output: {options.output} is not a file of this benchmark ({error!r}); --restart.") from None
    if not options.report and "instructions" in found["machine"] and found["machine"] != machine():
        raise Failure(f"--output: {options.output} was measured on another machine; name another file, or --restart.")
    if found["model"] != options.checkpoint.name:
        raise Failure(f"--output: {options.output} is of {found['model']}; name another file, or --restart.")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Start the peers, take turns, report."""
    options = parse(arguments)
    earlier = read(options)
    records = [Record(**each) for each in earlier.get("records", [])]
    records = [record for record in records if record.cpu_share_of_others <= options.quiet]
    if options.report:
        print(tables(rows(records), ratios(records, pairings([*dict.fromkeys(record.peer for record in records)]))))
        return 0
    if not (options.checkpoint / "tokenizer.json").is_file():
        raise Failure(f"there is no checkpoint at {options.checkpoint}: run scripts/fetch_model.py, or name another.")
    begin = time.monotonic()
    progress = Progress(every_s=0.0)
    work = workload(options.prompt_tokens, options.max_tokens)
    plan = rounds(work, options.concurrency, options.rate, options.repeats)
    request_tokens = parse_lengths(options.prompt_tokens, 0).high + options.max_tokens
    with ExitStack() as stack:
        peers = installed(options, request_tokens, progress.show)
        if not peers:
            raise Failure("no peer is left to be measured: see above, and leave fewer out with --without.")
        left = unfinished(plan, records, {peer.name: peer.most_in_flight for peer in peers})
        if not left:
            progress.show("nothing is left to measure")
        for peer in peers if left else ():
            with holding(options.lock, _LOCK_S):
                progress.show(f"starting {peer.name}")
                stack.callback(peer.stop)
                peer.start()
                peer.pause()
        run = 1 + max((record.run for record in records), default=0)
        turns = Turns(options, peers, run, progress.show)
        for number, each in enumerate(left):
            if options.stop_after is not None and time.monotonic() - begin > options.stop_after:
                progress.show(f"{len(left) - number} rounds are left: the same command goes on with them")
                break
            progress.show(each.name())
            with holding(options.lock, _LOCK_S):
                for record in turns.take(each):
                    records.append(record)
                    write(options, peers, records, earlier)
        progress.clear()
        print(write(options, peers, records, earlier) if left else tables(rows(records), []))
    return 0


if __name__ == "__main__":
    run_main(main)
