#!/usr/bin/env python3
"""Sends thousands of odd requests to a running server and says how they ended.

Exit status 1 when one was answered with an internal error, or not at all, or when fewer than 80 % of them passed
Triton's core and reached the backend's parser. `--only NUMBER` sends one case again and prints it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import grpc.aio
from tritonclient.grpc import service_pb2_grpc

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from build_engine.arguments import Parser
from inflight_tools.common import option_types as types
from inflight_tools.common.report import run_main
from inflight_tools.fuzz.inputs import Case, Fuzzer

SILENT = "silent"
WORKERS = 16
LIMIT_S = 60.0
ENOUGH = 0.8  # of all inputs have to reach the parser
# Our own sentences; whatever else an error says comes from Triton's core.
_OURS = (
    ("internal", re.compile(r"internal error while handling")),
    ("unsupported", re.compile(r" is not supported: | lacks ")),
    ("unavailable", re.compile(r"try again|to another server|is not started again|the deadline passed")),
)


@dataclasses.dataclass(slots=True)
class Outcome:
    """How one case ended: "answer", "refused" (an error that is not one of the others), "internal", "unsupported",
    "unavailable", `SILENT`, or "broken" (the connection or the protocol failed).
    """

    case: Case
    how: str
    message: str = ""


def classify(message: str) -> str:
    """The outcome that an error's text stands for."""
    return next((how for how, pattern in _OURS if pattern.search(message)), "refused")


class Attack:
    """Sends the cases of one fuzzer, some at a time."""

    def __init__(self, fuzzer: Fuzzer, grpc_url: str, http_url: str, limit_s: float = LIMIT_S) -> None:
        self._fuzzer = fuzzer
        self._grpc = grpc_url
        self._http = http_url
        self._limit = limit_s
        self.outcomes: list[Outcome] = []

    async def run(self, numbers: range) -> list[Outcome]:
        """All cases with these numbers."""
        work = iter(numbers)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self._limit)) as session:
            await asyncio.gather(*(self._worker(work, session) for _ in range(WORKERS)))
        return self.outcomes

    async def _worker(self, work: Any, session: aiohttp.ClientSession) -> None:
        async with grpc.aio.insecure_channel(self._grpc, options=_OPTIONS) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            for number in work:
                case = self._fuzzer.case(number)
                try:
                    sending = self._send_grpc(stub, case) if case.grpc is not None else self._send_http(session, case)
                    how, message = await asyncio.wait_for(sending, self._limit)
                except (TimeoutError, asyncio.TimeoutError):
                    how, message = SILENT, f"nothing for {self._limit:g} s"
                except (grpc.aio.AioRpcError, aiohttp.ClientError, ValueError) as error:
                    how, message = "broken", f"{type(error).__name__}: {error}"[:300]
                self.outcomes.append(Outcome(case, how, message))

    @staticmethod
    async def _send_grpc(stub: Any, case: Case) -> tuple[str, str]:
        """A stream of its own for each request, read to its end."""
        ended = asyncio.Event()

        async def outgoing() -> Any:
            yield case.grpc
            await ended.wait()

        how, message, finals = "", "", 0
        async for answer in stub.ModelStreamInfer(outgoing()):
            if answer.error_message:
                how, message = classify(answer.error_message), answer.error_message
                ended.set()
            elif answer.infer_response.parameters["triton_final_response"].bool_param:
                how, finals = how or "answer", finals + 1
                ended.set()
        if finals > 1:
            raise ValueError(f"{finals} final responses")
        return (how, message) if how else ("broken", "the stream ended without a final response")

    async def _send_http(self, session: aiohttp.ClientSession, case: Case) -> tuple[str, str]:
        async with session.post(f"http://{self._http}{case.path}", data=case.body) as answer:
            text = (await answer.read()).decode("utf-8", "replace")
            if answer.status == 200 and '"error"' not in text:
                return "answer", ""
            return classify(text), text


_OPTIONS = [("grpc.max_send_message_length", 1 << 30), ("grpc.max_receive_message_length", 1 << 30)]


def reached_parser(metrics_url: str, model: str) -> float:
    """How many requests the backend has ended so far, however they ended: those that passed core."""
    with urllib.request.urlopen(metrics_url, timeout=10) as page:
        lines = page.read().decode().splitlines()
    mine = [line for line in lines if line.startswith("inflight_requests_total{") and f'model="{model}"' in line]
    return sum(float(line.rsplit(" ", 1)[1]) for line in mine)


@dataclasses.dataclass(frozen=True, slots=True)
class Summary:
    """What a run says. `share` is of the inputs that reached the parser."""

    inputs: int
    share: float
    by_outcome: Counter[str]
    by_kind: Counter[tuple[str, str]]
    seconds: float
    bad: list[Outcome]

    def lines(self) -> list[str]:
        """For people."""
        ways = ", ".join(f"{count / self.inputs:.1%} {how}" for how, count in self.by_outcome.most_common())
        return [
            f"{self.inputs} inputs in {self.seconds:.0f} s: {ways}",
            f"{self.share:.1%} passed core and reached the parser",
            *(f"case {each.case.number} ({each.case.kind}): {each.how}: {each.message}" for each in self.bad[:20]),
        ]


def summarize(outcomes: list[Outcome], reached: float, seconds: float) -> Summary:
    """Of all outcomes, and the number of inputs that reached the parser."""
    return Summary(
        len(outcomes),
        reached / max(len(outcomes), 1),
        Counter(each.how for each in outcomes),
        Counter((each.case.kind, each.how) for each in outcomes),
        seconds,
        [each for each in outcomes if each.how in ("internal", SILENT, "broken")],
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Attack, and print the report."""
    parser = Parser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--inputs", type=types.count, default=20_000, help="default: %(default)s")
    parser.add_argument("--seed", type=types.count_or_none, default=1, help="default: %(default)s")
    parser.add_argument("--model", default="llm", help="default: %(default)s")
    parser.add_argument("--batched", action="store_true", help="the model has max_batch_size 1")
    parser.add_argument("--grpc", default="127.0.0.1:8001", help="default: %(default)s")
    parser.add_argument("--http", default="127.0.0.1:8000", help="default: %(default)s")
    parser.add_argument("--metrics", default="http://127.0.0.1:8002/metrics", help="default: %(default)s")
    parser.add_argument("--only", type=types.count_or_none, metavar="NUMBER", help="send this case alone and print it")
    options = parser.parse_args(arguments)
    attack = Attack(Fuzzer(options.seed, options.model, options.batched), options.grpc, options.http)
    if options.only is not None:
        (outcome,) = asyncio.run(attack.run(range(options.only, options.only + 1)))
        print(outcome.case.grpc if outcome.case.grpc is not None else outcome.case.body.decode("utf-8", "replace"))
        print(json.dumps({"kind": outcome.case.kind, "how": outcome.how, "message": outcome.message}))
        return 0
    before, began = reached_parser(options.metrics, options.model), time.monotonic()
    outcomes = asyncio.run(attack.run(range(options.inputs)))
    seconds = time.monotonic() - began
    time.sleep(2.0)  # a flush of the metrics
    summary = summarize(outcomes, reached_parser(options.metrics, options.model) - before, seconds)
    print("\n".join(summary.lines()))
    return 1 if summary.bad or summary.share < ENOUGH else 0


if __name__ == "__main__":
    run_main(main)
