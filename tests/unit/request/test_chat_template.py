from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jinja2.sandbox
import pytest

from inflight.errors import ErrorCode, LoadError, RequestError
from inflight.request.chat import ChatOptions
from inflight.request.chat_template import ChatTemplate
from inflight.request.limits import MAX_MESSAGES
from inflight.request.messages import parse_messages
from inflight.request.template_files import ChatTemplates, load_chat_templates

pytestmark = pytest.mark.fast

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
USER = [{"role": "user", "content": "Hi"}]


def render(source: str, messages: list[dict[str, Any]] | None = None, limit: int = 100_000, **tokens: str) -> str:
    return ChatTemplate(source, tokens).render(messages or USER, limit)


CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
CALLED = [*USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}]


def test_a_template_that_joins_no_words_beside_calls_gets_empty_ones() -> None:
    joins = "{% for message in messages %}{{ '<' + message.content + '>' }}{% endfor %}"
    assert render(joins, CALLED) == "<Hi><>"
    both = (
        "{% for m in messages %}{{ m.content + '|' }}{% for c in m.tool_calls or [] %}{{ '' + c.function.arguments }}"
    )
    assert render(both + "{% endfor %}{% endfor %}", CALLED) == 'Hi||{"a": 1}'
    knows = "{% for message in messages %}{{ 'none' if message.content is none else message.content }}{% endfor %}"
    assert render(knows, CALLED) == "Hinone"  # as transformers has it


def refusal(source: str, messages: list[dict[str, Any]] | None = None, limit: int = 100_000) -> str:
    with pytest.raises(RequestError) as caught:
        render(source, messages, limit)
    assert caught.value.code is ErrorCode.INVALID_ARG
    assert caught.value.parameter == "messages"
    assert caught.value.message.startswith("messages ")
    return caught.value.message


def messages_refusal(value: Any) -> str:
    with pytest.raises(RequestError) as caught:
        parse_messages(value if isinstance(value, bytes) else json.dumps(value).encode())
    assert caught.value.code is ErrorCode.INVALID_ARG
    assert caught.value.parameter == "messages"
    return caught.value.message


# -- rendering -------------------------------------------------------------------------------------------------


def test_a_conversation_in_chatml() -> None:
    messages = parse_messages(
        json.dumps(
            [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "2+2?"},
                {"role": "assistant", "content": "4"},
                {"role": "tool", "content": "log"},
            ]
        ).encode()
    )
    assert render(CHATML, messages) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n"
        "<|im_start|>assistant\n4<|im_end|>\n"
        "<|im_start|>tool\nlog<|im_end|>\n<|im_start|>assistant\n"
    )


def test_special_tokens_are_variables() -> None:
    assert (
        render("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}", bos_token="<s>", eos_token="</s>")
        == "<s>Hi</s>"
    )


def test_what_hugging_face_templates_use_is_there() -> None:
    assert (
        render("{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}", USER * 3)
        == "user"
    )
    assert (
        render("{{ messages | tojson }}", [{"role": "user", "content": "é<'"}])
        == '[{"role": "user", "content": "é<\'"}]'
    )
    assert render("{{ messages[0] | tojson(indent=2) }}") == '{\n  "role": "user",\n  "content": "Hi"\n}'
    assert len(render('{{ strftime_now("%Y-%m-%d") }}')) == 10
    assert (
        render(
            "{%- set ns = namespace(n=0) -%}{%- for m in messages %}{%- set ns.n = ns.n + 1 %}{%- endfor -%}{{ ns.n }}"
        )
        == "1"
    )
    assert render("  {% if true %}\n  a\n  {% endif %}\n") == "  a\n", (
        "trim_blocks and lstrip_blocks, as transformers renders"
    )
    assert render("{{ tools is none }}{{ documents is none }}{{ other is defined }}") == "TrueTrueFalse"


