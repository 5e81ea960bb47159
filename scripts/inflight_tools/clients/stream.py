"""Sends a prompt to a model on Triton and prints the answer token by token, as it comes.

The answer goes to standard output, figures to standard error. Ctrl-C cancels the request at the server. Exit status:
0 done, 1 an error (one sentence says which), 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence

from build_engine.arguments import Parser
from inflight.request.contract import INPUTS
from inflight_tools.clients.answer import Answer
from inflight_tools.clients.connection import GRPC_URL, HTTP_URL, PROTOCOLS, SHAPES, Value, connect
from inflight_tools.common.report import Failure, run_main

# Inputs that have an option of another form here.
_OWN = ("text_input", "messages", "input_ids", "stream")
_NO_TEMPLATE = "need a chat template"  # of the server's sentence (request/prompt.py)
_PARSERS = {"INT32": int, "UINT64": int, "FP32": float, "STRING": str}


def parse(arguments: Sequence[str] | None = None, program: str | None = None) -> argparse.Namespace:
    """Our options; every request parameter of the contract is one."""
    parser = Parser(prog=program, description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("prompt", nargs="?", help="the prompt; left out, it is read from standard input")
    parser.add_argument(
        "--url",
        metavar="HOST:PORT",
        help=f"where the server listens: its gRPC port (default: {GRPC_URL}), or over HTTP that one ({HTTP_URL})",
    )
    parser.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        default="auto",
        help="auto: gRPC where tritonclient is installed, else HTTP; a --url with http:// is HTTP",
    )
    parser.add_argument("--model", default="llm", help="model name (default: %(default)s)")
    parser.add_argument(
        "--shape",
        choices=SHAPES,
        default="auto",
        help="tensors without (flat) or with a batch dimension; auto asks the model",
    )
    chat = program is not None  # the command is called chat
    parser.add_argument(
        "--chat",
        action=argparse.BooleanOptionalAction,
        help=f"the prompt is a chat message; the model's chat template is applied (default: {'yes' if chat else 'no'})",
    )
    parser.set_defaults(chat_by_default=chat)
    parser.add_argument("--system", metavar="TEXT", help="system message of the chat (implies --chat)")
    parser.add_argument(
        "--messages", metavar="JSON", help="a whole chat as a JSON list of OpenAI messages, instead of a prompt"
    )
    parser.add_argument("--input-ids", metavar="IDS", help="prompt token ids, such as 1,2,3, instead of a prompt")
    parser.add_argument("--no-stream", action="store_true", help="ask for the answer in one piece")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object with answer, outputs and times at the end"
    )
    parser.add_argument("--request-id", default="", metavar="ID", help="id of the request in the server's log")
    parser.add_argument(
        "--timeout",
        type=float,
        default=120.0,
        metavar="S",
        help="give up when nothing comes for so long (default: %(default)s)",
    )
    group = parser.add_argument_group("request parameters", "what is left out is the model's own default")
    for item in INPUTS:
        if item.name in _OWN:
            continue
        names = [f"--{name.replace('_', '-')}" for name in (item.name, *item.aliases)]
        note = item.note.replace("%", "%%")
        if item.type == "BOOL":
            group.add_argument(*names, dest=item.name, action=argparse.BooleanOptionalAction, help=note)
        elif item.dims == -1:
            group.add_argument(
                *names,
                dest=item.name,
                action="append",
                type=_PARSERS[item.type],
                metavar="X",
                help=f"{note}; repeat for more",
            )
        else:
            group.add_argument(*names, dest=item.name, type=_PARSERS[item.type], metavar="X", help=note)
    return parser.parse_args(arguments)


def inputs_of(arguments: argparse.Namespace) -> dict[str, Value]:
    """The request's tensors. Raises `Failure` when the prompt is missing or given twice."""
    inputs: dict[str, Value] = {"stream": not arguments.no_stream}
    others = [name for name in ("messages", "input_ids") if getattr(arguments, name) is not None]
    if len(others) + (arguments.prompt is not None) > 1:
        raise Failure("more than one prompt was given: use one of PROMPT, --messages and --input-ids.")
    asked = arguments.chat or arguments.system is not None
    if asked and others:
        raise Failure(
            f"--chat and --system do not go with --{others[0].replace('_', '-')}: put all messages into --messages."
        )
    if arguments.messages is not None:
        inputs["messages"] = arguments.messages
    elif arguments.input_ids is not None:
        inputs["input_ids"] = _ids(arguments.input_ids)
    elif asked or (arguments.chat is None and arguments.chat_by_default):
        inputs["messages"] = json.dumps(_messages(_prompt(arguments.prompt), arguments.system), ensure_ascii=False)
    else:
        inputs["text_input"] = _prompt(arguments.prompt)
    for item in INPUTS:
        if item.name not in _OWN and getattr(arguments, item.name) is not None:
            inputs[item.name] = getattr(arguments, item.name)
    for name in ("return_finish_reason", "return_num_input_tokens", "return_num_output_tokens"):
        inputs.setdefault(name, True)  # the figures at the end come from these
    return inputs


