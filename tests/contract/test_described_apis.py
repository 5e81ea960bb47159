"""Requests made from vendors' own descriptions of their APIs, through the gateway to the simulated engine: every answer
is one that the description has, and none is a failure of ours.
"""

from __future__ import annotations

import json
from collections import Counter

import pytest

from tests.conftest import MakeServer
from tests.contract.described.of_anthropic import ANTHROPIC
from tests.contract.described.of_openai import OPENAI
from tests.contract.described.of_tgi import TGI
from tests.harness.gateway import running

pytestmark = pytest.mark.server

APIS = {"openai": OPENAI, "anthropic": ANTHROPIC, "tgi": TGI}
TOLD = (("openai", "/models", "ListModelsResponse"), ("openai", "/models/llm", "Model"), ("tgi", "/info", "Info"))


@pytest.mark.parametrize(
    ("cases", "names"),
    [
        pytest.param(300, tuple(APIS), id="300"),
        *(
            pytest.param(5000, (name,), id=f"5,000-{name}", marks=[pytest.mark.full, pytest.mark.timeout(1800)])
            for name in APIS
        ),
    ],
)
def test_what_is_described_is_answered_as_described(make_server: MakeServer, cases: int, names: tuple[str]) -> None:
    """`cases`: of all APIs together."""
    server = make_server(
        models={"llm": {"max_tokens_limit": "16", "engine_options": {"step_ms": 0.1, "prefill_us_per_token": 0.1}}}
    )
    counted: Counter[tuple[str, bool, int]] = Counter()
    with running(server.grpc_url) as gateway:
        gateway.wait_ready()
        for name in names:
            for path, operation in APIS[name].operations.items():
                for honoured, share in zip((False, True), operation.share, strict=True):
                    if round(cases * share):
                        APIS[name].ask(gateway, path, honoured, round(cases * share), counted)
                # Else nothing was tried but refusals.
                refused = sum(number for key, number in counted.items() if key[:2] == (path, True) and key[2] != 200)
                assert counted[path, True, 200] > refused, counted
        for name, path, schema in TOLD:
            status, _, body = gateway.call("GET", APIS[name].base + path)
            assert status == 200
            APIS[name].validate(json.loads(body), schema)
        assert gateway.call("GET", "/ready")[0] == 200
    print(dict(counted))
