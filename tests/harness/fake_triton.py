"""A Triton of ours, in this process, with one Inflight model that does what the message says: for all that a real one
does seldom or never.
"""

from __future__ import annotations

import contextlib
import json
import struct
import threading
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as pb_grpc

INFO = {"release": "1", "engine": "fake", "engine_version": "1", "context": 100, "chat": True}


def response(text: str = "", finish: str = "", final: bool = False, info: str = "") -> Any:
    found = pb.ModelInferResponse()
    outputs = {"text_output": text.encode(), "finish_reason": finish.encode()}
    if info:
        outputs["model_info"] = info.encode()
    for name, value in outputs.items():
        found.outputs.append(pb.ModelInferResponse.InferOutputTensor(name=name, datatype="BYTES", shape=[1]))
        found.raw_output_contents.append(struct.pack("<I", len(value)) + value)
    for name in ("num_input_tokens", "num_output_tokens"):
        found.outputs.append(pb.ModelInferResponse.InferOutputTensor(name=name, datatype="UINT32", shape=[1]))
        found.raw_output_contents.append(struct.pack("<I", 3 if name == "num_input_tokens" else bool(text)))
    found.parameters["triton_final_response"].bool_param = final
    return pb.ModelStreamInferResponse(infer_response=found)


class FakeTriton(pb_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """One Inflight model, which does what the message says."""

    def __init__(self) -> None:
        self.left = threading.Event()
        self.asked = 0
        self.running = 0
        self._lock = threading.Lock()
        self.turned_away = ""  # the sentence with which every request is refused

    def RepositoryIndex(self, request: Any, context: Any) -> Any:
        return pb.RepositoryIndexResponse(
            models=[pb.RepositoryIndexResponse.ModelIndex(name="llm", version="1", state="READY")]
        )

    def ModelConfig(self, request: Any, context: Any) -> Any:
        answer = pb.ModelConfigResponse()
        answer.config.name, answer.config.backend = request.name, "inflight"
        answer.config.input.add(name="top_p")
        return answer

    def ModelStreamInfer(self, requests: Any, context: Any) -> Iterator[Any]:
        with self._lock:
            self.running += 1
        try:
            yield from self._answer(requests, context)
        finally:
            with self._lock:
                self.running -= 1

    def _until_left(self, context: Any) -> None:
        if context.add_callback(self.left.set):
            self.left.wait(30)

    def _answer(self, requests: Any, context: Any) -> Iterator[Any]:
        request = next(iter(requests))
        inputs = {one.name: raw[4:] for one, raw in zip(request.inputs, request.raw_input_contents, strict=True)}
        text = inputs.get("text_input", b"").decode()
        if "messages" not in inputs and (not text or json.loads(inputs["sampling_parameters"])["max_tokens"] == 0):
            yield response(final=True, finish="stop", info=json.dumps(INFO))
            return
        self.asked += 1
        if self.turned_away:
            yield pb.ModelStreamInferResponse(error_message=self.turned_away)
            return
        act = json.loads(inputs["messages"])[-1]["content"] if "messages" in inputs else text
        if act == "restarting" and self.asked == 1:
            yield pb.ModelStreamInferResponse(error_message="the engine is restarting; try again in a few seconds")
            return
        if act.startswith("error:"):
            yield pb.ModelStreamInferResponse(error_message=act.removeprefix("error:"))
            return
        if act == "queued":
            self._until_left(context)
            return
        if act == "gone":
            context.abort(grpc.StatusCode.UNAVAILABLE, "failed to connect to all addresses; last error: 10.0.0.1")
        yield response("one ")
        if act.startswith("then:"):
            yield pb.ModelStreamInferResponse(error_message=act.removeprefix("then:"))
        elif act == "break":
            context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        elif act == "end":
            return
        elif act == "silent":
            yield response("two", final=True)
        elif act == "flood":
            context.add_callback(self.left.set)
            while not self.left.is_set():
                yield response("x" * 60_000)
        elif act == "much, then an error":
            yield response("x" * 8_000_000)
            yield pb.ModelStreamInferResponse(error_message="the engine died and is being restarted; try again")
        elif act == "hang":
            self._until_left(context)
        elif act in ("nobody's", "no text"):
            strange = response("two", "stop", final=True)
            if act == "no text":
                strange.infer_response.raw_output_contents[0] = struct.pack("<I", 2) + b"\xff\xfe"
            else:
                strange.infer_response.outputs.add(name="sequence_index", datatype="INT32", shape=[1])
                strange.infer_response.raw_output_contents.append(struct.pack("<i", 7))
            yield strange
        elif act == "relaxed":
            asked = json.loads(inputs["sampling_parameters"]).get("return_model_info")
            notes = ["f/properties/a: format", "g/properties/ü: format", "g: uniqueItems"]
            yield response("two", "stop", final=True, info=json.dumps({"relaxations": notes}) if asked else "")
        else:
            yield response("two", act if act in ("deadline", "cancelled") else "stop", final=True)


@contextlib.contextmanager
def serving(servicer: FakeTriton, address: str = "127.0.0.1:0") -> Iterator[str]:
    """Serve it; the address."""
    server = grpc.server(futures.ThreadPoolExecutor(16))
    pb_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port(address)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        servicer.left.set()
        server.stop(0)
