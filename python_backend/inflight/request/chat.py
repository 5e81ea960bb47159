"""What a request says about its chat beside the messages: tools, and how the template is to be used."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from inflight.errors import invalid
from inflight.request.limits import MAX_TEMPLATE_KWARGS_BYTES, MAX_TOOL_BYTES, MAX_TOOLS
from inflight.request.values import Values

MAX_TOOL_NAME: Final = 64
_NAME: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")
# Their effect is on a template, so they need messages.
_OF_TEMPLATES: Final = ("documents", "chat_template_kwargs", "add_generation_prompt", "continue_final_message")


class ToolChoice(enum.Enum):
    """Whether the model may, must or must not call."""

    NONE = "none"
    AUTO = "auto"
    REQUIRED = "required"
    NAMED = "named"


@dataclasses.dataclass(frozen=True, slots=True)
class ChatOptions:
    """`tools` in OpenAI's form, each with a function that has a name; none that could not be called either."""

    tools: tuple[Mapping[str, Any], ...] = ()
    tool_choice: ToolChoice = ToolChoice.NONE
    tool_name: str | None = None  # the one to be called, of NAMED
    parallel_tool_calls: bool = True
    documents: tuple[Mapping[str, Any], ...] = ()
    template_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_final_message: bool = False


def parse_chat(values: Values, has_messages: bool) -> ChatOptions:
    """Raises INVALID_ARG naming the parameter at fault."""
    if not has_messages:
        for given in _OF_TEMPLATES:
            if values.given(given):
                raise invalid(given, "acts on the chat template, so it needs messages; leave it out")
    continues = values.boolean("continue_final_message", False)
    if continues and values.given("add_generation_prompt") and values.boolean("add_generation_prompt", True):
        raise invalid("continue_final_message", "and add_generation_prompt exclude each other; set only one of them")
    tools = _tools(values)
    choice, name = _tool_choice(values, tools)
    parallel = values.boolean("parallel_tool_calls", True)
    documents = _json(values, "documents", list, MAX_TOOL_BYTES) or []
    if not all(isinstance(document, dict) for document in documents):
        raise invalid("documents", 'must be a JSON list of objects such as [{"title": "…", "text": "…"}]')
    return ChatOptions(
        tools=() if choice is ToolChoice.NONE else tools,
        tool_choice=choice,
        tool_name=name,
        parallel_tool_calls=parallel,
        documents=tuple(documents),
        template_kwargs=_json(values, "chat_template_kwargs", dict, MAX_TEMPLATE_KWARGS_BYTES) or {},
        add_generation_prompt=values.boolean("add_generation_prompt", not continues),
        continue_final_message=continues,
    )


def _json(values: Values, name: str, kind: type[Any], max_bytes: int) -> Any:
    """A JSON value, or the text of one; None where there is none. JSON within `sampling_parameters` may be either."""
    if not values.given(name):
        return None
    value = values.raw(name)
    if isinstance(value, (str, bytes)):
        text = values.text(name, max_bytes) or ""
        if not text.strip():
            return None
        try:
            value = msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError) as error:
            raise invalid(name, f"is not valid JSON: {error}") from None
    elif len(msgspec.json.encode(value)) > max_bytes:
        raise invalid(name, f"is longer than the {max_bytes} bytes allowed")
    if value is not None and not isinstance(value, kind):
        raise invalid(name, f"must be a JSON {'list' if kind is list else 'object'}")
    return value


def _tools(values: Values) -> tuple[Mapping[str, Any], ...]:
    tools = _json(values, "tools", list, MAX_TOOL_BYTES) or []
    if len(tools) > MAX_TOOLS:
        raise invalid("tools", f"has {len(tools)} entries; at most {MAX_TOOLS} are allowed")
    names: set[str] = set()
    for place, tool in enumerate(tools):
        name = _tool_name(place, tool)
        if name in names:
            raise invalid("tools", f"[{place}] is called {name}, like one before it; tools need names of their own")
        names.add(name)
    return tuple(tools)


def _tool_name(place: int, tool: Any) -> str:
    if not isinstance(tool, dict) or tool.get("type", "function") != "function" or "function" not in tool:
        raise invalid("tools", f'[{place}] must be an object such as {{"type": "function", "function": {{"name": …}}}}')
    function = tool["function"]
    if not isinstance(function, dict):
        raise invalid("tools", f"[{place}].function must be an object with a name")
    name = function.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= MAX_TOOL_NAME or not _NAME.issuperset(name):
        allowed = f"1 to {MAX_TOOL_NAME} letters, digits, _, - and ."
        raise invalid("tools", f"[{place}].function.name must be a name of {allowed}")
    if not isinstance(function.get("parameters"), (dict, type(None))):
        raise invalid("tools", f"[{place}].function.parameters must be a JSON Schema, or left out")
    if not isinstance(function.get("strict"), (bool, type(None))):
        raise invalid("tools", f"[{place}].function.strict must be true or false")
    if not isinstance(function.get("description"), (str, type(None))):
        raise invalid("tools", f"[{place}].function.description must be a string")
    return name


def _tool_choice(values: Values, tools: tuple[Mapping[str, Any], ...]) -> tuple[ToolChoice, str | None]:
    """(choice, the tool's name where one is named)."""
    given = values.raw("tool_choice") if values.given("tool_choice") else None
    if isinstance(given, (str, bytes)):
        text = values.text("tool_choice", 4096) or ""
        given = _decoded(text) if text.lstrip().startswith("{") else text or None
    if given is None:
        return (ToolChoice.AUTO if tools else ToolChoice.NONE), None
    name = None if isinstance(given, str) and given in ("none", "auto", "required") else _named(given)
    choice = ToolChoice(given) if name is None else ToolChoice.NAMED
    if not tools:
        if choice in (ToolChoice.NONE, ToolChoice.AUTO):
            return ToolChoice.NONE, None
        raise invalid("tool_choice", "asks for a call, but there are no tools; send tools as well")
    names = [tool["function"]["name"] for tool in tools]
    if name is not None and name not in names:
        shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
        raise invalid("tool_choice", f"names {name!r}, which is none of the tools ({shown})")
    return choice, name


def _decoded(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise invalid("tool_choice", f"is not valid JSON: {error}") from None


def _named(given: Any) -> str:
    if isinstance(given, str):
        return given
    is_object = isinstance(given, dict) and given.get("type", "function") == "function"
    function = given.get("function") if is_object else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        form = '{"type": "function", "function": {"name": …}}'
        raise invalid("tool_choice", f"must be none, auto, required, a tool's name or an object such as {form}")
    return name
