"""Drives the vLLM engine without a server, under the Python that vLLM is installed for: `python -m ... WHAT FOLDER`.

`facts` prints what the installation can be told; `reservations` serves 120 requests out of a pool that holds a few of
them, once as admission does it and once without, and counts how often vLLM preempted; `guides` has one of three
grammars fail in vLLM's compiler; `perplexity` measures a checkpoint on the text and the tokens of `build_engine build`.
"""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path
from typing import Any

from inflight.engines.base import EngineRequest, Guide, SamplingParams
from inflight.engines.vllm.engine import VllmEngine
from inflight.engines.vllm.load import import_vllm
from inflight.engines.vllm.options import environment, read_options
from inflight.errors import LoadError
from inflight.serving.admission import AdmissionQueue

POOL_GB = 0.00075  # about a hundred blocks
REQUESTS = 120


def facts() -> dict[str, Any]:
    """What the installed vLLM is and can be told."""
    installed = import_vllm(environment(read_options({})))
    found = installed.facts
    return {
        "version": installed.version,
        "arguments": sorted(found.arguments),
        "takes_bad_words": found.takes_bad_words,
        "takes_salts": found.takes_salts,
    }


def reservations(folder: Path) -> dict[str, Any]:
    """How often vLLM preempted, with and without our reservations."""
    options = {"enforce_eager": True, "dtype": "float32", "kv_cache_gb": POOL_GB, "max_seq_len": 512, "block_size": 32}
    engine = VllmEngine(folder, options, 64)
    preempted = [0]
    scheduler = engine._scheduler
    original = scheduler._preempt_request

    def counted(*arguments: Any, **named: Any) -> Any:
        preempted[0] += 1
        return original(*arguments, **named)

    scheduler._preempt_request = counted
    chance = random.Random(5)
    requests = [
        EngineRequest(
            request_id=number,
            token_ids=[chance.randrange(200) for _ in range(chance.randrange(1, 200))],
            sampling=SamplingParams(
                max_tokens=chance.randrange(1, 300),
                num_sequences=chance.choice((1, 1, 1, 3)),
                temperature=1.0,
                seed=number,
            ),
        )
        for number in range(1, REQUESTS + 1)
    ]
    most = []
    counts = []
    for reserved in (True, False):
        preempted[0] = 0
        most.append(serve(engine, requests, AdmissionQueue(engine.info, 0, 1000, 0) if reserved else None))
        counts.append(preempted[0])
    blocks = engine.info.blocks_total
    engine.close()
    return {"reserved": counts[0], "unreserved": counts[1], "most_blocks": most[0], "blocks": blocks}


def serve(engine: VllmEngine, requests: list[EngineRequest], queue: AdmissionQueue | None) -> int:
    """Run all requests to their ends; the most blocks that were in use. Raises `AssertionError` for a wrong end."""
    waiting = {request.request_id: request for request in requests}
    left: dict[int, int] = {}
    made: dict[int, int] = {}
    most = 0
    for request in requests:
        if queue is not None:
            queue.offer(request, 0.0)
    while waiting or left:
        started = queue.take(0.0) if queue is not None else list(waiting)
        for number in started:
            request = waiting.pop(number)
            engine.add(request)
            left[number] = request.sampling.num_sequences
        for output in engine.step(0.005):
            made[output.request_id] = made.get(output.request_id, 0) + len(output.token_ids)
            if output.finish is not None or output.error is not None:
                assert output.error is None, output
                left[output.request_id] -= 1
                if not left[output.request_id]:
                    del left[output.request_id]
                    if queue is not None:
                        queue.release(output.request_id, 0.0)
        most = max(most, engine.stats().blocks_used)
    for request in requests:
        assert made[request.request_id] == request.sampling.num_sequences * request.sampling.max_tokens
    assert engine.stats().blocks_used == 0
    return most


def guides(folder: Path) -> dict[str, Any]:
    """How three requests end, of which the first has a guide that passes every check and fails in the compiler."""
    engine = VllmEngine(folder, {"enforce_eager": True, "dtype": "float32", "kv_cache_gb": 0.1}, 4)
    backend = engine._scheduler.structured_output_manager.backend
    original = backend.compile_grammar

    def fails(kind: Any, text: str, **named: Any) -> Any:
        if "dead" in text:
            raise RuntimeError("the compiler has met a grammar that it cannot compile")
        return original(kind, text, **named)

    backend.compile_grammar = fails
    guides = (Guide("ebnf_grammar", 'root ::= "dead"\n'), Guide("ebnf_grammar", 'root ::= "a" | "b"\n'), None)
    for number, guide in enumerate(guides, 1):
        sampling = SamplingParams(max_tokens=8)
        engine.add(EngineRequest(request_id=number, token_ids=[5, 6], sampling=sampling, guide=guide))
    ends: dict[int, str] = {}
    while len(ends) < len(guides):
        for output in engine.step(0.005):
            if output.error is not None:
                ends[output.request_id] = output.error
            elif output.finish is not None:
                ends[output.request_id] = output.finish.value
    engine.close()
    return {"ends": [ends[number] for number in sorted(ends)]}


def perplexity(folder: Path, options: str = "{}") -> dict[str, Any]:
    """Perplexity of the checkpoint on what `build_engine build` verifies with, as vLLM computes it."""
    from tokenizers import Tokenizer

    from build_engine.verification import corpus
    from build_engine.verification.reference import windows
    from build_engine.verification.stage import WINDOW
    from build_engine.verification.verify import BUILD_TOKENS

    engine = VllmEngine(
        folder, {"enforce_eager": True, "kv_cache_gb": 0.5, "max_seq_len": 1024, **json.loads(options)}, 8
    )
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = tokenizer.encode(corpus.evaluation().text, add_special_tokens=False).ids
    sampling = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0, "detokenize": False}
    loss = 0.0
    tokens = 0
    for number, window in enumerate(windows(ids, tokenizer.encode("").ids, WINDOW, BUILD_TOKENS)):
        prompt = window.tolist()
        params = engine._vllm.sampling_params(**sampling)
        engine._engine.add_request(f"window {number}", engine._vllm.tokens_input(prompt), params)
        while engine._engine.has_unfinished_requests():
            for result in engine._engine.step():
                for token, place in zip(prompt[1:], (result.prompt_logprobs or [None])[1:], strict=False):
                    loss -= place[token].logprob
                    tokens += 1
    config = engine._engine.vllm_config
    engine.close()
    return {
        "perplexity": math.exp(loss / tokens),
        "tokens": tokens,
        "quantization": config.model_config.quantization,
        "dtype": str(config.model_config.dtype),
        "kv_cache": config.cache_config.cache_dtype,
    }


WHAT = {"facts": facts, "reservations": reservations, "guides": guides, "perplexity": perplexity}

if __name__ == "__main__":
    folder, *more = sys.argv[2:] or [None]
    action: Any = WHAT[sys.argv[1]]
    try:
        result = action(*([Path(folder)] if folder else []), *more)
    except LoadError as error:
        result = {"refused": str(error)}
    print(json.dumps(result))
