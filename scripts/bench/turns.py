"""Arms taking turns on fresh prompts, and one arm compared with another over the repeats."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from bench.arms import Arm, Measured, Prompt
from bench.quiet import CpuTime, wait_until_quiet
from inflight_tools.common.report import Failure

_WARM_TOKENS = 8  # of each answer before anything is measured: a large model's answers take a minute
Supply = Callable[[int], list[Prompt]]  # so many prompts that were never used before


@dataclass(frozen=True, slots=True)
class Record:
    """One run of one arm."""

    repeat: int
    concurrency: int
    arm: str
    requests: int
    tokens_per_s: float
    ttft_p50_ms: float
    tokens_per_response: float
    cpu_us_per_token: dict[str, float]  # by the part that used it
    cpu_share_of_others: float  # of the whole machine, 0 … 1, while this ran


@dataclass(frozen=True, slots=True)
class Rules:
    """How turns are taken. `quiet`: the share of the CPU that others may use; beyond it a turn is repeated."""

    repeats: int
    waves: int  # requests per run: waves × concurrency, and `least` at the least
    max_tokens: int
    quiet: float
    retries: int
    patience_s: float
    least: int = 8


class Turns:
    """Runs every arm at every concurrency, `rules.repeats` times."""

    def __init__(self, arms: Sequence[Arm], supply: Supply, rules: Rules, say: Callable[[str], None]) -> None:
        """Every arm is paused. `say` hears what is being done."""
        self._arms = list(arms)
        self._supply = supply
        self._rules = rules
        self._say = say

    def take(self, concurrencies: Sequence[int]) -> list[Record]:
        """All records, in the order they ran. Raises `Failure` when an arm does not give the tokens asked for."""
        records = []
        for repeat in range(self._rules.repeats + 1):  # the first, short, warms caches and compiled kernels up
            for concurrency in concurrencies:
                self._say(f"repeat {repeat} of {self._rules.repeats}, concurrency {concurrency}")
                if repeat:
                    records += self._quiet_turn(repeat, concurrency)
                else:
                    self._turn(repeat, concurrency, concurrency, min(_WARM_TOKENS, self._rules.max_tokens))
        return records

    def _quiet_turn(self, repeat: int, concurrency: int) -> list[Record]:
        count = max(self._rules.least, self._rules.waves * concurrency)
        most = self._rules.max_tokens
        turn = self._turn(repeat, concurrency, count, most)
        for _ in range(self._rules.retries):
            if noise(turn) <= self._rules.quiet:
                break
            self._say(f"others used {100 * noise(turn):.0f} % of the CPU: waiting for a quieter moment")
            wait_until_quiet(self._rules.quiet, self._rules.patience_s)
            turn = min(turn, self._turn(repeat, concurrency, count, most), key=noise)
        return turn

    def _turn(self, repeat: int, concurrency: int, count: int, max_tokens: int) -> list[Record]:
        """Every arm once, close together in time; who begins changes from repeat to repeat."""
        shared = self._supply(count)
        records = []
        for arm in self._arms if repeat % 2 else self._arms[::-1]:
            # Arms in one process share a prefix cache, which must not know the prompts.
            prompts = self._supply(count) if arm.shares_cache else shared
            with running(arm, self._supply(1)[0]):
                before, ours = CpuTime.now(), time.process_time()
                measured = arm.run(prompts, concurrency, max_tokens)
                used = sum(measured.cpu_s.values()) + time.process_time() - ours
                others = CpuTime.now().share_of_others(before, used)
            if measured.tokens != count * max_tokens:
                raise Failure(
                    f"{arm.name} gave {measured.tokens} tokens instead of {count * max_tokens}: the sides cannot be "
                    "compared."
                )
            records.append(_record(repeat, concurrency, arm, measured, others))
        return records


@contextmanager
def running(arm: Arm, warm: Prompt) -> Iterator[None]:
    """Only this arm's processes run inside; one small request wakes them up first."""
    arm.resume()
    try:
        arm.warm(warm)
        yield
    finally:
        arm.pause()


def noise(records: Sequence[Record]) -> float:
    """The most that others used of the machine, 0 … 1."""
    return max(record.cpu_share_of_others for record in records)


def _record(repeat: int, concurrency: int, arm: Arm, measured: Measured, others: float) -> Record:
    return Record(
        repeat=repeat,
        concurrency=concurrency,
        arm=arm.name,
        requests=len(measured.requests),
        tokens_per_s=measured.tokens_per_s,
        ttft_p50_ms=statistics.median(measured.ttfts_ms),
        tokens_per_response=measured.tokens / sum(len(request.arrivals) for request in measured.requests),
        cpu_us_per_token={part: 1e6 * seconds / measured.tokens for part, seconds in measured.cpu_s.items()},
        cpu_share_of_others=others,
    )


@dataclass(frozen=True, slots=True)
class Comparison:
    """One arm against another at one concurrency: the medians over the repeats, and the spread of what was paired.

    `ratio` is of tokens/s; `cpu_ratio` is the base's CPU time per token over all CPU time per token of the arm, client
    included: what the ratio would be if nothing ran in parallel with the engine, and less shaken by other programs;
    `added_ttft_ms` is the difference of the p50 of each run. All are made pair by pair, of runs that were next to each
    other in time.
    """

    arm: str
    base: str
    concurrency: int
    ratio: float
    ratios: list[float]
    cpu_ratio: float
    tokens_per_s: float
    base_tokens_per_s: float
    added_ttft_ms: float
    added_ttfts_ms: list[float]
    base_ttft_ms: float
    tokens_per_response: float
    cpu_us_per_token: dict[str, float]
    base_cpu_us_per_token: dict[str, float]
    cpu_share_of_others: float  # the most in any pair

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


def compare(records: Sequence[Record], arm: str, base: str) -> list[Comparison]:
    """`arm` over `base` at each concurrency, in the order of the records."""
    rows = []
    for concurrency in dict.fromkeys(record.concurrency for record in records):
        of = {(record.arm, record.repeat): record for record in records if record.concurrency == concurrency}
        pairs = [(ours, of[base, repeat]) for (name, repeat), ours in of.items() if name == arm]
        ratios = [ours.tokens_per_s / theirs.tokens_per_s for ours, theirs in pairs]
        added = [ours.ttft_p50_ms - theirs.ttft_p50_ms for ours, theirs in pairs]
        rows.append(
            Comparison(
                arm=arm,
                base=base,
                concurrency=concurrency,
                ratio=statistics.median(ratios),
                ratios=ratios,
                cpu_ratio=statistics.median(
                    sum(theirs.cpu_us_per_token.values()) / sum(ours.cpu_us_per_token.values())
                    for ours, theirs in pairs
                ),
                tokens_per_s=statistics.median(ours.tokens_per_s for ours, _ in pairs),
                base_tokens_per_s=statistics.median(theirs.tokens_per_s for _, theirs in pairs),
                added_ttft_ms=statistics.median(added),
                added_ttfts_ms=added,
                base_ttft_ms=statistics.median(theirs.ttft_p50_ms for _, theirs in pairs),
                tokens_per_response=statistics.median(ours.tokens_per_response for ours, _ in pairs),
                cpu_us_per_token=_median_parts([ours.cpu_us_per_token for ours, _ in pairs]),
                base_cpu_us_per_token=_median_parts([theirs.cpu_us_per_token for _, theirs in pairs]),
                cpu_share_of_others=max(noise(pair) for pair in pairs),
            )
        )
    return rows


def _median_parts(several: Sequence[dict[str, float]]) -> dict[str, float]:
    return {part: statistics.median(each[part] for each in several) for part in several[0]}
