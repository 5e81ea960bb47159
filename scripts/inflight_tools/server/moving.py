"""Turns the command line of another server into ours, and NVIDIA's model repositories into an Inflight model.

    inflight import vllm serve Qwen/Qwen3-0.6B --port 8000 --max-model-len 4096
    inflight import text-generation-launcher --model-id DIR --max-total-tokens 2048
    inflight import openai_frontend --model-repository REPO --openai-port 9000
    inflight import TRITON_MODEL_REPO OUTPUT_REPO

The first three print what to start instead, and what of it has no counterpart: nothing is started or written. Exit
status: 0, or 1 where something has none.
"""

from __future__ import annotations

import importlib
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from inflight_tools.common.report import Failure, run_main

KEYS_FILE = "api-keys"
KEYS = f"write the keys into {KEYS_FILE}, one a line; they guard every route but probes and the playground's files"
FOUND = "found by itself"
NEVER = "never done here: code of a checkpoint is not run"


@dataclass(frozen=True)
class Flag:
    """One flag of another server. `{}` in `serve` is its value.

    `takes`: how many values it has. `option`: of `engine_options` (engine vllm); `parameter`: of config.pbtxt.
    """

    names: tuple[str, ...]
    takes: int = 1
    serve: str = ""
    option: str = ""
    parameter: str = ""
    note: str = ""
    lost: bool = False  # it has no counterpart, and somebody relies on it

    @property
    def becomes(self) -> str:
        """For a table."""
        said = [f"`inflight serve {self.serve}`"] if self.serve else []
        said += [f"engine option `{self.option}`"] if self.option else []
        said += [f"model parameter `{self.parameter}`"] if self.parameter else []
        return ", ".join(said).replace("{}", "…") or ("nothing" if self.lost else "not needed")


def _flag(names: str, takes: int = 1, **what: object) -> Flag:
    return Flag(tuple(names.split()), takes, **what)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Program:
    """Another server: how its command begins, and its flags."""

    title: str
    starts: tuple[tuple[str, ...], ...]
    positional: str  # what its first word without a flag becomes
    flags: tuple[Flag, ...]


