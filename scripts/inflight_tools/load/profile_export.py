"""Reads what perf_analyzer's --profile-export-file holds. Pure.

The file has, for every request, when it was sent, when each response came, and the outputs of each response. It lists
every output of the model whether the response had it or not, and those that were not sent hold whatever was in
perf_analyzer's memory: only outputs that the request asked for mean anything, and this module reads no others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inflight_tools.common.report import Failure


class BrokenExport(Failure):
    """The file ends in the middle."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request: times in nanoseconds since the epoch, and the tokens that each response carried.

    Responses without a token are left out. `prompt_tokens` is 0 when the request did not ask for it. `outputs` has
    what the reader was told to keep: for each name the value of every response, one without tokens included.
    """

    sent: int
    arrivals: tuple[tuple[int, int], ...]  # (time, tokens)
    ended: int  # time of the last response, with or without tokens
    prompt_tokens: int
    outputs: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Tokens of the whole answer."""
        return sum(tokens for _, tokens in self.arrivals)

    @property
    def ttft(self) -> int | None:
        """Nanoseconds to the first token."""
        return self.arrivals[0][0] - self.sent if self.arrivals else None

    @property
    def latency(self) -> int:
        """Nanoseconds to the end."""
        return self.ended - self.sent


def read_export(path: Path, keep: Sequence[str] = ()) -> list[Request]:
    """The requests of an export with one experiment, by the time they were sent.

    Raises `Failure` if it has none, and `BrokenExport` for a file that is not whole.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except ValueError as error:
        raise BrokenExport(
            f"{path} is not a profile export of perf_analyzer ({error}): use version 2.51 or later."
        ) from None
    try:
        found = [_request(entry, keep) for experiment in content["experiments"] for entry in experiment["requests"]]
    except (KeyError, TypeError) as error:
        raise Failure(
            f"{path} is not a profile export of perf_analyzer ({error}): use version 2.51 or later."
        ) from None
    requests = sorted((request for request in found if request is not None), key=lambda request: request.sent)
    if not requests:
        raise Failure(f"{path} holds no answered request: look at the server's log.")
    return requests


def _request(entry: Mapping[str, Any], keep: Sequence[str]) -> Request | None:
    """None for a request that was not answered."""
    times = entry["response_timestamps"]
    if not times:
        return None
    asked = entry["request_inputs"]
    if asked.get("return_num_output_tokens") is not True:
        raise Failure(
            "a request of this profile export does not ask for num_output_tokens, so its tokens cannot be counted."
        )
    outputs = entry["response_outputs"]
    arrivals = []
    for at, output in zip(times, outputs, strict=True):
        tokens = output["num_output_tokens"]
        if isinstance(tokens, int) and tokens > 0:
            arrivals.append((int(at), tokens))
    prompt = int(outputs[0]["num_input_tokens"]) if asked.get("return_num_input_tokens") is True else 0
    kept = {name: tuple(output[name] for output in outputs) for name in keep}
    return Request(int(entry["timestamp"]), tuple(arrivals), int(times[-1]), prompt, kept)
