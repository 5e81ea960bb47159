"""OpenVINO's own compiler, away from the engine: it takes what we write, and its memory of grammars stays bounded."""

from __future__ import annotations

import json
import os
import queue
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai
import pytest
from openvino_tokenizers import convert_tokenizer
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from inflight.engines.base import Guide
from inflight.engines.openvino.guides import CompiledGrammars, OpenVinoCompiler, can_be_guided, structured_output
from inflight.grammar.nodes import GrammarError
from inflight.grammar.prepare import network, prepare
from inflight.guides.service import Decision, GuideService
from inflight_tools.common.layout import ENGINE
from tests.integration.guide_cases import SCHEMAS
from tests.unit.machines.grammar_walks import accepts
from tests.unit.machines.tokenizer_kinds import large

pytestmark = pytest.mark.server
MIB = 1 << 20
GEMMA = 262_144  # tokens


@pytest.fixture
def compiler() -> Iterator[OpenVinoCompiler]:
    made = OpenVinoCompiler(ENGINE)
    yield made
    made.close()


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * 4096


def schema_of(number: int) -> str:
    names = [f"k{number}_{place}" for place in range(12)]
    return json.dumps({"type": "object", "properties": {name: {"type": "string"} for name in names}, "required": names})


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:30])
def test_it_takes_our_schemas(compiler: OpenVinoCompiler, schema: Any) -> None:
    compiler.compile(prepare("json_schema", json.dumps(schema)))
    assert not compiler.broken


def test_it_takes_every_character_that_we_may_write(compiler: OpenVinoCompiler) -> None:
    rng = random.Random(5)
    for _ in range(20):
        codes = [
            rng.choice([rng.randint(1, 127), rng.randint(1, 0xD7FF), rng.randint(0xE000, 0x10FFFF)]) for _ in range(30)
        ]
        text = "".join(map(chr, codes))
        compiler.compile(prepare("choice", json.dumps([text, text[:10] + "x", "a"])))
        compiler.compile(prepare("regex", "[" + "".join(map(re.escape, text)) + "]{1,3}"))


def test_a_grammar_that_fails_is_told_in_one_line_without_places(compiler: OpenVinoCompiler) -> None:
    with pytest.raises(GrammarError) as caught:
        compiler.compile("root ::= foo")
    assert str(caught.value) == 'does not compile: EBNF parser error at line 1, column 10: Rule "foo" is not defined'
    assert compiler.broken


def test_memory_of_grammars_is_given_back(compiler: OpenVinoCompiler) -> None:
    grammars = CompiledGrammars(compiler._pipeline, ENGINE, vocab_size(), most_text=30_000)
    sizes = []
    for number in range(100):
        guide = Guide("ebnf_grammar", prepare("json_schema", schema_of(number)))
        grammars.use(guide)
        compiler.compile(guide.text)
        sizes.append(rss_bytes())
    assert grammars.forgotten > 5
    assert sizes[-1] - sizes[30] < 80 * MIB  # without forgetting it is about 280


def test_texts_under_way_keep_their_grammar(compiler: OpenVinoCompiler) -> None:
    pipeline = compiler._pipeline
    grammars = CompiledGrammars(pipeline, ENGINE, vocab_size(), most_text=10)
    tokenizer = Tokenizer.from_file(str(ENGINE / "tokenizer.json"))
    for number in range(6):
        pattern = f"([a-z]{{3}}[0-9]){{20}}Z{number}"
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = 300
        config.do_sample = True
        config.structured_output_config = structured_output(Guide("regex", pattern))
        prompt = openvino.Tensor(np.zeros((1, 1), dtype=np.int64))
        handle = pipeline.add_request(100 + number, prompt, config)
        ids: list[int] = []
        while pipeline.has_non_finished_requests():
            pipeline.step()
            grammars.use(Guide("ebnf_grammar", f"{len(ids)} and more than ten"))
            while handle.can_read():
                for output in handle.read().values():
                    ids += output.generated_ids
        assert accepts(network("regex", pattern), tokenizer.decode(ids))
    assert grammars.forgotten > 100


def test_who_can_be_guided(tmp_path: Path) -> None:
    assert can_be_guided(ENGINE, (2,))
    assert not can_be_guided(ENGINE, ())
    assert not can_be_guided(tmp_path, (2,))


def vocab_size() -> int:
    return int(json.loads((ENGINE / "config.json").read_text())["vocab_size"])


# -- a large vocabulary on a busy machine ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gemmas_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a guide's compiler needs of an engine directory, with a vocabulary as large as Gemma 3's."""
    folder = tmp_path_factory.mktemp("large")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=large(GEMMA), bos_token="<|bos|>", eos_token="<|eos|>")
    tokenizer.save_pretrained(str(folder))
    for model, name in zip(
        convert_tokenizer(tokenizer, with_detokenizer=True), ("tokenizer", "detokenizer"), strict=True
    ):
        openvino.save_model(model, folder / f"openvino_{name}.xml")
    (folder / "config.json").write_text(json.dumps({"vocab_size": GEMMA, "model_type": "llama"}), encoding="utf-8")
    (folder / "generation_config.json").write_text('{"eos_token_id": 1}', encoding="utf-8")
    return folder


@pytest.fixture
def busy_machine() -> Iterator[None]:
    """Every processor has somebody else's work to do."""
    cores = len(os.sched_getaffinity(0))
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
    yield
    for burner in burners:
        burner.kill()
        burner.wait()


@pytest.mark.full
def test_what_a_guide_may_cost_grows_with_the_vocabulary_and_not_with_the_load(
    gemmas_size: Path, busy_machine: None
) -> None:
    """The second guide takes some 0.2 s of processor time for 50,000 tokens and 1.5 s for these."""
    service = GuideService("openvino", str(gemmas_size))
    two_fields = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}
    try:
        for guide in (Guide("json_schema", json.dumps(two_fields)), Guide("regex", ".{1,12}")):
            answers: queue.Queue[Decision] = queue.Queue()
            service.ask(guide, answers.put)
            decision = answers.get(timeout=90.0)
            assert decision.guide is not None, decision.error
    finally:
        service.stop()
