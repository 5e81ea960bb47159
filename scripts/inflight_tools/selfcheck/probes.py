"""What only a running TensorRT-LLM shows: what is assumed, from which source, and the question that finds out.

    python -m inflight_tools.selfcheck.probes OUTPUT.jsonl [ENGINE] [--without NAME,NAME]

The table of docs/engines/tensorrt_llm.md is made of `PROBES`. They run in a process of their own, which may hang or
crash: a line is written when a question begins and one when it is answered, so that `selfcheck.trtllm` can blame the
right one and go on with the rest.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from build_engine import hf_config
from build_engine.planning.roofline import Parallel
from build_engine.tensorrt import compile as compiler
from inflight.engines.tensorrt_llm.create import make_executor
from inflight_tools.common.tiny_models import LLAMA
from inflight_tools.selfcheck.facts import TABLE, profile_for
from inflight_tools.selfcheck.probes_of_engine import (
    after_cancel,
    beyond_the_context,
    cut_to_the_room,
    elapsed_wait,
    idle_statistics,
    plain_answer,
    quiet_executor,
)

HELP_S = 180


class Absent(Exception):
    """The release has not what would be asked; the message says what."""


@dataclass(frozen=True, slots=True)
class Probe:
    """`ask` gets what is installed (`Library`) or, `of_engine`, an executor. It returns what came instead of what is
    assumed, or nothing; it may raise anything.
    """

    name: str
    assumed: str
    source: str
    ask: Callable[[Any], str]
    of_engine: bool = False


class Library:
    """The installed package. Importing it starts MPI, so that it is done in the probes' own process only."""

    def __init__(self) -> None:
        self.package = importlib.import_module("tensorrt_llm")
        self.executor = importlib.import_module("tensorrt_llm.bindings.executor")

    def bound(self, name: str) -> Any:
        """A class of the bindings. Raises `Absent`."""
        found = getattr(self.executor, name, None)
        if found is None:
            raise Absent(f"this release has no {name}")
        return found


def refused(what: str, make: Callable[[], Any], kinds: tuple[type[Exception], ...] = (TypeError,)) -> str:
    """Empty when `make` raises one of `kinds`."""
    try:
        make()
    except kinds:
        return ""
    except Exception as error:  # noqa: BLE001 — another refusal than the assumed one is the answer
        return f"{what} raises {type(error).__name__}: {error}"
    return f"{what} is taken"


def spawn(_: Library) -> str:
    from mpi4py import MPI

    child = "from mpi4py import MPI; MPI.Comm.Get_parent().Disconnect()"
    MPI.COMM_SELF.Spawn(sys.executable, ["-c", child], maxprocs=1).Disconnect()
    return ""


def lora_shapes(library: Library) -> str:
    import torch

    make = library.bound("LoraConfig")
    weights, config = torch.zeros((2, 8), dtype=torch.float16), torch.zeros((2, 3), dtype=torch.int32)
    make(1, weights=weights, config=config)
    return refused(
        "a third dimension", lambda: make(1, weights=weights[None], config=config[None]), (RuntimeError,)
    ) or refused("an INT64 config", lambda: make(1, weights=weights, config=config.long()), (RuntimeError,))


def runtime_defaults(library: Library) -> str:
    made = library.bound("RuntimeDefaults")(max_attention_window=[16])
    return refused("a copy of it", lambda: copy.deepcopy(made)) or refused("JSON of it", lambda: json.dumps(made))


def none_and_numpy(library: Library) -> str:
    import numpy

    profiles = json.loads((TABLE / "profiles.json").read_text(encoding="utf-8"))
    if not profiles[profile_for(str(library.package.__version__), profiles)]["strict"]:
        raise Absent("this release has pybind11, which takes both")
    make = library.bound("Request")
    return refused("streaming=None", lambda: make([1], 1, streaming=None)) or refused(
        "numpy's integer", lambda: make([1], numpy.int32(1))
    )


def silent_attribute(library: Library) -> str:
    config = library.bound("ExecutorConfig")()
    config.max_num_tokenz = 3
    return ""


