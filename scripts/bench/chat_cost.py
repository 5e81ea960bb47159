#!/usr/bin/env python3
"""What chat costs: preparing a request (messages, template, tokens), and reading tool calls out of streamed text.

Medians of several repeats in one process, without a server. `--src DIR` measures another checkout's preparation, to
compare with what was there before. `--streams N` measures something else: tokens/s of N streams through the real server
from the simulated engine at full tilt, with parsers of calls and thoughts against without, in turns.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.results import write_results
from build_engine.arguments import Parser
from inflight_tools.common import option_types as types
from inflight_tools.common.report import run_main

ROOT = Path(__file__).resolve().parent.parent.parent
SMALL = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
REPEATS = 5
WAVES = 3
THOUSAND = (4, 85)  # turns, and words of each, that make a thousand tokens of a chat
NEITHER, OUTPUTS, BOTH = "neither", "neither, two outputs more", "calls and thoughts"
ARMS = (NEITHER, OUTPUTS, "calls", "thoughts", BOTH)
TOOLS = json.dumps([{"type": "function", "function": {"name": name}} for name in ("get_weather", "search")])


def five_kilobytes() -> str:
    """A template of that size: a real one, and a comment."""
    text = (ROOT / "tests/unit/request/families/qwen25.jinja").read_text(encoding="utf-8")
    return text + "{#" + "x" * (5000 - len(text)) + "#}"


def conversation(turns: int, words: int) -> bytes:
    """A chat of that many turns, as a client sends it."""
    roles = ("user", "assistant")
    text = " ".join(f"word{number % 97}" for number in range(words))
    return json.dumps([{"role": roles[turn % 2], "content": text} for turn in range(turns)]).encode()


def per_call(do: Callable[[], Any], calls: int) -> float:
    """Microseconds of processor time of a call: the median of several runs."""
    times = []
    for _ in range(REPEATS):
        began = time.process_time()
        for _ in range(calls):
            do()
        times.append((time.process_time() - began) / calls * 1e6)
    return statistics.median(times)


def preparation(engine: Path, template: str, data: bytes) -> dict[str, float]:
    """µs of each part of preparing one request. Works on checkouts from before tools, too."""
    from inflight.request.chat_template import ChatTemplate
    from inflight.request.tokenizer import TextTokenizer

    tokenizer = TextTokenizer(engine)
    chat = ChatTemplate(template, tokenizer.special_tokens)
    try:
        from inflight.request.messages import parse_messages

        def parsed() -> Any:
            return parse_messages(data, chat.features)
    except ImportError:
        from inflight.request.chat_template import parse_messages as old  # type: ignore[attr-defined]

        def parsed() -> Any:
            return old(data)

    messages = parsed()
    prompt = chat.render(messages, 1 << 24)
    tokens = tokenizer.encode(prompt, False)
    parts = {
        "parse": per_call(parsed, 200),
        "template": per_call(lambda: chat.render(messages, 1 << 24), 100),
        "tokenize": per_call(lambda: tokenizer.encode(prompt, False), 50),
    }
    try:
        from inflight.request.chat import ChatOptions
        from inflight.request.special_text import ControlTokens

        control = ControlTokens(tokenizer.library, chat.features.words)
        parts["control tokens"] = per_call(lambda: control.mark(messages, ChatOptions()), 200)
    except ImportError:
        pass
    return {"tokens": float(len(tokens)), **parts, "all": sum(parts.values())}


def reading(text: str, pieces: int) -> dict[str, float]:
    """µs per token of four characters through the parsers, and of joining them alone."""
    from inflight.answer.parts import PartsForm
    from inflight.answer.tools.forms import ToolForm

    tools = ({"type": "function", "function": {"name": "f"}},)
    cut = [text[place : place + 4] for place in range(0, 4 * pieces, 4)]
    found: dict[str, float] = {}
    for form in (ToolForm.HERMES, ToolForm.LLAMA3_JSON, ToolForm.MISTRAL, ToolForm.QWEN3_CODER):

        def run(form: ToolForm = form) -> None:
            parts = PartsForm(tools=form, schemas=tools).make()
            for piece in cut:
                parts.push(piece)
            parts.finish()
            parts.take_answer()
            parts.take_calls(whole=True)

        found[form.value] = per_call(run, 5) / len(cut)
    return found


def inputs_of(arm: str, streams: int, tokens: int, seed: str) -> list[dict[str, list[Any]]]:
    """Some requests a stream. Behind the open tag of a thought all that comes is thought.

    Calls and thoughts have an output each in every response, which costs server and client something as well: the arm
    `OUTPUTS` asks for as many that no parser fills.
    """
    from inflight_tools.load.prompts import prompts

    texts = prompts(seed, 16)
    shared: dict[str, list[Any]] = {
        "max_tokens": [tokens],
        "stream": [True],
        "ignore_eos": [True],
        "return_num_output_tokens": [True],
        **({"return_finish_reason": [True]} if arm == OUTPUTS else {}),
        **({"tools": [TOOLS]} if arm in ("calls", BOTH) else {}),
        **({"reasoning": [True]} if arm in ("thoughts", BOTH) else {}),
    }
    end = " <think>" if arm == "thoughts" else ""
    return [{"text_input": [next(texts) + end], **shared} for _ in range(WAVES * streams)]


def in_turn(repeat: int) -> tuple[str, ...]:
    """The arms of one repeat: each begins as often as any other, for a machine slows down in the course of one."""
    first = repeat % len(ARMS)
    turned = ARMS[first:] + ARMS[:first]
    return turned if repeat // len(ARMS) % 2 == 0 else turned[::-1]


def likely_median(values: Sequence[float]) -> tuple[float, float]:
    """Where the median of what `values` (sorted) were drawn from lies, with 95 %: two of them, by the sign test. Of
    fewer than six the least and the most, which is less.
    """
    count, outside, below = len(values), 0, 0.0
    while (below := below + math.comb(count, outside) / 2**count) <= 0.025:
        outside += 1
    return values[max(outside - 1, 0)], values[min(count - outside, count - 1)]


def through_the_server(options: argparse.Namespace) -> None:
    """tokens/s of every arm in turns, on one server; each against the run without a parser of its own repeat."""
    from bench.simulated_model import serving
    from bench.tracing_cost import cpu_s
    from inflight_tools.load.perf_analyzer import Load, find_perf_analyzer, measure
    from inflight_tools.load.stats import Objective, Run, summarize_run

    streams = options.streams
    engine = {"real_time": False, "max_running": streams, "max_seq_len": 1 << 16, "blocks": 1 << 20}
    model = {"max_queue_size": str(WAVES * streams), "tool_format": options.tool_format, "reasoning_format": "think"}
    found: dict[str, list[float]] = {arm: [] for arm in ARMS}
    spent: dict[str, list[float]] = {arm: [] for arm in ARMS}
    with serving(options.engine, engine, model) as server:
        (stub,) = server.stub_pids()
        for repeat in range(options.repeats):
            for arm in in_turn(repeat):
                inputs = inputs_of(arm, streams, options.tokens, f"chat {repeat} {arm}")
                load = Load(concurrency=streams)
                before = cpu_s(stub)
                requests = measure(find_perf_analyzer(), server.grpc_url, "llm", load, inputs, 200.0)
                run = summarize_run(Run(requests, streams), streams, Objective())
                found[arm].append(run.tokens_per_s)
                spent[arm].append(1e6 * (cpu_s(stub) - before) / sum(request.tokens for request in requests))
                print(f"repeat {repeat}, {arm}: {found[arm][-1]:,.0f} tokens/s, {spent[arm][-1]:.2f} µs", flush=True)
    print(
        f"| {streams} streams, {options.tool_format} | tokens/s: median, best | of without: median (95 %) "
        "| of the best | µs of the backend's CPU a token: median, least |"
    )
    print("|---|---|---|---|---|")
    for arm, speeds in found.items():
        between = shares(speeds, found[NEITHER])
        of_best = max(speeds) / max(found[NEITHER])
        cpu = f"{statistics.median(spent[arm]):.2f}, {min(spent[arm]):.2f}"
        print(f"| {arm} | {statistics.median(speeds):,.0f}, {max(speeds):,.0f} | {between} | {of_best:.3f} | {cpu} |")
    for what, values in (("tokens/s", found), ("the backend's CPU", spent)):
        print(f"reading both, of as many outputs that no parser fills, {what}: {shares(values[BOTH], values[OUTPUTS])}")


def shares(speeds: Sequence[float], without: Sequence[float]) -> str:
    """What a run has of the speed of its own repeat's other run: the median, and where that lies with 95 %."""
    each = sorted(speed / other for speed, other in zip(speeds, without, strict=True))
    low, high = likely_median(each)
    return f"{statistics.median(each):.3f} ({low:.3f} to {high:.3f})"


