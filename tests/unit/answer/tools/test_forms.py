from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inflight.answer.tools.events import CallArguments, CallEnd, CallStart, Text, ToolEvent
from inflight.answer.tools.forms import ToolForm, form_of_template, make_parser
from tests.unit.machines.strategies import budget, cuts

pytestmark = pytest.mark.fast

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "f",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "integer"}, "b": {"type": "string"}, "c": {"type": ["array", "null"]}},
            },
        },
    },
    {"type": "function", "function": {"name": "get_weather"}},
]
FORMS = [form for form in ToolForm if form is not ToolForm.NONE]


def read(form: ToolForm, pieces: list[str], max_calls: int | None = None) -> list[ToolEvent]:
    """The events, neighbours of a kind joined."""
    parser = make_parser(form, TOOLS, max_calls)
    assert parser is not None
    events = [event for piece in pieces for event in parser.push(piece)] + parser.finish()
    joined: list[ToolEvent] = []
    for event in events:
        last = joined[-1] if joined else None
        if isinstance(event, Text) and isinstance(last, Text):
            joined[-1] = Text(last.text + event.text)
        elif isinstance(event, CallArguments) and isinstance(last, CallArguments):
            joined[-1] = CallArguments(last.index, last.text + event.text)
        else:
            joined.append(event)
    return joined


def call(index: int, name: str, arguments: str, whole: bool = True) -> list[ToolEvent]:
    middle: list[ToolEvent] = [CallArguments(index, arguments)] if arguments else []
    return [CallStart(index, name), *middle, CallEnd(index, whole)]


HERMES = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
CODER = "<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>"

