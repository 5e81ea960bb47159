"""Which models there are: several of one Triton, in both shapes, with adapters, loaded and unloaded meanwhile."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.harness.fake_triton import INFO, FakeTriton, response, serving
from tests.harness.gateway import Gateway, running

NOTICED_S = 5.0


class SeveralModels(FakeTriton):
    """`llm` with two adapters, the same engine with a batch dimension, a model of another backend, and what a test
    loads. An answer is what was asked: the model of Triton's, and the adapter.
    """

    def __init__(self) -> None:
        super().__init__()
        self.there = {"llm": "inflight", "llm_batched": "inflight", "vision": "onnxruntime"}

    def RepositoryIndex(self, request: Any, context: Any) -> Any:
        index = pb.RepositoryIndexResponse.ModelIndex
        return pb.RepositoryIndexResponse(models=[index(name=name, version="1", state="READY") for name in self.there])

    def ModelConfig(self, request: Any, context: Any) -> Any:
        answer = super().ModelConfig(request, context)
        answer.config.backend = self.there[request.name]
        if request.name == "llm_batched":
            answer.config.max_batch_size = 8
            answer.config.parameters["engine_dir"].string_value = "../../llm/1/engine"
        return answer

    def _answer(self, requests: Any, context: Any) -> Iterator[Any]:
        request = next(iter(requests))
        inputs = {one.name: raw[4:] for one, raw in zip(request.inputs, request.raw_input_contents, strict=True)}
        options = json.loads(inputs["sampling_parameters"])
        if options.get("return_model_info"):
            adapters = ["red", "blue"] if request.model_name == "llm" else []
            yield response(final=True, finish="stop", info=json.dumps({**INFO, "adapters": adapters}))
            return
        yield response(f"{request.model_name}/{options.get('lora_name', '')}", "stop", final=True)


@pytest.fixture(scope="module")
def triton() -> Iterator[tuple[SeveralModels, Gateway]]:
    servicer = SeveralModels()
    with serving(servicer) as address, running(address) as gateway:
        gateway.wait_ready()
        yield servicer, gateway


def listed(gateway: Gateway) -> dict[str, Any]:
    status, _, body = gateway.call("GET", "/v1/models")
    assert status == 200
    return {one["id"]: one for one in json.loads(body)["data"]}


def answered(gateway: Gateway, model: str) -> tuple[int, str]:
    asked = {"model": model, "messages": [{"role": "user", "content": "x"}]}
    status, _, body = gateway.call("POST", "/v1/chat/completions", asked)
    said = json.loads(body)
    return status, said["choices"][0]["message"]["content"] if status == 200 else said["error"]["code"]


def becomes(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + NOTICED_S
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.05)


def test_adapters_are_models_of_their_own_under_their_model(triton: tuple[SeveralModels, Gateway]) -> None:
    _, gateway = triton
    found = listed(gateway)
    assert {name: one["parent"] for name, one in found.items()} == {"llm": None, "red": "llm", "blue": "llm"}
    assert answered(gateway, "red") == (200, "llm/red")
    assert answered(gateway, "llm") == (200, "llm/")
    assert answered(gateway, "green") == (404, "model_not_found")
    one = json.loads(gateway.call("GET", "/v1/models/red")[2])
    assert (one["id"], one["root"]) == ("red", found["red"]["root"])


def test_what_is_loaded_and_unloaded_comes_and_goes(triton: tuple[SeveralModels, Gateway]) -> None:
    """A model that was just loaded answers at once, before anybody has looked again."""
    servicer, gateway = triton
    assert answered(gateway, "second") == (404, "model_not_found")
    time.sleep(0.3)  # a name that is not known is looked for a few times a second at most
    servicer.there["second"] = "inflight"
    try:
        assert answered(gateway, "second") == (200, "second/")
        assert set(listed(gateway)) == {"llm", "red", "blue", "second"}
    finally:
        del servicer.there["second"]
    becomes(lambda: "second" not in listed(gateway))
    assert answered(gateway, "second") == (404, "model_not_found")
    assert answered(gateway, "blue") == (200, "llm/blue")


def test_of_one_engine_the_shape_without_a_batch_is_listed(triton: tuple[SeveralModels, Gateway]) -> None:
    """The other one where it is alone."""
    servicer, gateway = triton
    assert "llm_batched" not in listed(gateway)
    del servicer.there["llm"]
    try:
        becomes(lambda: set(listed(gateway)) == {"llm_batched"})
        assert answered(gateway, "llm_batched") == (200, "llm_batched/")
    finally:
        servicer.there["llm"] = "inflight"
    becomes(lambda: set(listed(gateway)) == {"llm", "red", "blue"})