EXPRESSIONS = (
    "messages|map(attribute='content')|join(', ')",
    "messages|selectattr('role', 'equalto', 'user')|list|length",
    "messages|rejectattr('role', 'in', ['tool'])|map(attribute='role')|join",
    "messages|groupby('role')|length",
    "(messages|first).content ~ 1 ~ none ~ [1, 'a']",
    "messages[-1]['content'].split(' ')[0]|trim|upper",
    "'%s: %5.2f (%d%%)' % ('x', 1.5, 9)",
    "'%s-%s'|format('a', 'b')",
    "'%(a)s'|format(a=3)",
    "'{}{:>6}{x!r:{w}}'.format(1, 'a', x='b', w=5)",
    "'{a[0]}'.format_map({'a': [7]})",
    "('a\nb\n\nc')|indent",
    "('a\nb')|indent(width='> ', first=true)",
    "'a b c'|replace('b', 'x')|replace(' ', '', 1)",
    "'ab'.replace('a', 'xy').center(9).ljust(12, '.').rjust(15).zfill(17)",
    "'ab'|center(10)",
    "'a\tb'.expandtabs(4) ~ 'a'.join(['x', 'y'])",
    "'a,b'.split(',')|join(' ')",
    "'the quick brown fox jumps'|wordwrap(10)",
    "'the quick brown fox jumps'|truncate(12)",
    "[3, 1, 2]|sort|reverse|list",
    "[1, 2, 3, 4, 5]|batch(2, 0)|list",
    "[1, 2, 3, 4, 5]|slice(2)|list",
    "[1, 2, 3]|sum ~ [[1], [2]]|sum(start=[])",
    "'a-b-c'.rsplit('-', 1) ~ 'xax'.strip('x') ~ ' a '|trim ~ 'xax'|trim('x') ~ 'abca'.rfind('a')",
    "{'b': 1, 'a': 2}|dictsort ~ {'b': 1}|items|list",
    "(2 ** 10 + 7 // 2 - 7 % 4 * 1.5, 2.567|round(1), '7'|int, 'f'|int(base=16))",
    "([1] + [2], 'a' + 'b', 'a' * 3, [0] * 2)",
    "undefined|default('d') ~ undefined ~ ''|default('e', true)",
    "1000000000|default(1) ~ undefined|default(1000000000)",
    "[1, 10000000]|select('gt', 9000000)|list",
    "messages|length ~ 'é🙂'|length ~ messages|last|string",
    "'<a>'|escape ~ '<a>'|e|safe ~ 'a b'|urlencode",
    "'x' in 'xyz' and 'role' in messages[0] and 3 is divisibleby 3",
    "'a'|pprint ~ ('a', 1)|list|unique|list",
    "messages|map('tojson')|list",
    "dict(a=1, b=2).items()|list ~ range(3)|list ~ cycler('a', 'b').next()",
    "messages is iterable and messages[0] is mapping and messages[0].content is string",
)


@pytest.mark.parametrize("source", ["{{ " + expression + " }}" for expression in EXPRESSIONS])
def test_limits_change_nothing_within_them(source: str) -> None:
    """What jinja2's own sandbox makes of it."""
    plain = jinja2.sandbox.ImmutableSandboxedEnvironment()
    plain.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    messages = [*USER, {"role": "assistant", "content": "Hello you"}]
    assert render(source, messages) == plain.from_string(source).render(messages=messages)


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}{{ loop.nextitem }}{% endfor %}",
        "{% for m in messages if m.role == 'user' %}{{ loop.length }}{{ m.content }}{% else %}none{% endfor %}",
        "{% for key, value in messages[0].items() %}{{ key }}={{ value }},{% endfor %}",
        "{% for c in 'abc' recursive %}{{ c }}{% if c == 'a' %}{{ loop('xy') }}{% endif %}{% endfor %}",
        "{% for m in nothing %}x{% else %}empty{% endfor %}",
        "{% set x %}a{{ messages[0].role }}{% endset %}{{ x ~ x }}",
        "{% macro f(a, b='c') %}{{ a }}{{ b }}{{ caller() if caller }}{% endmacro %}"
        "{{ f(1) }}{% call f(2) %}in{% endcall %}",
        "{% filter upper %}a{{ 'b' }}{% endfilter %}",
        "{% set ns = namespace(n=0) %}{% for a in range(3) %}{% for b in range(a) %}{% set ns.n = ns.n + b %}"
        "{% endfor %}{% endfor %}{{ ns.n }}",
    ],
)
def test_statements_do_what_jinja2_does(source: str) -> None:
    plain = jinja2.sandbox.ImmutableSandboxedEnvironment()
    assert render(source, USER * 3) == plain.from_string(source).render(messages=USER * 3)


