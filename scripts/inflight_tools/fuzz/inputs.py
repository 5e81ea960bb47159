"""Requests that nobody should send, by the thousand. Each follows from a seed and its number, so that one that does
harm can be sent again alone. Most are well-formed for Triton's core and reach our parser.
"""

from __future__ import annotations

import dataclasses
import json
import random
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from inflight_tools.fuzz.values import DIMS, FLOATS, INTEGERS, JSON_KEYS, OPTIONS, TYPES, Values

_NUMPY: dict[str, Any] = {"BOOL": np.bool_, "INT32": np.int32, "UINT64": np.uint64, "FP32": np.float32}


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """One input. `grpc` is a request for a stream; else `path` and `body` are an HTTP POST."""

    number: int
    kind: str
    grpc: pb.ModelInferRequest | None = None
    path: str = ""
    body: bytes = b""


class Fuzzer:
    """Makes the cases of one seed."""

    def __init__(self, seed: int, model: str = "llm", batched: bool = False) -> None:
        self._seed = seed
        self._model = model
        self._batched = batched
        kinds: list[tuple[int, Callable[[_Maker], Case]]] = [
            (26, _Maker.tensors),
            (24, _Maker.sampling_json),
            (14, _Maker.messages),
            (10, _Maker.text),
            (6, _Maker.parameters),
            (12, _Maker.http_json),
            (3, _Maker.http_wild),
            (5, _Maker.wrong_for_core),
        ]
        self._weights = [weight for weight, _ in kinds]
        self._kinds = [make for _, make in kinds]

    def case(self, number: int) -> Case:
        """The case with this number: the same for the same seed."""
        chance = random.Random(f"{self._seed}/{number}")
        (make,) = chance.choices(self._kinds, self._weights)
        return make(_Maker(number, chance, self._model, self._batched))