def main(given: Sequence[str] | None = None) -> int:
    """Measure and print."""
    arguments = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument(
        "--src", type=types.folder_with("python_backend/inflight"), default=ROOT, help="checkout whose code is measured"
    )
    arguments.add_argument("--engine", type=types.engine, default=str(ROOT / "model_repository/llm/1/engine"))
    arguments.add_argument("--streams", type=types.count, metavar="N", help="through the real server")
    arguments.add_argument("--tool-format", default="hermes", help="with --streams (default: %(default)s)")
    arguments.add_argument(
        "--tokens", type=types.count, default=1000, help="of an answer, with --streams (default: %(default)s)"
    )
    arguments.add_argument("--repeats", type=types.count, default=3, help="with --streams (default: %(default)s)")
    arguments.add_argument("--output", type=types.output_file, metavar="FILE", help="JSON file (default: none)")
    options = arguments.parse_args(given)
    for name in [name for name in sys.modules if name.partition(".")[0] == "inflight"]:
        del sys.modules[name]  # what the parser needed of this checkout; --src has its own
    sys.path[:0] = [str(options.src / "python_backend"), str(ROOT / "scripts")]
    if options.streams:
        through_the_server(options)
        return 0
    rows = []
    for name, template in (("0.2 KB", SMALL), ("5 KB", five_kilobytes())):
        for turns, words in ((1, 20), THOUSAND):
            values = preparation(options.engine, template, conversation(turns, words))
            shown = ", ".join(f"{part} {value:.0f}" for part, value in values.items())
            print(f"template of {name}, {turns} turns: {shown} (µs)")
            rows.append({"template": name, "turns": turns, "us": values})
    if options.src == ROOT:
        text = "The quick brown fox jumps over the lazy dog. " * 200
        for kind, value in reading(text, 2000).items():
            print(f"reading calls, {kind}: {value:.2f} µs per token")
    if options.output is not None:
        what = "processor time of preparing a chat request, by its parts; medians of several repeats in one process"
        write_results(options.output, what, "python scripts/bench/chat_cost.py", options, rows=rows)
    return 0


if __name__ == "__main__":
    run_main(main)