CASES: list[tuple[ToolForm, str, list[ToolEvent]]] = [
    # hermes
    (ToolForm.HERMES, HERMES, call(0, "f", '{"a": 1}')),
    (ToolForm.HERMES, f"Let me see.\n{HERMES}\n", [Text("Let me see.\n"), *call(0, "f", '{"a": 1}')]),
    (ToolForm.HERMES, f"{HERMES}\n{HERMES}", call(0, "f", '{"a": 1}') + call(1, "f", '{"a": 1}')),
    (
        ToolForm.HERMES,
        f"{HERMES}\nand\n{HERMES} done",
        [*call(0, "f", '{"a": 1}'), Text("\nand\n"), *call(1, "f", '{"a": 1}'), Text(" done")],
    ),
    (ToolForm.HERMES, '<tool_call>{"arguments": {"b": "}"}, "name": "f"}</tool_call>', call(0, "f", '{"b": "}"}')),
    (ToolForm.HERMES, '<tool_call>{"name": "f"}</tool_call>', call(0, "f", "{}")),
    (ToolForm.HERMES, '<tool_call>{"name": "f", "arguments": null}</tool_call>', call(0, "f", "{}")),
    (ToolForm.HERMES, '<tool_call>{"name": "f", "arguments": ""}</tool_call>', call(0, "f", "{}")),
    (
        ToolForm.HERMES,
        '<tool_call>{"name": "f", "arguments": "{\\"a\\": 2}"}</tool_call>',
        call(0, "f", '{"a": 2}'),
    ),
    (ToolForm.HERMES, '<tool_call>{"name": "f", "parameters": {}, "id": [1]}', call(0, "f", "{}")),
    (ToolForm.HERMES, '<tool_call>{"name": "f", "arguments": {"b": "x', call(0, "f", '{"b": "x', whole=False)),
    (
        ToolForm.HERMES,
        '<tool_call>{"name": "f", "arguments": {"a": [1}}</tool_call>',
        [*call(0, "f", '{"a": [1', whole=False), Text("}}</tool_call>")],
    ),
    (ToolForm.HERMES, '<tool_call>{"nam', [Text('<tool_call>{"nam')]),
    (ToolForm.HERMES, "<tool_call>hello</tool_call>", [Text("<tool_call>hello</tool_call>")]),
    (ToolForm.HERMES, '<tool_call>{"x": 1}</tool_call>', [Text('<tool_call>{"x": 1}</tool_call>')]),
    (ToolForm.HERMES, '<tool_call>{"name": 3, "arguments": {}}', [Text('<tool_call>{"name": 3, "arguments": {}}')]),
    (ToolForm.HERMES, "1 < 2 <tool", [Text("1 < 2 <tool")]),
    (ToolForm.HERMES, '{"name": "f", "arguments": {}}', [Text('{"name": "f", "arguments": {}}')]),
    # llama3_json
    (ToolForm.LLAMA3_JSON, '{"name": "f", "parameters": {"a": 1}}', call(0, "f", '{"a": 1}')),
    (
        ToolForm.LLAMA3_JSON,
        '<|python_tag|>{"name": "f", "parameters": {}}; {"name": "get_weather", "parameters": {"b": "ü"}}',
        call(0, "f", "{}") + call(1, "get_weather", '{"b": "ü"}'),
    ),
    (ToolForm.LLAMA3_JSON, '{"name": "Ada", "parameters": {}}', [Text('{"name": "Ada", "parameters": {}}')]),
    (ToolForm.LLAMA3_JSON, '{"name": "f"}', [Text('{"name": "f"}')]),
    (ToolForm.LLAMA3_JSON, '{"age": 3}', [Text('{"age": 3}')]),
    (ToolForm.LLAMA3_JSON, "Hello {", [Text("Hello {")]),
    (ToolForm.LLAMA3_JSON, "<|python_tag|>print(1)", [Text("<|python_tag|>print(1)")]),
    (ToolForm.LLAMA3_JSON, '{"name": "f", "parameters": {}} ok', [*call(0, "f", "{}"), Text(" ok")]),
    # mistral
    (ToolForm.MISTRAL, '[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}, "id": "abc"}]', call(0, "f", '{"a": 1}')),
    (
        ToolForm.MISTRAL,
        'Yes. [TOOL_CALLS] [{"name": "f", "arguments": {}}, {"name": "g", "arguments": {"b": "]"}}]',
        [Text("Yes. "), *call(0, "f", "{}"), *call(1, "g", '{"b": "]"}')],
    ),
    (
        ToolForm.MISTRAL,
        '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]get_weather[CALL_ID]Ab3[ARGS]{}',
        call(0, "f", '{"a": 1}') + call(1, "get_weather", "{}"),
    ),
    (ToolForm.MISTRAL, "[TOOL_CALLS]f[ARGS]", call(0, "f", "", whole=False)),
    (ToolForm.MISTRAL, "[TOOL_CALLS]f {", [Text("[TOOL_CALLS]f {")]),
    (ToolForm.MISTRAL, "[TOOL_CALLS]f[AR", [Text("[TOOL_CALLS]f[AR")]),
    (ToolForm.MISTRAL, "[1, 2]", [Text("[1, 2]")]),
    # pythonic
    (
        ToolForm.PYTHONIC,
        '[f(a=1, b="x, )]"), get_weather()]',
        call(0, "f", '{"a": 1, "b": "x, )]"}') + call(1, "get_weather", "{}"),
    ),
    (
        ToolForm.PYTHONIC,
        "[f(a=True, b=None, c=[1, {'k': 'v'}])]",
        call(0, "f", '{"a": true, "b": null, "c": [1, {"k": "v"}]}'),
    ),
    (ToolForm.PYTHONIC, "[1, 2]", [Text("[1, 2]")]),
    (ToolForm.PYTHONIC, "[g(a=1)]", [Text("[g(a=1)]")]),
    (ToolForm.PYTHONIC, "[f(a=open(1))]", [*call(0, "f", "{", whole=False), Text("a=open(1))]")]),
    (ToolForm.PYTHONIC, "[f(a=1, b='x", [*call(0, "f", '{"a": 1', whole=False), Text("b='x")]),
    (ToolForm.PYTHONIC, "[f(3)]", [*call(0, "f", "{", whole=False), Text("3)]")]),
    # qwen3_coder
    (ToolForm.QWEN3_CODER, CODER, call(0, "f", '{"a": 1}')),
    (
        ToolForm.QWEN3_CODER,
        'So:\n<function=f><parameter=b>\n  a "b"\n</p>\n</parameter><parameter=c>\n[1,\n2]\n</parameter></function>',
        [Text("So:\n"), *call(0, "f", '{"b": "  a \\"b\\"\\n</p>", "c": [1,\n2]}')],
    ),
    (
        ToolForm.QWEN3_CODER,
        "<function=f><parameter=a>True</parameter><parameter=z>5</parameter></function>",
        call(0, "f", '{"a": true, "z": "5"}'),
    ),
    (ToolForm.QWEN3_CODER, "<function=f><parameter=a>many</parameter></function>", call(0, "f", '{"a": "many"}')),
    (ToolForm.QWEN3_CODER, f"{CODER}\n{CODER}", call(0, "f", '{"a": 1}') + call(1, "f", '{"a": 1}')),
    (ToolForm.QWEN3_CODER, "<function=f><parameter=b>x</par", [*call(0, "f", '{"b": "x', whole=False), Text("</par")]),
    (ToolForm.QWEN3_CODER, "<function=f>what</function>", [*call(0, "f", "{", whole=False), Text("what</function>")]),
    (ToolForm.QWEN3_CODER, HERMES, [Text(HERMES)]),
    # what a guide makes
    (
        ToolForm.JSON_LIST,
        '[{\n "name": "f", "arguments":{"a":1}}, {"name":"f","arguments":{}}]',
        call(0, "f", '{"a":1}') + call(1, "f", "{}"),
    ),
    (ToolForm.JSON_LIST, "no list", [Text("no list")]),
]


