"""Triton's entry points. Everything they do is one call into the package `inflight`, which lies beside this file.

Imports at the top stay cheap: Triton imports this file twice, once in a process that only completes the configuration
and whose `triton_python_backend_utils` has no requests and responses.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

sys.path.insert(0, str(Path(__file__).resolve().parent))

from inflight.errors import LoadError, RequestError, internal, sendable, unforeseen
from inflight.identity import Identity
from inflight.triton import config as triton_config
from inflight.triton.region import InUse

log = logging.getLogger("inflight")

# A sender asks for the interpreter after every round trip to the server. With the default of 5 ms it would wait that
# long each time behind the thread that reads the engine's tokens, and the delivery of a busy server would stand still.
SWITCH_INTERVAL_S = 0.0005


class TritonPythonModel:
    """One model, one instance, one engine process."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        """Every input and output of the contract."""
        return triton_config.auto_complete(auto_complete_model_config)

    def initialize(self, args: dict[str, str]) -> None:
        """Load the engine; whatever is in the way is one sentence in Triton's log."""
        # The stub's Python takes ASCII for everybody's encoding, whatever the locale.
        with contextlib.suppress(AttributeError):  # something else in its place
            sys.stderr.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
        try:
            self._load(args)
        except LoadError as error:
            sentence = str(error)
        except Exception as error:  # not foreseen: the sentence says what, the log has the traceback
            log.exception("model %s cannot be loaded", args["model_name"])
            sentence = unforeseen(error)
        else:
            return
        try:
            self.finalize()
        except Exception:
            log.exception("model %s has left something behind", args["model_name"])
        raise pb_utils.TritonModelException(sendable(f"model {args['model_name']} cannot be loaded: {sentence}"))

    def _load(self, args: dict[str, str]) -> None:
        """Raises `LoadError`, and whatever nobody thought of."""
        from inflight.backend.starting import Starting
        from inflight.model.files import path_of
        from inflight.model.parameters import parse_model_config

        self._in_use = InUse()

        sys.setswitchinterval(SWITCH_INTERVAL_S)
        model_config = json.loads(args["model_config"])
        self._batched = int(model_config.get("max_batch_size", 0)) > 0
        parameters = {name: value["string_value"] for name, value in model_config.get("parameters", {}).items()}
        if triton_config.instance_count(model_config) > 1:
            raise LoadError(
                "more than one instance is configured, and one engine process serves all requests of a model: set "
                "instance_group [ { count: 1, kind: KIND_CPU } ], on a GPU server too."
            )
        folder = path_of(args["model_repository"]) / args["model_version"]
        warmups = triton_config.warmup_requests(model_config)
        config = parse_model_config(parameters)
        self._empty_final = config.empty_final_response
        self._starting = Starting(config, folder)
        self._starting.supervisor.launch()  # it loads while the rest is imported and read

        from inflight.backend.model import Backend
        from inflight.control import open_control
        from inflight.triton import io as triton_io
        from inflight.triton import metrics as triton_metrics

        self._io = triton_io
        backend = Backend(config, folder, warmups, args["model_name"], self._starting)
        backend.start()
        self._backend = backend
        self._control = open_control(args["model_name"], self._backend)
        sink = triton_metrics.make_sink(args["model_name"], args["model_version"])
        if sink is not None:
            self._backend.export_metrics(sink)

    def execute(self, requests: list[Any]) -> None:
        """Copy the inputs, take the sender, drop the request, return."""
        for request in requests:
            responder = self._io.TritonResponder(request.get_response_sender(), self._batched, self._empty_final)
            identity = Identity("")
            try:
                parameters = self._io.parameters_of(request)
                identity = self._io.identity_of(request, parameters)
                most = self._backend.most_items
                self._backend.submit(
                    self._io.read_request(request, parameters, identity, self._batched, most), responder
                )
            except RequestError as error:
                self._backend.refuse(responder, error, identity)
            except (
                Exception
            ):  # must not reach Triton: it would end every request of this call, those already answered too
                log.exception("request %s could not be taken", identity)
                self._backend.refuse(responder, internal(identity.id), identity)

    def is_ready(self) -> bool:
        """Whether the engine is up (asked by Triton 26.03 and later)."""
        return self._backend.ready()

    def finalize(self) -> None:
        """End what is left, then the engine."""
        control = getattr(self, "_control", None)
        if control is not None:
            control.stop(timeout_s=2.0)
        backend = getattr(self, "_backend", None)
        starting = getattr(self, "_starting", None)
        if backend is not None:
            backend.stop()
        elif starting is not None:
            starting.stop()
        in_use = getattr(self, "_in_use", None)
        if in_use is not None:
            in_use.close()
