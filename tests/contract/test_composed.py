"""Models built over ours, as users of Triton compose them: an ensemble, a model after us, and a caller (BLS).

What matters is the shape of `text_output`, which has one dimension in both of our shapes: what comes after has to take
it, alone and in streams.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2 as pb

from inflight_tools.server.server import Server
from tests.contract.test_clients import Tensor, request, send
from tests.harness.http_client import HttpClient

pytestmark = pytest.mark.server

# A step after ours: gives every text in capitals.
CAPITALS = """\
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            texts = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy()
            loud = np.array([text.upper() for text in texts.ravel()], dtype=np.object_).reshape(texts.shape)
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("LOUD", loud)]))
        return answers
"""
# A caller: asks one of our models, and gives each of its texts on with the rank that it came in.
CALLER = """\
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            ours = pb_utils.InferenceRequest(
                model_name=pb_utils.get_input_tensor_by_name(request, "MODEL").as_numpy().item().decode(),
                requested_output_names=["text_output"],
                inputs=[
                    pb_utils.Tensor(name, pb_utils.get_input_tensor_by_name(request, name).as_numpy())
                    for name in ("text_input", "stream", "max_tokens")
                ],
            )
            for response in ours.exec(decoupled=True):
                if response.has_error():
                    sender.send(pb_utils.InferenceResponse([], response.error()))
                    break
                for tensor in response.output_tensors():
                    texts = tensor.as_numpy()
                    said = [pb_utils.Tensor("SAID", texts), pb_utils.Tensor("RANK", np.array([texts.ndim], np.int32))]
                    sender.send(pb_utils.InferenceResponse(said))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
INPUTS = """\
input { name: "text_input" data_type: TYPE_STRING dims: [ %(dims)s ] }
input { name: "stream" data_type: TYPE_BOOL dims: [ %(dims)s ] }
input { name: "max_tokens" data_type: TYPE_INT32 dims: [ %(dims)s ] }
"""
ENSEMBLE = """\
platform: "ensemble"
max_batch_size: %(batch)d
%(inputs)soutput { name: "text_output" data_type: TYPE_STRING dims: [ -1 ] }
ensemble_scheduling {
  step [
    {
      model_name: "%(model)s" model_version: -1
      input_map { key: "text_input" value: "text_input" }
      input_map { key: "stream" value: "stream" }
      input_map { key: "max_tokens" value: "max_tokens" }
      output_map { key: "text_output" value: "%(first)s" }
    }%(second)s
  ]
}
"""
SECOND = """,
    {
      model_name: "%(after)s" model_version: -1
      input_map { key: "TEXT" value: "ours" }
      output_map { key: "LOUD" value: "text_output" }
    }"""
MODELS = {"flat": "llm", "batched": "llm_batched"}
PROMPT = "The lazy dog"


def write(repository: Path, name: str, config: str, code: str = "") -> None:
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(config, encoding="utf-8")
    if code:
        (folder / "1" / "model.py").write_text(code, encoding="utf-8")


@pytest.fixture(scope="module", autouse=True)
def composed(server: Server) -> Iterator[None]:
    """The models of this module, in the contract's own server."""
    repository = server.config.repository
    python = 'backend: "python"\ninstance_group [ { count: 1, kind: KIND_CPU } ]\nmax_batch_size: 0\n'
    text = 'input { name: "TEXT" data_type: TYPE_STRING dims: [ -1 ] }\n'
    loud = text + 'output { name: "LOUD" data_type: TYPE_STRING dims: [ -1 ] }\n'
    write(repository, "capitals", python + loud, CAPITALS)
    write(repository, "capitals_batched", python.replace("max_batch_size: 0", "max_batch_size: 1") + loud, CAPITALS)
    for place in MODELS:
        dims = "1, 1" if place == "batched" else "1"
        config = python + "model_transaction_policy { decoupled: true }\n" + INPUTS % {"dims": dims}
        config += 'input { name: "MODEL" data_type: TYPE_STRING dims: [ 1 ] }\n'
        config += 'output { name: "SAID" data_type: TYPE_STRING dims: [ -1 ] }\n'
        config += 'output { name: "RANK" data_type: TYPE_INT32 dims: [ 1 ] }\n'
        write(repository, f"caller_{place}", config, CALLER)
        values = {
            "batch": int(place == "batched"),
            "inputs": INPUTS % {"dims": "1"},
            "model": MODELS[place],
            "after": "capitals",
        }
        write(repository, f"ensemble_{place}", ENSEMBLE % {**values, "first": "text_output", "second": ""})
        write(repository, f"loud_{place}", ENSEMBLE % {**values, "first": "ours", "second": SECOND % values})
    values["after"] = "capitals_batched"
    write(repository, "refused", ENSEMBLE % {**values, "first": "ours", "second": SECOND % values})
    names = ["capitals", "capitals_batched", "refused"]
    names += [f"{kind}_{place}" for kind in ("caller", "ensemble", "loud") for place in MODELS]
    http = HttpClient(server.http_url)
    for name in names:
        status, body = http.call("POST", f"/v2/repository/models/{name}/load", b"{}")
        assert status == 200, body
    yield
    for name in reversed(names):
        http.call("POST", f"/v2/repository/models/{name}/unload", b"{}")


def inputs(place: str, stream: bool) -> list[Tensor]:
    shape = [1, 1] if place == "batched" else [1]
    return [
        ("text_input", "BYTES", shape, [PROMPT]),
        ("stream", "BOOL", shape, [stream]),
        ("max_tokens", "INT32", shape, [12]),
    ]


def texts(responses: list[pb.ModelInferResponse], name: str = "text_output") -> str:
    """The first element of each response, decoded. (An ensemble of batches gives what comes last a dimension more.)"""
    pieces = []
    for response in responses:
        array = triton.InferResult(response).as_numpy(name)
        if array is not None:
            pieces.append(array.ravel()[0].decode())
    return "".join(pieces)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("place", MODELS)
def test_an_ensemble_over_ours_gives_what_ours_gives(place: str, stream: bool, server: Server) -> None:
    ours = send(server, request(MODELS[place], inputs(place, stream)))
    found = send(server, request(f"ensemble_{place}", inputs(place, stream)), empty_final=True)
    assert texts(found.responses) == ours.text
    assert stream or sum(bool(response.outputs) for response in found.responses) == 1


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("place", MODELS)
def test_a_model_after_ours_takes_its_text(place: str, stream: bool, server: Server) -> None:
    ours = send(server, request(MODELS[place], inputs(place, stream)))
    found = send(server, request(f"loud_{place}", inputs(place, stream)), empty_final=True)
    assert texts(found.responses) == ours.text.upper()


def test_a_batched_model_after_ours_is_refused_by_core_as_after_tensorrt_llms(server: Server) -> None:
    """Documented: a text of one dimension has no batch dimension; a step after ours has max_batch_size 0."""
    with pytest.raises(RuntimeError, match=r"unexpected shape for input 'TEXT' for model 'capitals_batched'"):
        send(server, request("refused", inputs("batched", True)))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("place", MODELS)
def test_a_caller_gets_text_of_one_dimension(place: str, stream: bool, server: Server) -> None:
    model: Tensor = ("MODEL", "BYTES", [1], [MODELS[place]])
    ours = send(server, request(MODELS[place], inputs(place, stream)))
    found = send(server, request(f"caller_{place}", [*inputs(place, stream), model]), empty_final=True)
    assert texts(found.responses, "SAID") == ours.text
    assert {values[0] for values in found.column("RANK")} == {1}
