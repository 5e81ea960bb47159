#!/usr/bin/env python3
"""How far is the simulated engine from OpenVINO on this machine? Calibrated at batch 1 and 32, checked elsewhere.

The openvino engine class answers waves of prompts without Triton. Step and prefill costs are taken from the waves of 1
and 32; tokens/s of waves of 8 and 64, and the TTFT of a long prompt, are then predicted in virtual time and compared
with what was measured. Writes simulated_accuracy.json. Exit status: 0 done, 1 an error.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench import step_costs
from bench.virtual import Arrival, Policy, Replica
from build_engine.arguments import Parser
from inflight.engines.base import EngineRequest, SamplingParams
from inflight.engines.openvino.engine import BLOCK_SIZE, DEFAULT_KV_CACHE_BYTES, OpenVinoEngine
from inflight.engines.simulated.cost import SimulatedOptions
from inflight.errors import LoadError
from inflight_tools.common import option_types as types
from inflight_tools.common.layout import ENGINE, REPOSITORY
from inflight_tools.common.report import Failure, run_main

PROMPT, ANSWER, LONG_PROMPT = 32, 64, 1000
CALIBRATED, CHECKED = (1, 32), (8, 64)
MAX_RUNNING = 64
CHUNK = 512


@dataclass(frozen=True, slots=True)
class Wave:
    """Equal requests sent at once. Seconds from then: `read` until the last of them had its first token."""

    requests: int
    prompt: int
    answer: int
    seconds: float
    read: float
    reading_steps: int  # steps until then
    reading_decoded: int  # tokens that came with them

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens over the whole wave."""
        return self.requests * self.answer / self.seconds

    @property
    def step(self) -> float:
        """Seconds of a step once all decode."""
        return (self.seconds - self.read) / (self.answer - 1)


class Bench:
    """The openvino engine without a prefix cache, and prompts that it has not seen."""

    def __init__(self, folder: Path) -> None:
        """Loads it. Raises `Failure`."""
        options = {"prefix_caching": False, "max_batched_tokens": CHUNK}
        try:
            self.engine = OpenVinoEngine(folder, options, MAX_RUNNING)
        except LoadError as error:
            raise Failure(str(error)) from None
        self._chooser = random.Random(7)
        self._next = 0

    def add(self, prompt: int, answer: int) -> int:
        """One greedy request of random tokens that runs to its limit; its id."""
        self._next += 1
        token_ids = [self._chooser.randrange(1000, self.engine.info.vocab_size) for _ in range(prompt)]
        sampling = SamplingParams(max_tokens=answer)
        self.engine.add(EngineRequest(request_id=self._next, token_ids=token_ids, sampling=sampling))
        return self._next

    def wave(self, requests: int, prompt: int = PROMPT, answer: int = ANSWER) -> Wave:
        """Send them at once and wait for all."""
        began = time.perf_counter()
        unseen = {self.add(prompt, answer) for _ in range(requests)}
        left, read, steps, decoded = requests, 0.0, 0, 0
        while left:
            outputs = self.engine.step(0.005)
            left -= sum(output.finish is not None for output in outputs)
            if unseen:
                steps += 1
                decoded += len(outputs)
                unseen -= {output.request_id for output in outputs if output.token_ids}
                read = time.perf_counter() - began
        return Wave(requests, prompt, answer, time.perf_counter() - began, read, steps, decoded)

    def close(self) -> None:
        """Free the engine."""
        self.engine.close()


def costs(one: Wave, many: Wave) -> tuple[float, float, float]:
    """(step_ms, decode_us_per_sequence, prefill_us_per_token): a line through the steps of two waves, and what the
    larger one took beyond it to read its prompts.
    """
    slope = (many.step - one.step) / (many.requests - one.requests)
    base = one.step - slope * one.requests
    if min(slope, base) <= 0:
        raise Failure("larger waves took shorter steps: something else was using this machine; try again.")
    reading = many.read - many.reading_steps * base - many.reading_decoded * slope
    return base * 1e3, slope * 1e6, reading / (many.requests * many.prompt) * 1e6


def fit(one: Wave, many: Wave, engine: OpenVinoEngine) -> SimulatedOptions:
    """The simulated engine with these costs and this engine's sizes."""
    step_ms, decode_us, prefill_us = costs(one, many)
    return SimulatedOptions(
        step_ms=step_ms,
        decode_us_per_sequence=decode_us,
        prefill_us_per_token=prefill_us,
        max_seq_len=engine.info.max_seq_len,
        max_running=engine.info.max_running,
        block_size=engine.info.block_size,
        blocks=engine.info.blocks_total,
        chunk_tokens=CHUNK,
        prefix_caching=False,
    )


