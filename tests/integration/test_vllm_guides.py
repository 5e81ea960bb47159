"""xgrammar away from vLLM's engine: what it takes, what it costs, and that a guide harms nobody but its own request."""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inflight.engines.base import Guide
from inflight.errors import ErrorCode, RequestError
from inflight.guides.service import Decision, GuideService
from inflight_tools.common.layout import MODELS
from tests.doubles.vllm import cycle, drive, vllm_python, write_chain
from tests.integration.guide_cases import HOSTILE, SCHEMAS
from tests.unit.machines.tokenizer_kinds import write_folder

pytestmark = [pytest.mark.server, pytest.mark.full, pytest.mark.timeout(600)]

MODEL = MODELS / "SmolLM2-135M-Instruct"
# A check computes for 3 s at most and may take four times that by the clock; a killed process starts again in seconds.
LONGEST_S = 30.0


@pytest.fixture(scope="module")
def service() -> Iterator[GuideService]:
    made = GuideService("vllm", str(MODEL), python=str(vllm_python()))
    yield made
    made.stop()


def ask(service: GuideService, kind: str, text: str) -> Decision:
    answers: queue.Queue[Decision] = queue.Queue()
    service.ask(Guide(kind, text), answers.put)
    return answers.get(timeout=90.0)


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:30])
def test_it_takes_our_schemas(service: GuideService, schema: Any) -> None:
    decision = ask(service, "json_schema", json.dumps(schema))
    assert decision.error is None, decision.error
    assert decision.take().kind == "ebnf_grammar"


def test_guides_that_mean_harm_are_answered_in_time(service: GuideService) -> None:
    slowest, refused = 0.0, 0
    for kind, text in HOSTILE:
        began = time.monotonic()
        try:
            assert service.known(Guide(kind, text)) is None
            error = ask(service, kind, text).error
        except RequestError as refusal:  # before any work
            error = refusal
        if error is not None:
            assert error.code is ErrorCode.INVALID_ARG, (kind, text[:50], error.message)
            refused += 1
        slowest = max(slowest, time.monotonic() - began)
    print(f"{refused} of {len(HOSTILE)} refused, {service.kills} checks killed, the slowest took {slowest:.1f} s")
    assert slowest < LONGEST_S
    assert ask(service, "regex", "[a-c]{3}").guide is not None


def test_a_grammar_that_fails_in_vllms_compiler_ends_its_request_alone(tmp_path: Path) -> None:
    tokenizer = write_folder(tmp_path / "tokenizer", "byte_level")
    found = drive("guides", str(write_chain(tmp_path / "engine", tokenizer, cycle(tokenizer))))
    failed, *others = found["ends"]
    assert failed == "the engine could not compute this request"
    assert others == ["stop", "length"]