def lookahead(library: Library) -> str:
    config = library.bound("LookaheadDecodingConfig")
    sizes = [
        int(getattr(config, f"get_default_lookahead_decoding_{name}")())
        for name in ("window", "ngram", "verification_set")
    ]
    found = tuple(config(*sizes).calculate_speculative_resource())
    window, ngram, guesses = sizes
    drafts = (0 if ngram == 1 else ngram - 2) + (window - 1 + guesses) * (ngram - 1)
    return "" if drafts in found else f"{sizes} need {found}, not {drafts} draft tokens"


def ngram(library: Library) -> str:
    api = importlib.import_module("tensorrt_llm.llmapi")
    if not hasattr(api, "NGramDecodingConfig"):
        raise Absent("this release has no NGramDecodingConfig")
    api.NGramDecodingConfig(max_draft_len=4, max_matching_ngram_size=2)
    return ""


def llm_surface(library: Library) -> str:
    api, llm = importlib.import_module("tensorrt_llm.llmapi"), getattr(library.package, "LLM", None)
    if llm is None or not hasattr(llm, "generate_async"):
        raise Absent("this release has no PyTorch flow")
    lacking = [name for name in ("get_stats_async", "shutdown") if not hasattr(llm, name)]
    api.SamplingParams(max_tokens=1, include_stop_str_in_output=True, stop_token_ids=[1], logprobs=1)
    return f"LLM lacks {', '.join(lacking)}" if lacking else ""


def compiler_flags(_: Library) -> str:
    program = shutil.which(compiler.PROGRAM)
    if program is None:
        raise Absent("trtllm-build is not on PATH")
    done = subprocess.run(
        [program, "--help"], capture_output=True, encoding="utf-8", errors="replace", timeout=HELP_S, check=False
    )
    config = hf_config.parse({"architectures": ["LlamaForCausalLM"], "model_type": "llama", **LLAMA})
    limits = compiler.CompileLimits(8, 127, 128, 1024, 1, "lookahead", 7)
    flags = compiler.choose_flags(config, "fp8", "fp8", Parallel(2), limits)
    lacking = [name for name in flags if f"--{name}" not in done.stdout]
    return f"trtllm-build does not know --{', --'.join(lacking)}" if lacking else ""


PROBES = (
    Probe(
        "spawn",
        "MPI_Comm_spawn works: checkpoints start even one rank with it (not under OpenMPI 5)",
        "executor.py at ed53795b; ai-dynamo/dynamo pull request 15060",
        spawn,
    ),
    Probe(
        "lora_shapes",
        "adapters are 2-D tensors in CPU memory, their config of INT32; anything else is a RuntimeError",
        "loraConfig.cpp at 3585984b",
        lora_shapes,
    ),
    Probe(
        "runtime_defaults",
        "RuntimeDefaults is neither copied nor written as JSON: `trtllm-build` fails on a checkpoint with it",
        "executorConfig.cpp at c40f1157; issue 2912",
        runtime_defaults,
    ),
    Probe(
        "none_and_numpy",
        "nanobind takes neither None for a bool nor numpy's scalars (releases before 1.1, with pybind11, do)",
        "request.cpp at ac456dca; tensorrtllm_backend pull request 856",
        none_and_numpy,
    ),
    Probe(
        "silent_attribute",
        "ExecutorConfig takes an attribute that it does not have without a word",
        "executorConfig.cpp at c40f1157 (dynamic_attr)",
        silent_attribute,
    ),
    Probe(
        "lookahead",
        "lookahead's default sizes, and how many draft tokens they need",
        "request.cpp at ac456dca; speculativeDecodingConfig.cpp (copy 251636740)",
        lookahead,
    ),
    Probe(
        "ngram",
        "NGramDecodingConfig takes max_matching_ngram_size",
        "llm_args.py (copies 1520735490 and 1090804222)",
        ngram,
    ),
    Probe(
        "llm_surface",
        "the PyTorch flow has get_stats_async, and SamplingParams has include_stop_str_in_output",
        "result.py (copy 1063746606), llmapi/utils.py at cc4777e9",
        llm_surface,
    ),
    Probe("compiler_flags", "`trtllm-build` knows every flag that we give", "build.py at 65f1d153", compiler_flags),
    Probe(
        "plain_answer",
        "a whole answer begins with the prompt unless it is excluded, and has no end token",
        "executor.h at 0ca2690, release 0.15 (outputConfig)",
        plain_answer,
        True,
    ),
    Probe(
        "after_cancel",
        "a cancelled request has one more response, the final one, with the reason CANCELLED",
        "executor.h at 0ca2690, release 0.15 (cancelRequest)",
        after_cancel,
        True,
    ),
    Probe(
        "elapsed_wait",
        "waiting in vain gives an empty list after the time-out",
        "executor.h at 0ca2690, release 0.15 (awaitResponses)",
        elapsed_wait,
        True,
    ),
    Probe(
        "beyond_the_context",
        "a prompt beyond the engine's limit is an exception or an answer with an error, and harms nobody else",
        "llmRequest.h (validate, copy 572863852)",
        beyond_the_context,
        True,
    ),
    Probe(
        "cut_to_the_room",
        "max_tokens beyond the context is cut without a word, and the answer ends by LENGTH",
        "llmRequest.h (validate, copy 572863852)",
        cut_to_the_room,
        True,
    ),
    Probe(
        "idle_statistics",
        "statistics are given once, and an idle engine has none",
        "executor.h at 0ca2690, release 0.15 (getLatestIterationStats)",
        idle_statistics,
        True,
    ),
)