_ENGINE_FLAGS = (
    _flag("--tensor-parallel-size -tp", option="tensor_parallel_size"),
    _flag("--pipeline-parallel-size -pp", option="pipeline_parallel_size"),
    _flag("--max-model-len", option="max_seq_len"),
    _flag("--max-num-seqs", parameter="max_running"),
    _flag("--max-num-batched-tokens", option="max_batched_tokens"),
    _flag("--gpu-memory-utilization", option="gpu_memory_utilization"),
    _flag("--dtype", option="dtype"),
    _flag("--quantization -q", option="quantization"),
    _flag("--kv-cache-dtype", option="kv_cache_dtype"),
    _flag("--block-size", option="block_size"),
    _flag("--max-logprobs", option="max_logprobs"),
    _flag("--enforce-eager", 0, option="enforce_eager"),
    _flag("--enable-prefix-caching", 0, note="the default"),
    _flag("--no-enable-prefix-caching", 0, option="prefix_caching", note="false"),
    _flag("--enable-lora", 0, note="adapters are on where lora_dir names a folder"),
    _flag("--max-loras", option="max_loras"),
    _flag("--max-lora-rank", option="max_lora_rank"),
    _flag("--trust-remote-code", 0, note=NEVER, lost=True),
)
VLLM = Program(
    "`vllm serve`",
    (
        ("vllm", "serve"),
        ("python", "-m", "vllm.entrypoints.openai.api_server"),
        ("python3", "-m", "vllm.entrypoints.openai.api_server"),
    ),
    "{}",
    (
        _flag("--model", serve="{}"),
        _flag("--served-model-name", serve="--name {}"),
        _flag("--host", serve="--host {}", note="127.0.0.1 where none is named; vLLM listens everywhere"),
        _flag("--port", serve="--gateway-port {}", note="8080 where none is named; vLLM has 8000, here Triton's HTTP"),
        _flag("--api-key", serve=f"--api-keys {KEYS_FILE}", note=KEYS),
        _flag("--ssl-certfile", serve="--tls-cert {}"),
        _flag("--ssl-keyfile", serve="--tls-key {}"),
        _flag("--api-server-count", serve="--workers {}"),
        _flag("--data-parallel-size -dp", note="one server each, and `--triton` once for each of them", lost=True),
        *_ENGINE_FLAGS,
        _flag("--lora-modules", note="engine option lora_dir: a folder with one folder per adapter", lost=True),
        _flag("--chat-template", parameter="chat_template", note="a file in the model's version folder"),
        _flag("--enable-auto-tool-choice", 0, note="calls are read whenever a request has tools"),
        _flag("--tool-call-parser", note=f"{FOUND}; or model parameter tool_format"),
        _flag("--reasoning-parser", note=f"{FOUND}; or model parameter reasoning_format"),
        _flag("--enable-prompt-tokens-details", 0, note="told where the engine knows them"),
        _flag("--enable-request-id-headers", 0, note="always sent"),
        _flag("--uvicorn-log-level", note="one line a request; `--log-format json`"),
        _flag("--default-chat-template-kwargs", note="clients send chat_template_kwargs", lost=True),
        _flag("--allowed-origins", note="`--cors-origin` once for each of them; vLLM lets every page ask", lost=True),
        _flag("--root-path", note="let the proxy cut the prefix", lost=True),
    ),
)
TGI = Program(
    "`text-generation-launcher` (TGI)",
    (("text-generation-launcher",), ("tgi",)),
    "",
    (
        _flag("--model-id", serve="{}"),
        _flag("--hostname", serve="--host {}", note="127.0.0.1 where none is named; TGI listens everywhere"),
        _flag("--port -p", serve="--gateway-port {}", note="8080 where none is named; TGI has 3000"),
        _flag("--api-key", serve=f"--api-keys {KEYS_FILE}", note=KEYS),
        _flag("--max-concurrent-requests", serve="--max-requests {}", note="1024 where none is named; TGI has 128"),
        _flag("--payload-limit", serve="--max-body-bytes {}", note="4 MiB where none is named; TGI has 2 MB"),
        _flag("--json-output", 0, serve="--log-format json"),
        _flag("--num-shard", option="tensor_parallel_size"),
        _flag("--sharded", note="the engine option tensor_parallel_size says it", lost=True),
        _flag("--quantize", note="what is quantized is found; or `inflight serve --quantization`", lost=True),
        _flag("--dtype", option="dtype"),
        _flag("--kv-cache-dtype", option="kv_cache_dtype"),
        _flag("--cuda-memory-fraction", option="gpu_memory_utilization"),
        _flag("--max-total-tokens", option="max_seq_len"),
        _flag("--max-input-tokens --max-input-length", note="a prompt may fill the context but for one token"),
        _flag("--max-batch-size", parameter="max_running"),
        _flag("--max-batch-prefill-tokens", option="max_batched_tokens"),
        _flag("--max-batch-total-tokens", note="the KV pool: kv_cache_gb of the engine's options", lost=True),
        _flag("--waiting-served-ratio", note="requests join at every step"),
        _flag("--max-waiting-tokens", note="requests join at every step"),
        _flag("--max-best-of", note="the engine's own limit"),
        _flag("--max-stop-sequences", note="as many as the body holds"),
        _flag("--max-top-n-tokens", option="max_logprobs"),
        _flag("--validation-workers", note="prompts are read beside the engine"),
        _flag("--tokenizer-config-path", note="its template as a file: model parameter chat_template", lost=True),
        _flag("--lora-adapters", note="engine option lora_dir: a folder with one folder per adapter", lost=True),
        _flag("--speculate", option="num_draft_tokens", note="add the engine option speculative: ngram"),
        _flag("--otlp-endpoint", note="INFLIGHT_TRACING=1 and OpenTelemetry's own variables: docs/operating.md"),
        _flag("--trust-remote-code", 0, note=NEVER, lost=True),
        _flag("--disable-grammar-support", 0, note="guides cost nothing where none is asked for"),
        _flag("--usage-stats", note="nothing is ever sent"),
        _flag("--cors-allow-origin", serve="--cors-origin {}", note="TGI lets every page ask where none is named"),
    ),
)
TRITON = Program(
    "Triton's OpenAI front end",
    (("openai_frontend",),),
    "",
    (
        _flag(
            "--model-repository",
            serve="--repository {}",
            note="of Inflight models; `inflight import REPO OUTPUT` makes one of TensorRT-LLM's",
        ),
        _flag("--openai-port", serve="--gateway-port {}", note="8080 where none is named; there 9000"),
        _flag("--host", serve="--host {}", note="127.0.0.1 where none is named; there 0.0.0.0"),
        _flag("--enable-kserve-frontends", 0, note="always there: Triton runs beside the gateway"),
        _flag("--kserve-http-port", serve="--http-port {}"),
        _flag("--kserve-grpc-port", serve="--grpc-port {}"),
        _flag("--tokenizer", note="the model's own"),
        _flag("--backend", note="the gateway asks the models"),
        _flag("--lora-separator", note="an adapter is a model of its own name", lost=True),
        _flag("--tool-call-parser", note=f"{FOUND}; or model parameter tool_format"),
        _flag("--chat-template", parameter="chat_template", note="a file in the model's version folder"),
        _flag("--default-max-tokens", note="a chat may fill the context; a completion has 16, as there"),
        _flag("--openai-restricted-api", 3, serve=f"--api-keys {KEYS_FILE}", note=KEYS),
        _flag("--tritonserver-log-verbose-level", serve="-- --log-verbose={}"),
        _flag("--uvicorn-log-level", note="one line a request; `--log-format json`"),
    ),
)
PROGRAMS = (TRITON, TGI, VLLM)


