"""OpenVINO's grammar compiler away from the engine, and the form in which OpenVINO takes a guide.

OpenVINO GenAI compiles a grammar inside `step()`; one that does not compile raises there, and from then on every step
of that pipeline raises. Its Python API offers no way to compile alone. So this opens a pipeline of the same version
with the same tokenizer and the same vocabulary on a model that is a few lines of IR (`probe_model`): one request with a
grammar compiles it for real, in milliseconds, where nobody is harmed.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai
from openvino import opset13 as ops
from openvino.op.util import Variable, VariableInfo

from inflight.engines.base import Guide
from inflight.grammar.nodes import GrammarError
from inflight.grammar.prepare import prepare

HEAD_SIZE = 16
PROBE_TOKENS = 8  # written under the grammar after it was compiled
SELF_TEST = 'root ::= "a" | "b"\n'
_BLOCKS = 16
_SOURCE_PLACE = re.compile(r"^.*?\.(?:cc|cpp|h|hpp):\d+:?\s*")


def structured_output(guide: Guide) -> Any:
    """OpenVINO's `StructuredOutputConfig`. An `ebnf_grammar` goes as it is: the backend has prepared and checked it.
    Other kinds are prepared here; raises `GrammarError`.
    """
    config = openvino_genai.StructuredOutputConfig()
    config.grammar = guide.text if guide.kind == "ebnf_grammar" else prepare(guide.kind, guide.text)
    return config


def can_be_guided(folder: Path, stop_token_ids: tuple[int, ...]) -> bool:
    """Whether guides work with an engine directory: OpenVINO needs its tokenizer, and a token that ends a text."""
    return bool(stop_token_ids) and (folder / "openvino_tokenizer.xml").is_file()


class OpenVinoCompiler:
    """See the module's text. Not thread-safe."""

    def __init__(self, folder: Path) -> None:
        """Raises `GrammarError` when this model's tokenizer cannot be guided."""
        config = json.loads((folder / "config.json").read_text())
        self._folder = Path(tempfile.mkdtemp(prefix="inflight-guides-"))  # 0700
        try:
            openvino.save_model(
                probe_model(int(config["vocab_size"])), self._folder / "openvino_model.xml", compress_to_fp16=False
            )
            for path in folder.iterdir():
                if not path.name.startswith("openvino_model"):
                    os.symlink(path, self._folder / path.name)
            self._pipeline: Any = self._open()
        finally:
            # Loaded is loaded: nothing is read from the folder later, and a killed process cannot tidy up.
            shutil.rmtree(self._folder, ignore_errors=True)
        self._next_id = 0
        self._broken = False
        try:
            self.compile(SELF_TEST)
        except GrammarError as error:
            raise GrammarError(f"cannot be used with this model's tokenizer ({error})") from None

    def _open(self) -> Any:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.num_kv_blocks = _BLOCKS
        scheduler.max_num_seqs = 1
        scheduler.max_num_batched_tokens = 32
        properties = {"INFERENCE_NUM_THREADS": 1, "KV_CACHE_PRECISION": "u8"}
        return openvino_genai.ContinuousBatchingPipeline(str(self._folder), scheduler, "CPU", properties)

    def compile(self, grammar: str) -> None:
        """Compile, and write a few tokens under the grammar. Raises `GrammarError` with the compiler's own sentence;
        then this compiler is broken and must not be used again (`broken`).
        """
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = PROBE_TOKENS
        config.structured_output_config = structured_output(Guide("ebnf_grammar", grammar))
        prompt = openvino.Tensor(np.zeros((1, 1), dtype=np.int64))
        self._next_id += 1
        try:
            handle = self._pipeline.add_request(self._next_id, prompt, config)
            while self._pipeline.has_non_finished_requests():
                self._pipeline.step()
                while handle.can_read():
                    handle.read()
        except RuntimeError as error:
            self._broken = True
            if "bad_alloc" in str(error):
                raise MemoryError from None
            raise GrammarError(f"does not compile: {_sentence(str(error))}") from None

    @property
    def broken(self) -> bool:
        """Whether a grammar has failed: OpenVINO's pipeline is of no use after that."""
        return self._broken

    def close(self) -> None:
        """Free the pipeline."""
        self._pipeline = None
        with contextlib.suppress(Exception):
            gc.collect()


def _sentence(message: str) -> str:
    """The last line of an OpenVINO error without places in its source."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return _SOURCE_PLACE.sub("", lines[-1])[:300] if lines else "the compiler gives no reason"


def probe_model(vocab_size: int) -> openvino.Model:
    """A language model of one attention head, in the shape that OpenVINO's paged-attention pass looks for.

    Inputs input_ids, attention_mask, position_ids [batch, tokens] and beam_idx [batch]; output logits
    [batch, tokens, vocab_size]; keys and values are states. Its weights are arbitrary; logits are small, so that the
    grammar alone decides what is written.
    """
    ids, mask, position = (_input(name, 2, np.int64) for name in ("input_ids", "attention_mask", "position_ids"))
    beams = _input("beam_idx", 1, np.int32)
    weights = np.random.default_rng(0).standard_normal((vocab_size, HEAD_SIZE)).astype(np.float16)
    table = ops.convert(ops.constant(weights), "f32")
    place = ops.unsqueeze(ops.sin(ops.convert(position, "f32")), _ints(-1))
    hidden = ops.add(ops.gather(table, ids, _ints(0)), place)
    heads = ops.transpose(ops.reshape(hidden, _ints([0, 0, 1, HEAD_SIZE]), True), _ints([0, 2, 1, 3]))
    batch = ops.gather(ops.shape_of(ids, "i64"), _ints([0]), _ints(0))
    assigns: list[Any] = []

    def with_past(kind: str) -> Any:
        info = VariableInfo()
        info.data_shape = openvino.PartialShape([-1, 1, -1, HEAD_SIZE])
        info.data_type = openvino.Type.f32
        info.variable_id = f"past_key_values.0.{kind}present.0.{kind}"
        variable = Variable(info)
        empty = ops.broadcast(ops.constant(np.float32(0)), ops.concat([batch, _ints([1, 0, HEAD_SIZE])], 0))
        past = ops.gather(ops.read_value(empty, variable), beams, _ints(0))
        both = ops.concat([past, heads], -2)
        assigns.append(ops.assign(both, variable))
        return both

    wide_mask = ops.unsqueeze(ops.unsqueeze(ops.convert(mask, "f32"), _ints(1)), _ints(1))
    keys, values = with_past("key"), with_past("value")
    attended = ops.scaled_dot_product_attention(heads, keys, values, wide_mask, causal=False)
    merged = ops.reshape(ops.transpose(attended, _ints([0, 2, 1, 3])), _ints([0, 0, HEAD_SIZE]), True)
    logits = ops.matmul(ops.add(hidden, merged), table, False, True)
    logits.output(0).get_tensor().set_names({"logits"})
    return openvino.Model([ops.result(logits)], assigns, [ids, mask, position, beams], "guide_probe")


def _input(name: str, rank: int, kind: Any) -> Any:
    parameter = ops.parameter([-1] * rank, kind, name=name)
    parameter.output(0).get_tensor().set_names({name})
    return parameter


def _ints(values: int | list[int]) -> Any:
    return ops.constant(np.array(values, dtype=np.int64))
