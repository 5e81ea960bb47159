#!/usr/bin/env python3
"""Measures prompt lookup through Triton: tokens/s of one greedy request at a time, with it and without, in turns.

Prompts: docs/benchmarks/lookup/prompts.json; `copies` and `free` are put to the model as a chat, `continued` as they
are. Answers have all the same length. Where an answer's tokens differ, the gap between the two first different tokens
in the source model's own log-probabilities says how close the choice was. Exit status: 0 done, 1 an error.
"""

from __future__ import annotations

import itertools
import json
import statistics
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.measured import spread, watched
from bench.peer_client import Question, infer_request
from bench.peer_inflight import MODEL, InflightPeer
from bench.results import write_results
from build_engine.arguments import Parser
from inflight.request.tokenizer import TextTokenizer
from inflight_tools.common import option_types as types
from inflight_tools.common.layout import ENGINE, MODELS, REPOSITORY
from inflight_tools.common.report import Failure, run_main

FOLDER = REPOSITORY / "docs" / "benchmarks" / "lookup"
CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """Token ids, and seconds from the first response to the last."""

    tokens: list[int]
    first: int  # tokens of the first response
    seconds: float

    @property
    def rate(self) -> float:
        """Tokens/s after the first response."""
        if not self.seconds:
            raise Failure(f"an answer of {len(self.tokens)} tokens came in one piece: give it more --max-tokens.")
        return (len(self.tokens) - self.first) / self.seconds


def ask(peer: InflightPeer, text: str, max_tokens: int) -> Answer:
    """One streamed answer. Raises `Failure`."""
    import grpc
    from tritonclient.grpc import service_pb2_grpc

    request = infer_request(MODEL, Question(text, max_tokens))
    wanted = request.inputs.add(name="return_token_ids", datatype="BOOL", shape=[1])
    wanted.contents.bool_contents.append(True)
    request.outputs.add(name="output_ids")
    tokens: list[int] = []
    came: list[tuple[float, int]] = []
    with grpc.insecure_channel(peer.server.grpc_url) as channel:
        call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer
        for answer in call(iter([request]), timeout=TIMEOUT_S):
            if answer.error_message:
                raise Failure(f"Triton answered: {answer.error_message}")
            found = token_ids(answer.infer_response)
            tokens += found
            if found:
                came.append((time.perf_counter(), len(found)))
    if len(tokens) != max_tokens:
        raise Failure(f"an answer has {len(tokens)} tokens instead of {max_tokens}: nothing can be compared.")
    return Answer(tokens, came[0][1], came[-1][0] - came[0][0])


def token_ids(response: Any) -> list[int]:
    """`output_ids` of a ModelInferResponse."""
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=False):
        if output.name == "output_ids":
            return list(struct.unpack(f"<{len(raw) // 4}i", raw))
    return []


def equal_start(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first tokens are the same."""
    return len([*itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))])


class Judge:
    """The source model in transformers, in 32 bits."""

    def __init__(self, checkpoint: Path) -> None:
        """Load it."""
        import torch
        from transformers import AutoModelForCausalLM

        self._torch = torch
        self._model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)

    def gap(self, ids: Sequence[int], one: int, other: int) -> float:
        """How far apart two next tokens are, in nats."""
        with self._torch.inference_mode():
            found = self._model(self._torch.tensor([list(ids)])).logits[0, -1].log_softmax(-1)
        return abs(float(found[one] - found[other]))


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = Parser(description=(__doc__ or "").split("\n", 1)[0])
    option = parser.add_argument
    option(
        "--engine", type=types.openvino_engine, default=str(ENGINE), metavar="DIR", help="engine directory (openvino)"
    )
    option(
        "--checkpoint",
        type=types.checkpoint,
        default=str(MODELS / "SmolLM2-135M-Instruct"),
        help="what it was built from",
    )
    option("--draft-tokens", type=types.count, default=5, metavar="N", help="guessed at a time (default: %(default)s)")
    option(
        "--max-tokens",
        type=types.at_least(2, "a rate is of what comes after the first token"),
        default=128,
        metavar="N",
        help="of each answer (default: %(default)s)",
    )
    option("--repeats", type=types.count, default=5, metavar="N", help="default: %(default)s")
    option("--output", type=types.output_file, default=FOLDER / "lookup.json")
    options = parser.parse_args(arguments)
    guess = {"speculative": "ngram", "num_draft_tokens": options.draft_tokens}
    peers = {
        "without": InflightPeer("lookup without", "int8", options.engine),
        "with": InflightPeer("lookup with", "int8", options.engine, {"engine_options": guess}),
    }
    kinds = json.loads((FOLDER / "prompts.json").read_text(encoding="utf-8"))
    cases = [
        (kind, text if kind == "continued" else CHAT.format(text)) for kind, texts in kinds.items() for text in texts
    ]
    rates: dict[tuple[int, str], list[float]] = {}
    answers: dict[tuple[int, str], list[list[int]]] = {}
    started: list[InflightPeer] = []
    try:
        for peer in peers.values():
            peer.start()
            started.append(peer)
            peer.pause()
        with watched(lambda: sum(peer.cpu_s() for peer in started)) as others:
            for repeat in range(-1, options.repeats):  # the first turn only warms up
                for name in sorted(peers, reverse=bool(repeat % 2)):
                    peers[name].resume()
                    for number, (_, text) in enumerate(cases):
                        answer = ask(peers[name], text, options.max_tokens)
                        answers.setdefault((number, name), []).append(answer.tokens)
                        if repeat >= 0:
                            rates.setdefault((number, name), []).append(answer.rate)
                    peers[name].pause()
    finally:
        for peer in started:
            peer.stop()
    judge, tokenizer = Judge(options.checkpoint), TextTokenizer(options.engine)
    rows = []
    for number, (kind, text) in enumerate(cases):
        plain, guessed = (answers[number, name] for name in ("without", "with"))
        ratios = [b / a for a, b in zip(rates[number, "without"], rates[number, "with"], strict=True)]
        same = equal_start(plain[0], guessed[0])
        gap = None
        if same < options.max_tokens:
            before = tokenizer.encode(text, add_special_tokens=True) + plain[0][:same]
            gap = round(judge.gap(before, plain[0][same], guessed[0][same]), 3)
        rows.append(
            {
                "kind": kind,
                "tokens_per_s": {name: spread(rates[number, name], 1) for name in peers},
                "ratio": spread(ratios),
                "equal_tokens": same,
                "gap_at_the_difference_nats": gap,
                "the_same_every_time": {
                    name: all(each == answers[number, name][0] for each in answers[number, name]) for name in peers
                },
            }
        )
        print(
            f"{kind}: {rows[-1]['ratio']['median']} x ({rows[-1]['ratio']['least']}-{rows[-1]['ratio']['most']}), "
            f"{same} of {options.max_tokens} tokens equal, gap {gap}, repeats {rows[-1]['the_same_every_time']}"
        )
    medians = {
        kind: round(statistics.median(row["ratio"]["median"] for row in rows if row["kind"] == kind), 2)
        for kind in kinds
    }
    print(json.dumps(medians))
    content = {
        "ratio": medians,
        "cases": rows,
        "cpu_share_of_others": others.share,
    }
    what = "tokens/s of one greedy request with and without prompt lookup"
    write_results(options.output, what, "python scripts/bench/lookup.py", options, **content)
    return 0


if __name__ == "__main__":
    run_main(main)