@dataclass
class Moved:
    """What to start instead of a command, and what to know."""

    serve: list[str] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)  # to tritonserver
    options: dict[str, object] = field(default_factory=dict)
    parameters: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def command(self) -> str:
        """As a shell takes it."""
        return shlex.join(["inflight", "serve", *self.serve, *(["--", *self.passed] if self.passed else [])])


def program_of(words: Sequence[str]) -> tuple[Program, list[str]] | None:
    """Which server a command line starts, and its arguments; None: none that is known here."""
    for program in PROGRAMS:
        for start in program.starts:
            if tuple(words[: len(start)]) == start:
                return program, list(words[len(start) :])
    return None


def translate(program: Program, words: Sequence[str]) -> Moved:
    """Our command for another server's arguments. Raises `Failure` where a flag lacks its value."""
    moved = Moved()
    known = {name: flag for flag in program.flags for name in flag.names}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, joined, value = word.partition("=")
        name = name if not name.startswith("--") else name.replace("_", "-")
        flag = known.get(name)
        if flag is None and not word.startswith("-"):
            if program.positional and not moved.serve:
                moved.serve.append(program.positional.format(word))
            else:
                moved.lost.append(f"{word}: what this belongs to is not known here")
            continue
        if flag is None:
            if rest and not joined and not rest[0].startswith("-"):
                rest.pop(0)
            moved.lost.append(f"{name}: no counterpart is known; docs/engines.md has the engines' options")
            continue
        values = [value] if joined else [rest.pop(0) for _ in range(min(flag.takes, len(rest)))]
        if len(values) < flag.takes:
            raise Failure(f"{name} lacks its value.")
        _take(moved, flag, name, values[0] if values else "")
    if moved.options or program is VLLM:  # the options are those of that engine
        moved.serve += ["--engine", "vllm"]
    return moved


def _take(moved: Moved, flag: Flag, name: str, value: str) -> None:
    if flag.serve.startswith("-- "):
        moved.passed.append(flag.serve[3:].format(value))
    elif flag.serve:
        moved.serve += [part.format(value) for part in flag.serve.split()]
    if flag.option:
        moved.options[flag.option] = False if flag.note == "false" else _value(value)
    if flag.parameter:
        moved.parameters[flag.parameter] = value
    if flag.lost:
        moved.lost.append(f"{name}: {flag.note}")
    elif flag.note and flag.note != "false":
        moved.notes.append(f"{name}: {flag.note}")


def _value(text: str) -> object:
    """As JSON has it: a number, else the text; a flag without a value is true."""
    if not text:
        return True
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if number.is_integer() and "." not in text else number


def tables() -> str:
    """The flags side by side, for docs/moving.md."""
    lines: list[str] = []
    for program in PROGRAMS:
        lines += [f"### {program.title}", "", "| there | here | note |", "|---|---|---|"]
        for flag in program.flags:
            lines.append(f"| `{'`, `'.join(flag.names)}` | {flag.becomes} | {flag.note} |")
        lines.append("")
    return "\n".join(lines)


def _told(moved: Moved) -> int:
    print(moved.command())
    if moved.options:
        moved.parameters["engine_options"] = json.dumps(moved.options)
    if moved.parameters:
        print("\nin the model's config.pbtxt:")
        for name, value in moved.parameters.items():
            print(f'parameters {{ key: "{name}" value {{ string_value: {json.dumps(value)} }} }}')
    for title, lines in (("to know", moved.notes), ("not carried over", moved.lost)):
        if lines:
            print(f"\n{title}:")
            print("\n".join(f"  {line}" for line in lines))
    return 1 if moved.lost else 0


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Another server's command, or NVIDIA's repository."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    found = program_of(words)
    if found is not None:
        return _told(translate(*found))
    return int(importlib.import_module("inflight_tools.server.import_config").main(words, program))


if __name__ == "__main__":
    run_main(main)