@pytest.mark.parametrize(("form", "text", "expected"), CASES)
def test_what_is_a_call_and_what_is_text(form: ToolForm, text: str, expected: list[ToolEvent]) -> None:
    assert read(form, [text]) == expected
    assert read(form, list(text)) == expected


WORDS = [
    "<tool_call>", "</tool_call>", "<function=f>", "</function>", "<parameter=a>", "<parameter=b>", "</parameter>",
    "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|python_tag|>", '{"name": "f", ', '"arguments": ', '"parameters": ', "{",
    "}", "[", "]", '"', "\\", ",", ":", ";", "f(", "get_weather(", ")", "a=", "b=", "'x'", "1", "True", " ", "\n", "<",
    "é", '{"a": 1}', '{"name": "f", "arguments": {"a": 1}}', HERMES, CODER, "text", "🙂",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(WORDS), max_size=14).map("".join)


@pytest.mark.parametrize("form", FORMS)
@given(st.data())
@budget(150)
def test_events_do_not_depend_on_how_the_text_was_cut(form: ToolForm, data: st.DataObject) -> None:
    text = data.draw(TEXTS)
    assert read(form, data.draw(cuts(text))) == read(form, [text])


@pytest.mark.parametrize("form", FORMS)
@given(TEXTS)
@budget(150)
def test_events_are_well_formed_and_text_alone_is_the_text(form: ToolForm, text: str) -> None:
    events = read(form, list(text))
    under_way: int | None = None
    calls = 0
    for event in events:
        match event:
            case CallStart(index, name):
                assert under_way is None
                assert index == calls
                assert name
                under_way, calls = index, calls + 1
            case CallArguments(index, _):
                assert index == under_way
            case CallEnd(index, _):
                assert index == under_way
                under_way = None
            case Text(piece):
                assert under_way is None
                assert piece
                assert piece in text
    assert under_way is None
    if calls == 0:
        assert events == ([Text(text)] if text else [])