def test_the_generation_tag_is_accepted() -> None:
    assert render("{% generation %}{{ messages[0].content }}{% endgeneration %}") == "Hi"


def test_text_of_the_client_is_never_a_template() -> None:
    hostile = [{"role": "user", "content": "{{ 7 * 7 }}{% for i in range(9) %}x{% endfor %}"}]
    assert "{{ 7 * 7 }}" in render(CHATML, hostile)
    assert "49" not in render(CHATML, hostile)


def test_the_templates_own_refusal_reaches_the_client() -> None:
    assert "Only user and assistant roles are supported!" in refusal(
        "{{ raise_exception('Only user and assistant roles are supported!') }}"
    )


def test_a_very_long_refusal_is_cut() -> None:
    assert len(refusal("{{ raise_exception('x' * 100000) }}")) < 700


@pytest.mark.parametrize(
    "source",
    ["{{ messages[0].content.nothing.at.all }}", "{{ messages[7].content }}", "{{ 1 / 0 }}", "{{ messages + 1 }}"],
)
def test_a_template_that_the_conversation_does_not_fit_is_the_clients_error(source: str) -> None:
    assert "\n" not in refusal(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__globals__['datetime'] }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ ''|attr('__class__')|attr('__mro__') }}",
        "{{ messages|map(attribute='__class__')|list }}",
        "{{ '{0.__class__}'.format(messages) }}",
        "{{ '%s'.__getattribute__('__class__') }}",
        "{{ messages.append({}) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ lipsum.__globals__['os'] }}",
    ],
)
def test_there_is_no_way_out_of_the_sandbox(source: str) -> None:
    """Either refused, or nothing but an undefined value's empty text."""
    try:
        text = render(source)
    except RequestError as error:
        text = error.message
    for secret in ("class 'object'", "uid=", "root:", "<module", "<class", "__builtins__"):
        assert secret not in text


def test_messages_are_not_changed_by_a_template() -> None:
    messages = [{"role": "user", "content": "Hi"}]
    with pytest.raises(RequestError):
        render("{{ messages.append(messages[0]) }}", messages)
    assert messages == USER


# -- limits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(9999) %}{% for b in range(9999) %}{{ messages[0].role }}{% endfor %}{% endfor %}",
        "{% for a in range(9999) %}{% for b in range(9999) %}{% set x = messages[0] %}{% endfor %}{% endfor %}",
        "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}",
        "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    ],
)
def test_a_template_that_does_not_end_is_stopped(source: str) -> None:
    """The clock jumps by a tenth of a second at every look, so this needs no patience."""
    ticks: Iterator[int] = iter(range(10**9))
    began = time.monotonic()
    with pytest.raises(RequestError) as caught:
        ChatTemplate(source, {}).render(USER, 1 << 30, clock=lambda: next(ticks) * 0.1)
    assert caught.value.parameter == "messages"
    assert time.monotonic() - began < 5.0


def test_a_loop_without_output_is_stopped_by_the_real_clock() -> None:
    began = time.monotonic()
    refusal("{% for a in range(99999) %}{% for b in range(99999) %}{% set x = a %}{% endfor %}{% endfor %}")
    assert 1.0 < time.monotonic() - began < 8.0


def test_the_output_is_limited_while_it_grows() -> None:
    assert "1000 bytes" in refusal("{% for a in range(99999) %}{{ 'é' * 10 }}{% endfor %}", limit=1000)
    assert render("{{ 'é' * 500 }}", limit=1000) == "é" * 500
    refusal("{{ 'é' * 501 }}", limit=1000)


@pytest.mark.parametrize(
    "source",
    ["{{ ('x' * 30000000) | length }}", "{{ (10 ** 40000) | string | length }}", "{{ ([0] * 5000000) | length }}"],
)
def test_one_expression_cannot_take_any_amount_of_memory(source: str) -> None:
    refusal(source)