def median_wave(waves: Sequence[Wave]) -> Wave:
    """The one whose duration is the median."""
    return sorted(waves, key=lambda wave: wave.seconds)[len(waves) // 2]


def calibrate(bench: Bench, repeats: int = 3) -> SimulatedOptions:
    """Costs of this machine at this moment."""
    bench.wave(8)  # kernels are compiled, memory is touched
    waves = {size: [bench.wave(size) for _ in range(repeats)] for size in CALIBRATED}
    one, many = (median_wave(waves[size]) for size in CALIBRATED)
    return fit(one, many, bench.engine)


def recorded(path: Path) -> SimulatedOptions:
    """The costs that `main` wrote, and the sizes of the openvino engine: its default KV pool, 8 bits a value and
    8 bytes of scale and zero point per head.
    """
    found = json.loads(path.read_text(encoding="utf-8"))["costs"]
    config = step_costs.architecture("smollm2-135m")
    per_token = config.num_layers * 2 * config.num_kv_heads * (config.head_dim + 8)
    return SimulatedOptions(
        **found,
        max_running=MAX_RUNNING,
        block_size=BLOCK_SIZE,
        blocks=DEFAULT_KV_CACHE_BYTES // (BLOCK_SIZE * per_token),
        chunk_tokens=CHUNK,
        prefix_caching=False,
    )


def predict(
    options: SimulatedOptions, requests: int, prompt: int = PROMPT, answer: int = ANSWER
) -> tuple[float, float]:
    """(tokens/s, TTFT in seconds) of a wave in virtual time."""
    outcome = Replica(options, Policy(batch=MAX_RUNNING)).run([Arrival(0.0, prompt, answer)] * requests)
    return outcome.tokens_per_s, max(each.ttft for each in outcome.served)


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = Parser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--engine", type=types.openvino_engine, default=str(ENGINE), help="engine directory (openvino)")
    parser.add_argument("--repeats", type=types.count, default=5, help="default: %(default)s")
    parser.add_argument("--output", type=types.output_folder, default=REPOSITORY / "docs" / "benchmarks")
    args = parser.parse_args(arguments)
    bench = Bench(args.engine)
    bench.wave(8)
    waves: dict[int, list[Wave]] = {size: [] for size in (*CALIBRATED, *CHECKED)}
    long: list[Wave] = []
    for _ in range(args.repeats):  # in turns, because the speed of a shared machine drifts
        for size in waves:
            waves[size].append(bench.wave(size))
        long.append(bench.wave(1, LONG_PROMPT, 2))
    one, many = (median_wave(waves[size]) for size in CALIBRATED)
    options = fit(one, many, bench.engine)
    checks = [check("tokens/s", size, [wave.tokens_per_s for wave in waves[size]], predict(options, size)[0])
              for size in waves]  # fmt: skip
    ttft = predict(options, 1, LONG_PROMPT, 2)[1]
    checks.append(check(f"TTFT of {LONG_PROMPT} tokens, s", 1, [wave.read for wave in long], ttft))
    record = {
        "what": f"the openvino engine class, prompts of {PROMPT} and answers of {ANSWER} tokens sent at once; "
        f"calibrated with waves of {CALIBRATED}, medians of {args.repeats}",
        "costs": {
            name: getattr(options, name) for name in ("step_ms", "decode_us_per_sequence", "prefill_us_per_token")
        },
        "checks": checks,
        "waves": [asdict(wave) for size in waves for wave in waves[size]] + [asdict(wave) for wave in long],
    }
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "simulated_accuracy.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record["costs"]))
    for each in checks:
        print(f"{each['figure']:>24} at {each['requests']:>2}: measured {each['measured']:.4g}, "
              f"predicted {each['predicted']:.4g} ({each['error']:+.1%})")  # fmt: skip
    bench.close()
    return 0


def check(figure: str, requests: int, measured: Sequence[float], predicted: float) -> dict[str, Any]:
    """One line of the comparison; `measured` is the median, with least and most."""
    middle = statistics.median(measured)
    return {
        "figure": figure,
        "requests": requests,
        "calibrated": requests in CALIBRATED and figure == "tokens/s",
        "measured": middle,
        "least": min(measured),
        "most": max(measured),
        "predicted": predicted,
        "error": predicted / middle - 1,
    }


if __name__ == "__main__":
    run_main(main)