@given(
    st.sampled_from([ToolForm.HERMES, ToolForm.LLAMA3_JSON, ToolForm.MISTRAL, ToolForm.JSON_LIST]),
    st.dictionaries(
        st.text(max_size=6),
        st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=8), st.lists, max_leaves=4),
        max_size=4,
    ),
    st.data(),
)
@budget(150)
def test_arguments_arrive_as_they_were_written(form: ToolForm, arguments: dict[str, Any], data: st.DataObject) -> None:
    written = json.dumps(arguments, ensure_ascii=data.draw(st.booleans()), indent=data.draw(st.sampled_from([None, 1])))
    key = "parameters" if form is ToolForm.LLAMA3_JSON else "arguments"
    one = f'{{"name": "f", "{key}": {written}}}'
    text = {
        ToolForm.HERMES: f"<tool_call>\n{one}\n</tool_call>",
        ToolForm.LLAMA3_JSON: one,
        ToolForm.MISTRAL: f"[TOOL_CALLS][{one}]",
        ToolForm.JSON_LIST: f"[{one}]",
    }[form]
    assert read(form, data.draw(cuts(text))) == call(0, "f", written)


@given(st.text(max_size=30).filter(lambda text: "</parameter>" not in text), st.data())
@budget(150)
def test_text_values_of_qwen3_coder_are_themselves(value: str, data: st.DataObject) -> None:
    text = f"<function=f>\n<parameter=b>\n{value}\n</parameter>\n</function>"
    events = read(ToolForm.QWEN3_CODER, data.draw(cuts(text)))
    assert json.loads("".join(e.text for e in events if isinstance(e, CallArguments))) == {"b": value}


def test_arguments_leave_as_they_come() -> None:
    parser = make_parser(ToolForm.HERMES, TOOLS)
    assert parser is not None
    assert parser.push('<tool_call>\n{"name": "f", "argum') == []
    assert parser.push('ents": {"b"') == [CallStart(0, "f"), CallArguments(0, '{"b"')]
    assert parser.push(': "x') == [CallArguments(0, ': "x')]


def test_parallel_calls_can_be_left_out() -> None:
    assert read(ToolForm.HERMES, [f"{HERMES}\n{HERMES}"], max_calls=1) == call(0, "f", '{"a": 1}')


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "piece",
    [
        "<tool_call>", "<tool_call>{", '<tool_call>{"a":', "[TOOL_CALLS]", "[TOOL_CALLS]f", "[[", '{"name": "f", ',
        " ", "<", "aaaa", "f(", "(", "[f(a=",
    ],
)  # fmt: skip
def test_time_grows_with_the_text_only(form: ToolForm, piece: str) -> None:
    def seconds(count: int) -> float:
        parser = make_parser(form, TOOLS)
        assert parser is not None
        begin = time.process_time()
        for _ in range(count):
            parser.push(piece)
        parser.finish()
        return time.process_time() - begin

    small = min(seconds(500) for _ in range(2))
    assert seconds(4_000) < 8 * 4 * small + 0.1


@pytest.mark.parametrize(
    "lead", ["<tool_call>", '<tool_call>{"name": "f", "arguments": "', '<tool_call>{"arguments": {"b": "']
)
def test_what_is_held_back_is_bounded(lead: str) -> None:
    parser = make_parser(ToolForm.HERMES, TOOLS)
    assert parser is not None
    events = parser.push(lead)
    for _ in range(200):
        events += parser.push("\n" * 500 if lead == "<tool_call>" else "x" * 500)
    assert sum(len(event.text) for event in events if isinstance(event, Text)) > 100_000 - 70_000


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ("{%- for tool in tools %}<tool_call>\n{\"name\": <function-name>", ToolForm.HERMES),
        ("<tool_call>\n<function=example>", ToolForm.QWEN3_CODER),
        ("[AVAILABLE_TOOLS] [TOOL_CALLS]", ToolForm.MISTRAL),
        ("<|python_tag|>", ToolForm.LLAMA3_JSON),
        ("[func_name1(params_name1=params_value1)]", ToolForm.PYTHONIC),
        ("<|im_start|>", ToolForm.NONE),
    ],
)  # fmt: skip
def test_the_template_shows_the_form(template: str, form: ToolForm) -> None:
    assert form_of_template(template) is form
