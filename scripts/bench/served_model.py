"""What a served model is made of, as far as a benchmark has to know it to build the same thing without Triton."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.arms import Prompt
from inflight.engines.factory import resolve_engine
from inflight.engines.spec import WorkerSpec
from inflight.errors import LoadError
from inflight.model.parameters import ModelConfig, parse_model_config
from inflight.request.tokenizer import TextTokenizer
from inflight_tools.clients.grpc import Connection
from inflight_tools.common.report import Failure


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model of a repository with the parameters that the running server has for it."""

    folder: Path  # the engine directory
    config: ModelConfig

    @classmethod
    def read(cls, connection: Connection, repository: Path, model: str) -> ServedModel:
        """Ask the server. Raises `Failure` when model or engine cannot be used."""
        answer = connection.check_model(model)
        parameters = {name: value["string_value"] for name, value in answer.get("parameters", {}).items()}
        try:
            config = parse_model_config(parameters)
        except LoadError as error:
            raise Failure(str(error)) from None
        return cls((repository / model / "1" / config.engine_dir).resolve(), config)

    def worker_spec(self) -> dict[str, Any]:
        """The engine process's own specification: same directory, same options. Raises `Failure`."""
        try:
            engine = resolve_engine(self.config.engine, self.folder)
        except LoadError as error:
            raise Failure(str(error)) from None
        if engine != "openvino":
            raise Failure(f"the engine of this model is {engine}: only openvino has a bare pipeline to compare with.")
        options = dict(self.config.engine_options)
        return asdict(WorkerSpec(engine, str(self.folder), options, self.config.max_running))

    def prompts(self, texts: Iterator[str], lengths: Iterator[int], count: int) -> list[Prompt]:
        """`count` prompts, each cut to the next of `lengths`, with the token ids that the backend will make of them."""
        tokenizer = TextTokenizer(self.folder)
        found = []
        for text, most in zip(texts, itertools.islice(lengths, count), strict=False):
            words = text.split(" ")
            while len(ids := tokenizer.encode(" ".join(words), add_special_tokens=True)) > most and len(words) > 1:
                words.pop()
            found.append(Prompt(" ".join(words), ids))
        return found
