#!/usr/bin/env python3
"""Measures what each dialect of the gateway costs: CPU per token of reading responses and writing a stream's bytes.

Pure: no server, no socket. TGI's includes the log-probabilities that it needs for its event per token, from the model's
JSON on. Median (least to most) of the repeats. Exit status: 0 done.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tritonclient.grpc import service_pb2 as pb

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "gateway"))
from build_engine.arguments import Parser
from inflight_gateway.core.models import Model, ModelInfo
from inflight_gateway.http import routes
from inflight_gateway.triton.messages import Reader
from inflight_tools.common import option_types as types
from inflight_tools.common.report import run_main

TURN = [{"role": "user", "content": "hi"}]
ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": TURN}),
    "completions": ("/v1/completions", {"prompt": "hi"}),
    "responses": ("/v1/responses", {"input": "hi"}),
    "messages (Anthropic)": ("/v1/messages", {"messages": TURN, "max_tokens": 9}),
    "generate_stream (TGI)": ("/generate_stream", {"inputs": "hi"}),
}
WORD = " word"


def response(tokens: int, with_ids: bool, finish: str) -> bytes:
    """One of the model's, of that many tokens, serialized."""
    found = pb.ModelInferResponse()

    def add(name: str, kind: str, raw: bytes) -> None:
        found.outputs.add(name=name, datatype=kind, shape=[1])
        found.raw_output_contents.append(raw)

    texts = {"text_output": WORD * tokens, "finish_reason": finish}
    if with_ids:
        said = {"logprob": -0.25, "rank": 1, "decoded_token": WORD, "bytes": list(WORD.encode())}
        texts["logprobs"] = json.dumps([{str(place): said} for place in range(tokens)])
        add("output_ids", "INT32", b"".join(place.to_bytes(4, "little") for place in range(tokens)))
    for name, text in texts.items():
        add(name, "BYTES", len(text.encode()).to_bytes(4, "little") + text.encode())
    for name, number in {"num_input_tokens": 24, "num_output_tokens": tokens}.items():
        add(name, "UINT32", number.to_bytes(4, "little"))
    return bytes(pb.ModelStreamInferResponse(infer_response=found).SerializeToString())


def us_per_token(path: str, body: dict[str, Any], tokens: int, responses: int) -> float:
    """CPU of one stream, decoding and rendering, by its tokens."""
    model = Model("llm", "llm", False, frozenset(), ModelInfo(release="1", engine="e"), None, 1, "llm/1/engine")
    plan = routes.ANSWERED[path].parse({"model": "llm", "stream": True, **body}, model)
    with_ids = bool(plan.requests[0].options.get("return_token_ids"))
    middle, last = response(tokens, with_ids, ""), response(tokens, with_ids, "length")
    reader = Reader()
    began = time.process_time()
    for place in range(responses):
        event = reader.read(middle if place < responses - 1 else last)
        assert not isinstance(event, str)
        plan.renderer.chunks(event)
    plan.renderer.end()
    return (time.process_time() - began) * 1e6 / (tokens * responses)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the table."""
    parser = Parser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--responses", type=types.count, default=2000, help="of one stream")
    parser.add_argument("--repeats", type=types.count, default=7)
    options = parser.parse_args(arguments)
    print("| stream | a token a response, µs a token | four tokens a response, µs a token |")
    print("|---|---|---|")
    for name, (path, body) in ASKED.items():
        cells = []
        for tokens in (1, 4):
            found = [us_per_token(path, body, tokens, options.responses) for _ in range(options.repeats)]
            cells.append(f"{statistics.median(found):.1f} ({min(found):.1f} to {max(found):.1f})")
        print(f"| {name} | {' | '.join(cells)} |")
    return 0


if __name__ == "__main__":
    run_main(main)
