"""The served model is the engine: greedy tokens through Triton are the tokens of the bare pipeline.

Run as a program this file is the bare pipeline: prompts (JSON on standard input) to token ids (JSON on standard
output), one prompt at a time, with the settings of the model that is served.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from inflight_tools.common.layout import ENGINE
from tests.harness.grpc_client import GrpcClient

pytestmark = pytest.mark.server

ROOT = Path(__file__).resolve().parents[2]
TOKENS = 32
BLOCK = 32  # tokens of a KV block of OpenVINO's CPU plugin
PROMPTS = (
    "The capital of France is",
    "Once upon a time",
    "def fibonacci(n):\n    ",
    "SELECT name FROM users WHERE",
    "Water boils at",
    "Dear Sir or Madam,\n\nI am writing to",
    "Q: What is 12 times 12?\nA:",
    "Die Hauptstadt von Deutschland ist",
    "La capitale de l'Italie est",
    "Столица России —",
    "日本の首都は",
    "🙂🙂🙂",
    "List three fruits:\n1.",
    '{"name": "Alice", "age": 30, "city":',
    "To be, or not to be, that is the",
    "<|im_start|>user\nWho wrote Faust?<|im_end|>\n<|im_start|>assistant\n",
    "In the beginning God created the heaven and the earth. And the earth was without form, and void; and darkness was "
    "upon the face of the deep. And the Spirit of God",
    "A" * 50,
    "one two three four five six seven eight nine ten " * 12,
    "    \n\n\t  indented",
)


def bare_pipeline(folder: Path, prompts: list[str], tokens: int) -> list[list[int]]:
    """Greedy token ids of each prompt alone, from OpenVINO GenAI without anything of ours around it."""
    import numpy
    import openvino
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.num_kv_blocks = 600
    scheduler.max_num_batched_tokens = 512
    scheduler.dynamic_split_fuse = True
    scheduler.enable_prefix_caching = True
    properties = {"KV_CACHE_PRECISION": "u8", "KEY_CACHE_QUANT_MODE": "BY_TOKEN"}
    pipeline = openvino_genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", properties)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = tokens
    config.ignore_eos = True
    answers = []
    for number, prompt in enumerate(prompts):
        ids = numpy.array([tokenizer.encode(prompt).ids], dtype=numpy.int64)
        handle = pipeline.add_request(number, openvino.Tensor(ids), config)
        answer: list[int] = []
        while pipeline.has_non_finished_requests():
            pipeline.step()
            while handle.can_read():
                for output in handle.read().values():
                    answer += output.generated_ids
        answers.append(answer)
    return answers


def in_a_process_of_its_own(prompts: Sequence[str]) -> list[list[int]]:
    paths = os.pathsep.join(str(ROOT / folder) for folder in ("", "scripts", "python_backend"))
    result = subprocess.run(
        [sys.executable, "-m", "tests.integration.test_tokens_equal", str(ENGINE), str(TOKENS)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths},
        input=json.dumps(prompts),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    answers: list[list[int]] = json.loads(result.stdout)
    return answers


def test_greedy_tokens_are_those_of_the_bare_pipeline(grpc: GrpcClient) -> None:
    assert len(set(PROMPTS)) == 20
    right = in_a_process_of_its_own(PROMPTS)
    served = [
        grpc.start(prompt, stream=bool(place % 2), max_tokens=TOKENS, ignore_eos=True, return_token_ids=True)
        .result()
        .output_ids
        for place, prompt in enumerate(PROMPTS)
    ]
    assert all(len(ids) == TOKENS for ids in right)
    wrong = [place for place in range(20) if served[place] != right[place]]
    assert not wrong, f"prompts {wrong} of 20 differ"


def again(client: GrpcClient, times: int, **values: Any) -> list[Any]:
    """The same request `times` times over, one after the other."""
    return [client.start(**{"stream": False, **values}).result() for _ in range(times)]


@pytest.mark.full
@pytest.mark.parametrize("length", [20, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 100])
def test_the_same_prompt_has_the_same_tokens_every_time(length: int, grpc: GrpcClient) -> None:
    """Alone, with a cold prefix cache and with a warm one; whole blocks of the cache are where that can go wrong."""
    chooser = random.Random(length)
    for _ in range(2):
        ids = [chooser.randrange(20, 40_000) for _ in range(length)]
        first, second, third = again(grpc, 3, text_input=None, input_ids=ids, max_tokens=16, return_token_ids=True)
        assert first.output_ids == second.output_ids == third.output_ids


def test_the_same_seed_gives_the_same_sequences_every_time(grpc: GrpcClient) -> None:
    values = {"num_return_sequences": 3, "temperature": 1.2, "seed": 5, "max_tokens": 10}
    answers = again(grpc, 5, text_input="Once upon a time", **values)
    assert len({tuple(answer.texts) for answer in answers}) == 1
    assert len(set(answers[0].texts)) == 3


if __name__ == "__main__":
    json.dump(bare_pipeline(Path(sys.argv[1]), json.load(sys.stdin), int(sys.argv[2])), sys.stdout)
