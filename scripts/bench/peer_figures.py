"""Figures of the peers: one record for each run, medians over the repeats, and ratios of runs taken in turns."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from inflight_tools.load.perf_analyzer import Load
from inflight_tools.load.profile_export import Request
from inflight_tools.load.stats import Percentiles, Run, summarize

TIMES = tuple(f"{name}_{part}_ms" for name in ("ttft", "tpot", "itl", "latency") for part in ("p50", "p90", "p99"))
_COMPARED = ("tokens_per_s", "ttft_p50_ms", "latency_p50_ms")
ONE_BY_ONE = ("transformers",)  # peers that take one request after the other
RATES = ("tokens_per_s", "requests_per_s", "tokens_per_response")


@dataclass(frozen=True, slots=True)
class Record:
    """One run of one peer at one level of load. `figures` are named as in a load test's CSV (load/stats.py)."""

    run: int  # of the script; the peers of one run took turns
    repeat: int
    load: str
    peer: str
    figures: dict[str, float]
    cpu_us_per_token: dict[str, float]  # of the peer and of the client
    memory: int  # resident bytes of the peer's processes after the run
    cpu_share_of_others: float  # of the whole machine, 0 … 1
    requests: list[list[float]]  # [sent, TTFT, latency in ms, tokens, responses] of each, by the time of sending
    workload: str = ""  # lengths of prompts and answers

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


def figures(requests: Sequence[Request], load: Load) -> dict[str, float]:
    """Rates and times of one run, by the definitions of `load/stats.py`.

    `gap_…_ms` is the time between two responses, whatever they carry: how long a reader waits for more. An inter-token
    latency divides it by the tokens that came.
    """
    level = summarize(str(load), load.concurrency or load.rate or 0.0, [Run(requests, 0)], load.concurrency)
    row = level.to_row()
    found = {name: round(float(row[name]), 3) for name in (*RATES, *TIMES)}
    gaps = Percentiles.of([b - a for each in requests for (a, _), (b, _) in itertools.pairwise(each.arrivals)])
    return {**found, **{f"gap_{part}_ms": round(getattr(gaps, part), 3) for part in ("p50", "p90", "p99")}}


def compact(requests: Sequence[Request]) -> list[list[float]]:
    """The raw data that is kept: see `Record.requests`."""
    begin = requests[0].sent
    return [
        [
            round((request.sent - begin) / 1e6, 2),
            round((request.ttft or 0) / 1e6, 2),
            round(request.latency / 1e6, 2),
            request.tokens,
            len(request.arrivals),
        ]
        for request in requests
    ]


@dataclass(frozen=True, slots=True)
class Row:
    """One peer at one level: medians over the repeats."""

    load: str
    peer: str
    repeats: int
    figures: dict[str, float]
    tokens_per_s_least_most: tuple[float, float]
    cpu_us_per_token: dict[str, float]
    memory: int
    cpu_share_of_others: float  # the most in any repeat
    workload: str = ""

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Ratio:
    """How one of ours stands against a peer at one level: `base` over `peer`, run by run, of runs that took turns."""

    load: str
    base: str
    peer: str
    tokens_per_s: float  # medians
    ttft_p50: float
    latency_p50: float
    each: list[float]  # of tokens/s
    workload: str = ""

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


def rows(records: Sequence[Record]) -> list[Row]:
    """One row for each workload, level and peer, in the order of the records."""
    made = []
    for key in dict.fromkeys((record.workload, record.load, record.peer) for record in records):
        work, load, peer = key
        of = [record for record in records if (record.workload, record.load, record.peer) == key]
        speeds = [record.figures["tokens_per_s"] for record in of]
        made.append(
            Row(
                load=load,
                peer=peer,
                repeats=len(of),
                figures=_medians([record.figures for record in of]),
                tokens_per_s_least_most=(min(speeds), max(speeds)),
                cpu_us_per_token=_medians([record.cpu_us_per_token for record in of]),
                memory=max(record.memory for record in of),
                cpu_share_of_others=max(record.cpu_share_of_others for record in of),
                workload=work,
            )
        )
    return made


def ratios(records: Sequence[Record], pairings: Sequence[tuple[str, str]]) -> list[Ratio]:
    """Every (base, peer) of `pairings` at every level.

    A peer that takes one request after the other is measured with one in flight only: there are no more tokens/s to be
    had from it, so that run is what the base's other levels are compared with.
    """
    return [
        each
        for work in dict.fromkeys(record.workload for record in records)
        for base, peer in pairings
        for each in _ratios_of([record for record in records if record.workload == work], base, peer)
    ]


def _ratios_of(records: Sequence[Record], base: str, peer: str) -> Iterator[Ratio]:
    """Of one workload."""
    theirs = {(each.run, each.repeat, each.load): each for each in records if each.peer == peer}
    alone = {each.load for each in theirs.values()} == {"concurrency 1"}
    for load in dict.fromkeys(record.load for record in records if record.peer == base):
        same = "concurrency 1" if alone and peer in ONE_BY_ONE else load
        pairs = [
            (ours, theirs[ours.run, ours.repeat, same])
            for ours in records
            if (ours.peer, ours.load) == (base, load) and (ours.run, ours.repeat, same) in theirs
        ]
        if pairs:
            by = {name: [ours.figures[name] / other.figures[name] for ours, other in pairs] for name in _COMPARED}
            speed, ttft, latency = (statistics.median(by[name]) for name in _COMPARED)
            yield Ratio(load, base, peer, speed, ttft, latency, by["tokens_per_s"], pairs[0][0].workload)


def _medians(several: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of what all of them have: older records lack figures that newer ones have."""
    return {
        name: statistics.median(each[name] for each in several)
        for name in several[0]
        if all(name in each for each in several)
    }