BIG = 20_000_000
HOSTILE = (
    f"{{{{ 'x'|center({BIG}) }}}}",
    f"{{{{ 'x'|center(width={BIG})|length }}}}",
    f"{{{{ 'x'.center({BIG}) }}}}",
    f"{{{{ ''.ljust({BIG})|length }}}}",
    f"{{{{ ''|attr('rjust')({BIG})|length }}}}",
    f"{{{{ '1'.zfill({BIG})|length }}}}",
    f"{{{{ '1'['zfill']({BIG})|length }}}}",
    f"{{{{ '\t'.expandtabs({BIG})|length }}}}",
    f"{{{{ ''.encode().center({BIG})|length }}}}",
    f"{{{{ (1).to_bytes({BIG}, 'big')|length }}}}",
    f"{{{{ '%{BIG}d' % 1 }}}}",
    f"{{{{ ('%*d' % ({BIG}, 1))|length }}}}",
    f"{{{{ '%.{BIG}f' % 1 }}}}",
    f"{{{{ '%{BIG}d'|format(1) }}}}",
    f"{{{{ '%({BIG}'|format(1) }}}}",
    f"{{{{ '{{:>{BIG}}}'.format(1)|length }}}}",
    f"{{{{ '{{:{{}}}}'.format(1, {BIG})|length }}}}",
    f"{{{{ '{{x:>{BIG}}}'.format_map({{'x': 1}})|length }}}}",
    f"{{{{ 'x'|indent({BIG}, true)|length }}}}",
    "{{ (('x\n' * 5000)|indent(5000))|length }}",
    "{{ (('x\n' * 5000)|indent(width='y' * 5000))|length }}",
    "{{ range(5000)|join('y' * 5000)|length }}",
    "{{ range(5000)|map('string')|join('y' * 5000)|length }}",
    "{{ ('y' * 5000).join('x' * 5000)|length }}",
    "{{ ('x' * 5000)|replace('x', 'y' * 5000)|length }}",
    "{{ ('x' * 5000)|replace('', 'y' * 5000)|length }}",
    "{{ ('x' * 5000).replace('x', 'y' * 5000)|length }}",
    "{{ ('x' * 5000).translate({120: 'y' * 5000})|length }}",
    "{{ ('%s' * 5000 % (('y' * 5000),))|length }}",
    "{{ (('%(a)s' * 5000) % {'a': 'y' * 5000})|length }}",
    "{{ (('%s' * 5000)|format('y' * 5000))|length }}",
    "{{ ('{0}' * 5000).format('y' * 5000)|length }}",
    "{{ ('x' * 5000)|wordwrap(1, wrapstring='y' * 5000)|length }}",
    "{{ ('x' * 15000)|wordwrap(1)|length }}",
    f"{{{{ [1]|batch({BIG}, 0)|list|length }}}}",
    f"{{{{ [1]|batch(linecount={BIG}, fill_with=0)|list|length }}}}",
    f"{{{{ [1]|slice({BIG})|list|length }}}}",
    f"{{{{ messages|tojson(indent={BIG})|length }}}}",
    "{{ ([[]] * 5000)|tojson(indent=60)|length }}",
    "{{ ([[1] * 5000] * 5000)|sum(start=[])|length }}",
    f"{{{{ 2.5|round({BIG}, 'ceil') }}}}",
    "{{ strftime_now('%c' * 5000)|length }}",
    "{{ (10 ** 60) ** 4000 > 1 }}",
    "{% set ns = namespace(x=10) %}{% for i in range(26) %}{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x > 1 }}",
    "{% set ns = namespace(x='ab') %}{% for i in range(26) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x|length }}",
    "{% set ns = namespace(x='ab') %}{% for i in range(26) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x|length }}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(26) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x|length }}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(24) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    *(
        "{% set ns = namespace(x=[1]) %}{% for i in range(24) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ("
        + expression
        + ")|length }}"
        for expression in (
            "ns.x|string",
            "ns.x ~ ''",
            "'%s' % (ns.x,)",
            "'%s'|format(ns.x)",
            "'{}'.format(ns.x)",
            "ns.x|tojson",
            "ns.x|upper",
            "ns.x|pprint",
            "ns.x|join('')",
            "ns.x|replace('1', '2')",
            "ns.x|indent",
        )
    ),
    "{% set ns = namespace(x='ab') %}{% for i in range(26) %}{% set x %}{{ ns.x }}{{ ns.x }}{% endset %}"
    "{% set ns.x = x %}{% endfor %}{{ ns.x|length }}",
    "{% set ns = namespace(x='ab') %}{% macro twice() %}{{ ns.x }}{{ ns.x }}{% endmacro %}"
    "{% for i in range(26) %}{% set ns.x = twice() %}{% endfor %}{{ ns.x|length }}",
)