def _prompt(given: str | None) -> bytes:
    """Bytes, so that what the terminal or a file holds reaches the server as it is."""
    if given is not None:
        return os.fsencode(given)
    if sys.stdin.isatty():
        raise Failure("there is no prompt: give one as an argument or on standard input.")
    return sys.stdin.buffer.read()


def _messages(prompt: bytes, system: str | None) -> list[dict[str, str]]:
    try:
        user = prompt.decode()
    except UnicodeDecodeError as error:
        raise Failure(
            f"the prompt is not UTF-8 text (byte {error.start} is wrong), which a chat message has to be."
        ) from None
    return [*([{"role": "system", "content": system}] if system is not None else []), {"role": "user", "content": user}]


def _ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise Failure(f"--input-ids must be whole numbers such as 1,2,3, but is {text!r}.") from None


def print_figures(answer: Answer) -> None:
    """One line on standard error, and one more for each further output that the request asked for."""
    timeline, parts = answer.timeline, []
    if timeline.ttft is not None and timeline.tokens_per_s is not None:
        what = "time to first token" if len(timeline.arrivals) > 1 else "answer after"
        parts.append(f"{what} {1000 * timeline.ttft:.0f} ms")
        parts.append(f"{timeline.tokens_per_s:.1f} tokens/s")
        parts.append(f"{timeline.tokens} tokens")
    reasons = [answer.sequences[index].finish_reason for index in sorted(answer.sequences)]
    if any(reasons):
        parts.append(f"finish reason: {', '.join(reasons)}")
    print(" | ".join(parts), file=sys.stderr)
    for index in sorted(answer.sequences):
        of = f" of sequence {index}" if len(answer.sequences) > 1 else ""
        for name, value in answer.sequences[index].outputs.items():
            print(f"{name}{of}: {value}", file=sys.stderr)
    for name, value in answer.outputs.items():
        if name != "num_input_tokens":
            print(f"{name}: {value}", file=sys.stderr)


def write(text: str) -> None:
    """Text to standard output at once, whatever the locale."""
    sys.stdout.buffer.write(text.encode("utf-8", "replace"))
    sys.stdout.buffer.flush()


def ask(arguments: argparse.Namespace, inputs: Mapping[str, Value]) -> int:
    """Send the request, print the answer as it comes; returns the exit status."""
    with connect(arguments.url, arguments.protocol) as connection:
        batched = connection.is_batched(arguments.model, arguments.shape)
        answer = Answer(time.perf_counter())
        ended = ""
        try:
            for response in connection.stream(
                arguments.model, inputs, batched, arguments.timeout, arguments.request_id
            ):
                fresh = answer.add(response)
                if not arguments.json and fresh:
                    write(fresh)
                    ended = fresh[-1]
        finally:
            if ended not in ("", "\n"):
                write("\n")
    if arguments.json:
        write(json.dumps(answer.to_json(), ensure_ascii=False) + "\n")
        return 0
    for index in sorted(answer.sequences)[1:]:
        write(f"--- sequence {index}\n{answer.sequences[index].text}\n")
    print_figures(answer)
    return 0


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Ask; a second time, with the prompt as it is, where nobody insisted on a chat and the model has no template."""
    options = parse(arguments, program)
    inputs = inputs_of(options)
    insisted = options.chat or options.system is not None or options.messages is not None
    try:
        return ask(options, inputs)
    except Failure as failure:
        if insisted or "messages" not in inputs or _NO_TEMPLATE not in str(failure):
            raise
    print("this model has no chat template: the prompt is sent as it is", file=sys.stderr)
    (message,) = json.loads(str(inputs.pop("messages")))
    return ask(options, {**inputs, "text_input": message["content"]})


if __name__ == "__main__":
    run_main(main)
