"""What a comparison has to measure, and what of it a file of records already holds. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.peer_figures import Record
from inflight_tools.load.perf_analyzer import Load


@dataclass(frozen=True, slots=True)
class Round:
    """Every peer once, at one level of load: what is compared, so it is taken as a whole."""

    workload: str
    repeat: int  # from 1 on
    load: Load

    def name(self) -> str:
        """As it is shown while it is measured."""
        return f"{self.load}, {self.workload}, repeat {self.repeat}"


def workload(prompt_tokens: str, max_tokens: int) -> str:
    """The lengths, as records name them."""
    return f"prompts of {prompt_tokens}, answers of {max_tokens}"


def rounds(work: str, concurrency: Sequence[int], rates: Sequence[float], repeats: int) -> list[Round]:
    """One repeat after the other, so that what is there early is all levels once."""
    loads = [Load(concurrency=number) for number in concurrency] + [Load(rate=rate) for rate in rates]
    return [Round(work, repeat, load) for repeat, load in itertools.product(range(1, repeats + 1), loads)]


def unfinished(plan: Sequence[Round], records: Sequence[Record], peers: Mapping[str, int]) -> list[Round]:
    """The rounds of which no run has measured all peers; `peers` says how many requests each can have in flight.

    A round that was broken off is taken again as a whole: records of different runs are hours apart and compare
    nothing.
    """
    taken: dict[tuple[str, int, str, int], set[str]] = {}
    for record in records:
        taken.setdefault((record.workload, record.repeat, record.load, record.run), set()).add(record.peer)

    def done(each: Round) -> bool:
        wanted = {name for name, most in peers.items() if takes_part(most, each.load)}
        return any(key[:3] == (each.workload, each.repeat, str(each.load)) and taken[key] >= wanted for key in taken)

    return [each for each in plan if not done(each)]


def takes_part(most_in_flight: int, load: Load) -> bool:
    """Whether a peer that can have so many requests in flight is measured at this level."""
    return most_in_flight >= (load.concurrency or 2)