ASKED_ELSEWHERE = (
    (
        "names, defaults, enums and strictness of the bindings are those of the table",
        "signatures.json and profiles.json, with file and commit",
        "facts",
    ),
    (
        "sampling without top_k and top_p would be greedy, with ours it follows the seed",
        "samplingConfig.cpp",
        "contract: the same seed gives the same tokens",
    ),
    (
        "the end token is no part of the output, stop words are cut only where that was not switched off",
        "result.py (copy 1063746606)",
        "contract: max_tokens is kept, a stop string cuts the text",
    ),
    (
        "log-probabilities are given for the new tokens, one each",
        "sampler.py (copies 440197692 and 9889077999)",
        "contract: log-probabilities are those of the tokens",
    ),
    ("beams come best first, whole", "executorImpl.cpp at b35ac1b6", "contract: beams come best first"),
    ("a guide runs in xgrammar", "bindings.cpp at 01315fdb", "contract: guided decoding follows a schema"),
    (
        "a client that leaves costs its own request and no other",
        "executor.h at 0ca2690, release 0.15 (cancelRequest)",
        "contract: a client that leaves harms nobody",
    ),
    (
        "a checkpoint that ModelOpt wrote without TensorRT-LLM is compiled to what `verify` predicted",
        "modeling_utils.py (copy 1189552800)",
        "perplexity, transformers",
    ),
    (
        "INT8 and INT4 do not compile on compute capability 10.x",
        "builder.py (copies 9822888045 and 205252225)",
        "nothing: refused before; the build of such a recipe with `trtllm-build` itself would tell",
    ),
    (
        "ranks of several GPUs start under mpirun and end together",
        "executor.cpp at 1dd50d07",
        "perplexity and contract of an engine of several ranks (`--artifact`)",
    ),
)
"""Behaviours that other parts of the self-check ask for: what is assumed, from where, and which part."""


def main() -> int:
    """0 however they are answered."""
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("engine", type=Path, nargs="?")
    parser.add_argument("--without", default="")
    options = parser.parse_args()
    done = set(options.without.split(","))
    asked = [probe for probe in PROBES if probe.of_engine == (options.engine is not None) and probe.name not in done]
    with options.output.open("a", encoding="utf-8") as lines:

        def write(**line: Any) -> None:
            lines.write(json.dumps(line) + "\n")
            lines.flush()

        write(begun="start")  # importing, or loading the engine
        library = Library()
        loaded = quiet_executor(library.executor, make_executor, options.engine) if options.engine else None
        for probe in asked:
            write(begun=probe.name)
            try:
                write(name=probe.name, problem=probe.ask(loaded or library))
            except Absent as absent:
                write(name=probe.name, problem="", note=str(absent))
            except Exception as error:  # noqa: BLE001 — whatever the library raises is the answer
                write(name=probe.name, problem=f"{type(error).__name__}: {error}")
        write(begun="end")
        if loaded is not None:
            loaded.close()
        write(name="end", problem="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
