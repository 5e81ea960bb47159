#!/usr/bin/env python3
"""Paged against contiguous KV cache: memory reserved and wasted under the committed workloads.

The simulated engine's block accounting, in virtual time, at a rate that keeps the batch about three quarters full:
blocks in use and blocks reserved for the worst case (prompt plus the max_tokens asked for), weighted by how long each
step took, after a quarter of the trace and until its last arrival.
Beside it the textbook formula, batch × length × layers × heads × head size × 2 × bytes, which is what one contiguous
cache of `batch` slots of the longest length takes. Writes docs/benchmarks/kv/kv_memory.json and kv_memory.md. Exit
status: 0 done, 1 an error.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench import step_costs
from bench.virtual import Moment, Policy, Replica, poisson
from build_engine.arguments import Parser
from build_engine.planning import model_size
from build_engine.planning.gpus import gpu_named
from inflight_tools.common import option_types as types
from inflight_tools.common.layout import REPOSITORY
from inflight_tools.common.report import run_main
from inflight_tools.load.lengths import Lengths, parse_lengths

WORKLOADS = REPOSITORY / "docs" / "benchmarks" / "batching" / "workloads.json"
FOLDER = REPOSITORY / "docs" / "benchmarks" / "kv"
MODEL, GPU, QUANTIZATION = "llama-3.1-8b", "H200", "none"
BATCH, BUSY, REQUESTS, MIB = 64, 48, 1536, 2**20


def mean(moments: Sequence[Moment], figure: str) -> float:
    """Of a figure over time."""
    values: list[float] = [getattr(each, figure) * each.seconds for each in moments]
    return sum(values) / sum(each.seconds for each in moments)


def tokens_held(lengths: tuple[Lengths, Lengths]) -> int:
    """The longest sequence that a contiguous slot has to provide for."""
    return lengths[0].high + lengths[1].high


def measure(replica: step_costs.Replica, load: dict[str, str], seed: object, spare: int) -> dict[str, Any]:
    """One model under one workload; `spare` tokens are asked for beyond each answer. Bytes are over the whole batch."""
    config, bits = replica.config, replica.kv_bits
    options = msgspec.structs.replace(step_costs.options_for(replica, step_costs.Efficiency()), max_running=BATCH)
    lengths = (parse_lengths(load["prompt"], 1), parse_lengths(load["answer"], 1))
    how = Policy(batch=BATCH, spare_tokens=spare)
    latency = lengths[1].mean * 0.01
    for _ in range(4):  # Little's law: rate × latency requests are there at once, and the latency grows with them
        trace = poisson(BUSY / latency, *lengths, REQUESTS, f"{seed} {load['name']}")
        outcome = Replica(options, how).run(trace, watch=True)
        latency = statistics.fmean(each.last - each.first for each in outcome.served)
    moments = [each for each in outcome.moments if trace[-1].at / 4 < each.at <= trace[-1].at]
    per_token = model_size.kv_bytes_per_token(config, bits)
    block = per_token * options.block_size
    running = mean(moments, "running")
    used, reserved = mean(moments, "used") * block, mean(moments, "reserved") * block
    written = mean(moments, "tokens") * per_token
    longest = tokens_held(lengths)
    per_head = BATCH * longest * config.num_layers * config.head_dim * 2 * bits // 8
    return {
        "model": replica.model,
        "workload": load,
        "spare_tokens": spare,
        "batch": BATCH,
        "running": running,
        "kv_bytes_per_token": per_token,
        "longest": longest,
        "textbook_bytes": per_head * config.num_kv_heads,
        "textbook_all_heads_bytes": per_head * config.num_heads,
        "contiguous_running_bytes": running * longest * per_token,
        "paged_reserved_bytes": reserved,
        "paged_used_bytes": used,
        "written_bytes": written,
        "contiguous_waste": 1 - written / (running * longest * per_token),
        "reserved_waste": 1 - written / reserved,
        "paged_waste": 1 - written / used,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """For docs/benchmarks/kv/kv_memory.md."""
    lines = [
        f"{MODEL}, 16-bit keys and values, a batch of {BATCH} places; MiB, means over time. Written by "
        "scripts/bench/kv_memory.py.",
        "",
        "| workload | max_tokens | running | textbook | textbook, all heads | contiguous, running "
        "| paged, reserved | paged, in use | written | waste: contiguous, reserved, paged |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        asked = "exact" if not row["spare_tokens"] else f"answer + {row['spare_tokens']}"
        sizes = (
            "textbook_bytes", "textbook_all_heads_bytes", "contiguous_running_bytes", "paged_reserved_bytes",
            "paged_used_bytes", "written_bytes",
        )  # fmt: skip
        cells = [f"{row[name] / MIB:,.0f}" for name in sizes]
        waste = ", ".join(f"{row[name]:.1%}" for name in ("contiguous_waste", "reserved_waste", "paged_waste"))
        head = f"| {row['workload']['name']} | {asked} | {row['running']:.0f} "
        lines.append(f"{head}| {' | '.join(cells)} | {waste} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = Parser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--output", type=types.output_folder, default=FOLDER)
    folder: Path = parser.parse_args(arguments).output
    plan: dict[str, Any] = json.loads(WORKLOADS.read_text(encoding="utf-8"))
    recipe = step_costs.recipe_named(QUANTIZATION)
    replica = step_costs.Replica(MODEL, step_costs.architecture(MODEL), recipe, gpu_named(GPU), 1, BATCH, 2048)
    rows = [measure(replica, load, plan["seed"], spare) for load in plan["workloads"] for spare in (0, 256)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kv_memory.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    (folder / "kv_memory.md").write_text(table(rows), encoding="utf-8")
    print(table(rows))
    return 0


if __name__ == "__main__":
    run_main(main)
