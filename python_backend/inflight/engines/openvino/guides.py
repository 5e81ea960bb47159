"""OpenVINO's grammar compiler away from the engine, and the form in which OpenVINO takes a guide.

OpenVINO GenAI compiles a grammar inside `step()`; one that does not compile raises there, and from then on every step
of that pipeline raises. Its Python API offers no way to compile alone. So this opens a pipeline of the same version
with the same tokenizer and the same vocabulary on a model that is a few lines of IR (`probe_model`): one request with a
grammar compiles it for real, in milliseconds, where nobody is harmed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai
from openvino import opset13 as ops
from openvino.op.util import Variable, VariableInfo

from inflight.engines.base import Guide
from inflight.engines.run_folder import RunFolder
from inflight.errors import LoadError, last_line
from inflight.grammar.nodes import GrammarError
from inflight.grammar.prepare import prepare
from inflight.model.files import count_of, read_json_object

HEAD_SIZE = 16
PROBE_TOKENS = 8  # written under the grammar after it was compiled
SELF_TEST = 'root ::= "a" | "b"\n'
MAX_COMPILED_TEXT = 256 << 10  # characters of grammars after which the engine forgets them: about 250 MB
_BLOCKS = 16
_PROPERTIES = {"INFERENCE_NUM_THREADS": 1, "KV_CACHE_PRECISION": "u8"}
_SOURCE_PLACE = re.compile(r"^.*?\.(?:cc|cpp|h|hpp):\d+:?\s*")


def structured_output(guide: Guide) -> Any:
    """OpenVINO's `StructuredOutputConfig`. An `ebnf_grammar` goes as it is: the backend has prepared and checked it.
    Other kinds are prepared here; raises `GrammarError`.
    """
    config = openvino_genai.StructuredOutputConfig()
    config.grammar = guide.text if guide.kind == "ebnf_grammar" else prepare(guide.kind, guide.text, guide.thought)
    return config


def can_be_guided(folder: Path, stop_token_ids: tuple[int, ...]) -> bool:
    """Whether guides work with an engine directory: OpenVINO needs its tokenizer, and a token that ends a text."""
    return bool(stop_token_ids) and (folder / "openvino_tokenizer.xml").is_file()


class OpenVinoCompiler:
    """See the module's text. Not thread-safe."""

    def __init__(self, folder: Path) -> None:
        """Raises `GrammarError` when this model's tokenizer cannot be guided."""
        try:
            self.vocab_size = count_of(read_json_object(folder, "config.json"), "vocab_size")
        except LoadError as error:
            raise GrammarError(str(error)) from None
        self._next_id = 0
        self.broken = False  # a grammar has failed: OpenVINO's pipeline is of no use after that
        with _probe_folder(folder, self.vocab_size, with_tokenizer=True) as probe:
            self._pipeline: Any = openvino_genai.ContinuousBatchingPipeline(
                str(probe), _scheduler(), "CPU", dict(_PROPERTIES)
            )
        try:
            self.compile(SELF_TEST)
        except GrammarError as error:
            raise GrammarError(f"cannot be used with this model's tokenizer ({error})") from None

    def compile(self, grammar: str) -> None:
        """Compile, and write a few tokens under the grammar. Raises `GrammarError` with the compiler's own sentence;
        after that this compiler is `broken`.
        """
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = PROBE_TOKENS
        config.structured_output_config = structured_output(Guide("ebnf_grammar", grammar))
        self._next_id += 1
        try:
            _write(self._pipeline, self._next_id, config)
        except RuntimeError as error:
            self.broken = True
            if "bad_alloc" in str(error):
                raise MemoryError from None
            raise GrammarError(f"does not compile: {_sentence(str(error))}") from None

    def close(self) -> None:
        """Free the pipeline."""
        self._pipeline = None


class CompiledGrammars:
    """Keeps an engine's memory from growing with every new grammar. Used by the engine's thread.

    OpenVINO keeps what it has compiled (megabytes for a schema) in the tokenizer's controller and never forgets. But it
    makes a new controller when a model with another size of vocabulary samples with the same tokenizer. So after enough
    new grammars a model of one token more writes one token, which takes a few milliseconds; texts under way keep the
    grammars they use.
    """

    def __init__(self, pipeline: Any, folder: Path, vocab_size: int, most_text: int = MAX_COMPILED_TEXT) -> None:
        self._tokenizer = pipeline.get_tokenizer()
        self._folder = folder
        self._vocab_size = vocab_size
        self._most_text = most_text
        self._seen: set[bytes] = set()
        self._text = 0
        self._other: Any = None
        self.forgotten = 0

    def use(self, guide: Guide) -> None:
        """A request with this guide is about to start. Raises OSError or RuntimeError when forgetting fails."""
        key = hashlib.sha256(f"{guide.kind}\0{guide.text}".encode()).digest()
        if key in self._seen:
            return
        if self._text + len(guide.text) > self._most_text:
            self._forget()
            self._seen.clear()
            self._text = 0
        self._seen.add(key)
        self._text += len(guide.text)

    def _forget(self) -> None:
        if self._other is None:
            with _probe_folder(self._folder, self._vocab_size + 1, with_tokenizer=False) as probe:
                self._other = openvino_genai.ContinuousBatchingPipeline(
                    str(probe), self._tokenizer, _scheduler(), "CPU", **_PROPERTIES
                )
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = 1
        self.forgotten += 1
        try:
            _write(self._other, self.forgotten, config)
        except Exception:
            self._other = None  # OpenVINO's pipeline is of no use after that; the next guide makes another
            raise


@contextlib.contextmanager
def _probe_folder(folder: Path, vocab_size: int, with_tokenizer: bool) -> Iterator[Path]:
    """A private folder with a probe model beside the engine's tokenizer, for as long as it takes to load it."""
    with RunFolder() as probe:
        openvino.save_model(probe_model(vocab_size), probe / "openvino_model.xml", compress_to_fp16=False)
        for path in folder.iterdir():
            is_tokenizer = path.name.startswith(("openvino_tokenizer", "openvino_detokenizer"))
            if not path.name.startswith("openvino_model") and (with_tokenizer or not is_tokenizer):
                os.symlink(path, probe / path.name)
        yield probe


def _scheduler() -> Any:
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.num_kv_blocks = _BLOCKS
    scheduler.max_num_seqs = 1
    scheduler.max_num_batched_tokens = 32
    return scheduler


def _write(pipeline: Any, request_id: int, config: Any) -> None:
    """One request, from a prompt of one token to its end."""
    handle = pipeline.add_request(request_id, openvino.Tensor(np.zeros((1, 1), dtype=np.int64)), config)
    while pipeline.has_non_finished_requests():
        pipeline.step()
        while handle.can_read():
            handle.read()


def _sentence(message: str) -> str:
    """The last line of an OpenVINO error without places in its source."""
    return _SOURCE_PLACE.sub("", last_line(message)) if message.strip() else "the compiler gives no reason"


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