class _Maker:
    """Makes one case."""

    def __init__(self, number: int, chance: random.Random, model: str, batched: bool) -> None:
        self.number = number
        self.chance = chance
        self.values = Values(chance, chance.choice((0.0, 0.1, 0.3)))
        self.model = model
        self.batched = batched

    # -- gRPC --------------------------------------------------------------------------------------------------------

    def _request(self) -> pb.ModelInferRequest:
        request = pb.ModelInferRequest(model_name=self.model, id=f"f{self.number}")
        request.parameters["triton_enable_empty_final_response"].bool_param = True
        return request

    def _add(self, request: pb.ModelInferRequest, name: str, values: list[Any]) -> None:
        """One tensor, as core wants it."""
        kind = TYPES[name]
        if kind == "STRING":
            items = [value.encode() if isinstance(value, str) else bytes(value) for value in values]
            raw = b"".join(struct.pack("<I", len(item)) + item for item in items)
        else:
            raw = np.array(values, dtype=_NUMPY[kind]).tobytes()
        tensor = request.inputs.add(name=name, datatype="BYTES" if kind == "STRING" else kind)
        tensor.shape.extend([1, len(values)] if self.batched else [len(values)])
        request.raw_input_contents.append(raw)

    def _tensor_values(self, name: str) -> list[Any]:
        """Values of the type that the tensor has."""
        listed = DIMS[name] == -1
        count = self.chance.choice((1, 1, 2, 5, 70)) if listed else 1
        if not self.values.wild():
            value = self.values.plausible(name)
            return (
                value if isinstance(value, list) and value else [value if not isinstance(value, list) else "x"] * count
            )
        pools: dict[str, Callable[[], Any]] = {
            "BOOL": lambda: self.chance.random() < 0.5,
            "INT32": lambda: self.chance.choice(INTEGERS),
            "UINT64": lambda: self.chance.choice((0, 1, 2**63, 2**64 - 1)),
            "FP32": lambda: self.chance.choice(FLOATS),
            "STRING": self.values.any_bytes,
        }
        return [pools[TYPES[name]]() for _ in range(count)]

    def _prompt(self, request: pb.ModelInferRequest) -> None:
        pick = self.chance.random()
        if pick < 0.6:
            self._add(request, "text_input", [self.values.any_bytes()])
        elif pick < 0.75:
            self._add(request, "messages", [self.values.messages()])
        elif pick < 0.92:
            ids = [self.chance.randrange(49152) for _ in range(self.chance.choice((1, 5, 50, 900)))]
            if self.values.wild():
                ids[-1] = self.chance.choice(INTEGERS)
            self._add(request, "input_ids", ids)
        elif pick < 0.96:
            self._add(request, "text_input", [self.values.any_bytes()])
            self._add(request, "messages", [self.values.messages()])

    def tensors(self) -> Case:
        """Any inputs together."""
        request = self._request()
        self._prompt(request)
        chosen = {"max_tokens", *self.chance.sample(OPTIONS, self.chance.randint(0, 6))}
        for name in sorted(chosen):
            self._add(request, name, self._tensor_values(name))
        return Case(self.number, "tensors", request)

    def sampling_json(self) -> Case:
        """`sampling_parameters` as a tensor."""
        request = self._request()
        self._add(request, "text_input", ["Hello"])
        self._add(request, "sampling_parameters", [self.values.json_object()])
        if self.chance.random() < 0.3:
            self._add(request, "stream", [True])
        return Case(self.number, "sampling_parameters", request)

    def messages(self) -> Case:
        """`messages` as a tensor."""
        request = self._request()
        self._add(request, "messages", [self.values.messages()])
        self._add(request, "max_tokens", [self.chance.randint(1, 20)])
        return Case(self.number, "messages", request)

    def text(self) -> Case:
        """Only the prompt is odd; at times it is very long."""
        request = self._request()
        value = self.values.any_bytes()
        if self.chance.random() < 0.02:
            value = (value or b"x") * (self.chance.choice((200_000, 1_200_000)) // max(len(value), 1))
        self._add(request, "text_input", [value])
        self._add(request, "max_tokens", [self.chance.randint(1, 20)])
        self._add(request, "stream", [self.chance.random() < 0.5])
        if self.chance.random() < 0.3:
            self._add(request, "stop_words", [self.values.text() or "x" for _ in range(self.chance.randint(1, 5))])
        return Case(self.number, "text", request)

    def parameters(self) -> Case:
        """Values as request parameters, beside tensors."""
        request = self._request()
        self._add(request, "text_input", ["Hello"])
        self._add(request, "max_tokens", [5])
        for _ in range(self.chance.randint(1, 5)):
            name = self.chance.choice(JSON_KEYS) if not self.values.wild() else (self.values.text()[:40] or "x")
            if name.startswith("triton_") or name in ("priority", "timeout", "sequence_id"):
                continue
            parameter = request.parameters[name]
            pick = self.chance.randrange(4)
            if pick == 0:
                parameter.int64_param = self.chance.choice((*INTEGERS, 2**63 - 1, -(2**63)))
            elif pick == 1:
                parameter.bool_param = self.chance.random() < 0.5
            elif pick == 2:
                parameter.double_param = self.chance.choice(FLOATS)
            else:
                parameter.string_param = self.values.text()
        if self.chance.random() < 0.3:
            request.parameters["sampling_parameters"].string_param = self.values.json_object().decode(
                "utf-8", "replace"
            )
        return Case(self.number, "parameters", request)

    def wrong_for_core(self) -> Case:
        """A wrong type, shape, name or length: Triton's core should refuse it before us."""
        request = self._request()
        self._add(request, "text_input", ["Hello"])
        self._add(request, "max_tokens", [4])
        tensor = request.inputs[self.chance.randrange(2)]
        pick = self.chance.randrange(6)
        if pick == 0:
            tensor.datatype = self.chance.choice(("INT64", "FP32", "BYTES", "UINT8", "NOPE", ""))
        elif pick == 1:
            del tensor.shape[:]
            tensor.shape.extend(self.chance.choice(([2], [1, 1], [], [0], [-1], [2**40], [1, 1, 1])))
        elif pick == 2:
            tensor.name = self.chance.choice(("text", "", "text_input2", self.values.text()[:30]))
        elif pick == 3:
            place = self.chance.randrange(2)
            raw = request.raw_input_contents[place]
            request.raw_input_contents[place] = self.chance.choice(
                (b"", raw[:-1], raw + b"x", raw[:3], b"\xff" * 8, raw * 3)
            )
        elif pick == 4:
            del request.raw_input_contents[-1]
        else:
            request.outputs.add(name=self.chance.choice(("text_output", "nope", "")))
        return Case(self.number, "wrong for core", request)

    # -- HTTP --------------------------------------------------------------------------------------------------------

    def _path(self) -> str:
        return f"/v2/models/{self.model}/{self.chance.choice(('generate', 'generate', 'generate_stream'))}"

    def http_json(self) -> Case:
        """A body of the generate extension: types mostly as core wants them, because it answers others itself."""
        path = self._path()
        body: dict[str, Any] = {"stream": path.endswith("stream"), "max_tokens": self.chance.randint(1, 20)}
        if self.chance.random() < 0.7:
            body["text_input"] = self.values.text()
        else:
            body["messages"] = self.values.messages().decode("utf-8", "replace")
        for name in self.chance.sample(OPTIONS, self.chance.randint(0, 3)):
            if name not in body and name != "streaming":
                value = self.values.plausible(name)
                body[name] = value if value != [] else ["x"]
        if self.chance.random() < 0.3:
            body["sampling_parameters"] = self.values.json_object().decode("utf-8", "replace")
        if self.chance.random() < 0.2:
            body["parameters"] = {self.chance.choice(JSON_KEYS): self.values.text() for _ in range(2)}
        return Case(self.number, "http", path=path, body=json.dumps(body, ensure_ascii=self.values.wild()).encode())

    def http_wild(self) -> Case:
        """Any JSON, or none."""
        pick = self.chance.random()
        if pick < 0.5:
            body = json.dumps({**self.values.options(JSON_KEYS), "text_input": self.values.json_value()}).encode()
        elif pick < 0.8:
            body = self.values.json_object()
        else:
            body = self.values.any_bytes()
        return Case(self.number, "http wild", path=self._path(), body=body)