@pytest.mark.parametrize(
    "expression",
    [
        "a.rfind(h)",
        "a.rsplit(h)|length",
        "a.rpartition(h)|length",
        "a.strip(b)",
        "a.lstrip(b)",
        "a|trim(b)",
        "(range(60000)|list)|pprint|length",
        "a|wordwrap(1)",
    ],
)
def test_no_single_expression_takes_any_time(expression: str) -> None:
    source = (
        "{% set a, h = 'a' * 200000, 'a' * 50000 ~ 'b' ~ 'a' * 50000 %}{% set b = 'b' * 200000 ~ 'a' %}{{ "
        + expression
        + " }}"
    )
    began = time.thread_time()
    with pytest.raises(RequestError, match="make too much of it"):
        ChatTemplate(source, {}).render(USER, 600_000)
    assert time.thread_time() - began < 0.5


@pytest.mark.parametrize("source", HOSTILE)
def test_no_single_expression_makes_any_amount_of_text(source: str) -> None:
    """Refused before it is computed: the peak stays far below what it would have made, at load as well."""
    tracemalloc.start()
    began = time.thread_time()
    try:
        template = ChatTemplate(source, {})
        with pytest.raises(RequestError, match="make too much of it"):
            template.render(USER, 20_000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12_000_000
    assert time.thread_time() - began < 2.0


@pytest.mark.parametrize(
    "source",
    [
        "{% set r = range(9999) %}{% for a in r %}{% for b in r %}{% for c in r %}{% endfor %}{% endfor %}{% endfor %}",
        "{% set r = range(9999)|list %}{{ r|select('in', r)|list|length }}{{ r|reject('in', r)|list|length }}" * 9,
    ],
)
def test_loops_without_any_expression_are_stopped_too(source: str) -> None:
    ticks: Iterator[int] = iter(range(10**9))
    began = time.thread_time()
    with pytest.raises(RequestError, match="too long"):
        ChatTemplate(source, {}).render(USER, 1 << 20, clock=lambda: next(ticks) * 0.001)
    assert time.thread_time() - began < 2.0


def test_a_filter_that_is_left_out_fails_the_load() -> None:
    with pytest.raises(LoadError, match="urlize"):
        ChatTemplate("{{ 'x'|urlize }}", {})


class Gone(Exception):
    """Nobody waits for the rendering any more."""


def test_a_rendering_that_nobody_waits_for_any_more_ends() -> None:
    looks = iter(range(10**9))

    def go_on() -> None:
        if next(looks) > 100:
            raise Gone

    template = ChatTemplate("{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}", {})
    with pytest.raises(Gone):
        template.render(USER, 1 << 30, go_on=go_on)
    assert ChatTemplate(CHATML, {}).render(USER, 1000)


def test_renderings_on_several_threads_have_each_their_own_limits() -> None:
    template = ChatTemplate("{% for a in range(200) %}{{ messages[0].content }}{% endfor %}", {})

    def rendered(limit: int) -> int:
        try:
            return len(template.render(USER, limit))
        except RequestError:
            return 0

    with ThreadPoolExecutor(4) as pool:
        limits = [100, 400, 399, 4000] * 25
        assert list(pool.map(rendered, limits)) == [400 if limit >= 400 else 0 for limit in limits]


def test_an_endless_range_is_refused() -> None:
    refusal("{% for a in range(999999999) %}{% endfor %}")


# -- messages --------------------------------------------------------------------------------------------------


def test_parts_of_text_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}, "c", {"text": "d"}]
    messages = parse_messages(json.dumps([{"role": "user", "content": parts}]).encode())
    assert render("{{ messages[0].content }}", messages) == "abcd"


