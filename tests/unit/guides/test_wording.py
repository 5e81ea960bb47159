"""An error about a guide names the field in which the client sent it, whoever finds it: limits, check, or engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from inflight.engine_process import frames
from inflight.errors import RequestError
from inflight.identity import Identity
from inflight.request.parse import RawRequest
from tests.unit.machines.delivery_fakes import FakeResponder, Record
from tests.unit.machines.delivery_model import World

pytestmark = pytest.mark.fast

# The field, and a regular expression in it.
FORMS = ["guided_decoding_guide", "structured_outputs", "guided_decoding"]


class Heard(FakeResponder):
    """Keeps the error."""

    error: RequestError | None = None

    def fail(self, error: RequestError) -> None:
        super().fail(error)
        self.error = error


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


def send(world: World, form: str, kind: str, guide: Any) -> Heard:
    """A request with that guide, on its way until it is in the engine or has ended."""
    if form == "guided_decoding_guide":
        text = guide if isinstance(guide, str) else json.dumps(guide)
        tensors = {"guided_decoding_guide_type": [kind], form: [text]}
    else:
        tensors = {"sampling_parameters": [json.dumps({form: {kind: guide}})]}
    responder = Heard(Record(), lambda: None)
    world.backend.submit(RawRequest({"text_input": ["hello"], **tensors}, identity=Identity("r1")), responder)
    for _ in range(3):
        world.parse_thread()
        world.guide_thread()
        world.dispatcher_thread()
        world.sender_thread()
    return responder


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("kind", "guide", "problem"),
    [("choice", [], "must be a JSON list with at least one string"), ("regex", "bad", "is bad")],
    ids=["limits", "check"],
)
def test_a_guide_that_is_refused(world: World, form: str, kind: str, guide: Any, problem: str) -> None:
    for _ in range(2):  # the second time the verdict is known
        error = send(world, form, kind, guide).error
        assert error is not None
        assert (error.parameter, error.message) == (form, f"{form} {problem}")


@pytest.mark.parametrize("form", FORMS)
def test_a_guide_that_the_engine_refuses(world: World, form: str) -> None:
    heard = send(world, form, "regex", "fine")
    assert heard.error is None
    (request_id,) = world.engine.requests
    world.engine.forget(request_id)
    world.backend.on_refused(frames.Refused(request_id, "is too much", "guided_decoding_guide"))
    world.dispatcher_thread()
    world.sender_thread()
    assert heard.error is not None
    assert heard.error.message == f"{form} is too much"