def test_further_keys_reach_the_template() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f"}}], "more": [1]}
    assert parse_messages(json.dumps([call]).encode()) == [call]
    assert parse_messages(json.dumps([{"role": "assistant", "content": None}]).encode())[0]["content"] == ""


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"{",
        b"null",
        b"[",
        b"[]",
        b'{"role": "user", "content": "x"}',
        b'[{"role": "user", "content": "\\ud800"}]',
        b"[" * 100_000,
        ["x"],
        [{}],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": 3}],
        [{"role": "user", "content": {"text": "x"}}],
        [{"role": "robot", "content": "x"}],
        [{"role": None, "content": "x"}],
        [{"role": ["user"], "content": "x"}],
        [{"content": "x"}],
        [{"role": "user", "content": "a\0b"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}],
        [{"role": "user", "content": [{"type": "text", "text": 3}]}],
        [{"role": "user", "content": [3]}],
        [{"role": "user", "content": "x"}] * (MAX_MESSAGES + 1),
    ],
)
def test_what_is_no_conversation(value: Any) -> None:
    assert len(messages_refusal(value)) < 300


def test_the_message_says_which_entry_is_wrong() -> None:
    assert "[1]" in messages_refusal([USER[0], {"role": "robot", "content": "x"}])
    assert "system, developer, user, assistant, tool" in messages_refusal([{"role": "robot", "content": "x"}])


# -- files -----------------------------------------------------------------------------------------------------


def test_where_a_template_comes_from(tmp_path: Path) -> None:
    assert load_chat_templates(tmp_path, None, {}) is None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "config"}))
    assert rendered(tmp_path, None) == "config"
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "named"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert rendered(tmp_path, None) == "named"
    assert rendered(tmp_path, None, TOOLS) == "tools"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert rendered(tmp_path, None) == rendered(tmp_path, None, TOOLS) == "file"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("file of tools", encoding="utf-8")
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("rag {{ documents }}", encoding="utf-8")
    assert rendered(tmp_path, None) == "file"
    assert rendered(tmp_path, None, TOOLS) == "file of tools"
    assert rendered(tmp_path, None, ChatOptions(documents=({"text": "t"},))) == "rag [{'text': 't'}]"
    (tmp_path / "mine.jinja").write_text("operator's")
    assert rendered(tmp_path, tmp_path / "mine.jinja") == "operator's"


TOOLS = ChatOptions(tools=({"type": "function", "function": {"name": "f"}},))


def rendered(folder: Path, override: Path | None, chat: ChatOptions | None = None) -> str:
    templates = load_chat_templates(folder, override, {})
    assert templates is not None
    chat = chat or ChatOptions()
    return templates.choose(chat).render(USER, 1000, chat=chat)


def test_a_file_that_cannot_be_read_or_compiled_fails_the_load(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="missing"):
        load_chat_templates(tmp_path, tmp_path / "missing.jinja", {})
    (tmp_path / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(LoadError, match="chat template"):
        load_chat_templates(tmp_path, None, {})


@pytest.mark.parametrize("content", ["{", "[]", "3"])
def test_a_broken_tokenizer_config_fails_the_load_with_one_sentence(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(LoadError, match="tokenizer_config"):
        load_chat_templates(tmp_path, None, {})


def test_what_a_request_may_set_is_what_every_template_reads_and_nobody_else_gives() -> None:
    source = "{{ bos_token }}{{ messages }}{{ tools }}{{ raise_exception }}{% for i in range(2) %}{{ i }}{% endfor %}"
    one = source + "{{ enable_thinking }}{{ reasoning_effort }}{{ add_generation_prompt }}"
    tokens = {"bos_token": "<s>"}
    assert ChatTemplate(one, tokens).settable == {"enable_thinking", "reasoning_effort"}
    assert ChatTemplates.of(source, tokens).settable == []
    both = {"default": ChatTemplate(one, tokens), "tool_use": ChatTemplate("{{ enable_thinking }}{{ z }}", tokens)}
    assert ChatTemplates({}, both).settable == ["enable_thinking"]
