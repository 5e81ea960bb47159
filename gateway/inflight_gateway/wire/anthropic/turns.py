"""Anthropic's turns as messages in the form of OpenAI's chat, which chat templates read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inflight_gateway.core.errors import GatewayError, Kind, invalid, unsupported
from inflight_gateway.wire.openai import encoder

MAX_MESSAGES = 4096
_THOUGHTS = ("thinking", "redacted_thinking")


def messages_of(system: Any, turns: Any) -> tuple[list[dict[str, Any]], bool]:
    """The messages, and whether the last one is the beginning of the answer. Raises `GatewayError`."""
    if not isinstance(turns, list) or not turns:
        raise invalid("messages", "must be a list of at least one message")
    if len(turns) > MAX_MESSAGES:
        raise invalid("messages", f"has {len(turns)} entries; at most {MAX_MESSAGES} are allowed")
    messages: list[dict[str, Any]] = []
    if system:
        messages.append({"role": "system", "content": _words("system", system)})
    last = ""
    for role, blocks in _merged(turns):
        last = role
        messages += _SPOKEN[role](blocks)
    if last == "assistant" and messages[-1].get("tool_calls"):
        raise invalid("messages", "end with a call of a tool; add its tool_result, or leave the call out")
    return messages, last == "assistant"


def _merged(turns: list[Any]) -> list[tuple[str, list[tuple[str, Mapping[str, Any]]]]]:
    """Each turn's role and blocks, each block with its path; turns of one role after another are one."""
    found: list[tuple[str, list[tuple[str, Mapping[str, Any]]]]] = []
    for place, turn in enumerate(turns):
        path = f"messages.{place}"
        if not isinstance(turn, dict):
            raise invalid(path, "must be an object")
        role, content = turn.get("role"), turn.get("content")
        if not isinstance(role, str) or role not in _SPOKEN:
            raise invalid(f"{path}.role", "must be user, assistant or system")
        blocks = _blocks(f"{path}.content", content)
        if found and found[-1][0] == role:
            found[-1][1].extend(blocks)
        else:
            found.append((role, blocks))
    return found


def _blocks(path: str, content: Any) -> list[tuple[str, Mapping[str, Any]]]:
    if isinstance(content, str):
        return [(path, {"type": "text", "text": content})]
    if not isinstance(content, list):
        raise invalid(path, "must be a string or a list of blocks")
    for place, block in enumerate(content):
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            raise invalid(f"{path}.{place}", "must be a block: an object with a type")
    return [(f"{path}.{place}", block) for place, block in enumerate(content)]


def _text(path: str, block: Mapping[str, Any], name: str = "text") -> str:
    value = block.get(name)
    if not isinstance(value, str):
        raise invalid(f"{path}.{name}", "must be a string")
    return value


def _words(path: str, content: Any) -> str:
    """Text alone: of a system prompt, or of what a tool gave back."""
    said = []
    for where, block in _blocks(path, content):
        if block["type"] != "text":
            raise unsupported(f"{where}.type", f"is {block['type'][:40]!r}; only text is supported")
        said.append(_text(where, block))
    return "\n".join(said)


def _user(blocks: list[tuple[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Results of tools come first, whatever their place in the turn: they answer the turn before."""
    results: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    for path, block in blocks:
        if block["type"] == "tool_result":
            text = _words(f"{path}.content", block.get("content") or "")
            if block.get("is_error") and not text.lower().startswith("error"):
                text = f"Error: {text}"  # no template knows another way to say it
            results.append({"role": "tool", "tool_call_id": _text(path, block, "tool_use_id"), "content": text})
        elif block["type"] == "text":
            parts.append({"type": "text", "text": _text(path, block)})
        else:
            raise unsupported(f"{path}.type", f"is {block['type'][:40]!r}; text and tool_result are supported")
    if not parts:
        return results or [{"role": "user", "content": ""}]
    return [*results, {"role": "user", "content": parts[0]["text"] if len(parts) == 1 else parts}]


def _system(blocks: list[tuple[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    return [{"role": "system", "content": "\n".join(_words(path, [block]) for path, block in blocks)}]


def _assistant(blocks: list[tuple[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    said: list[str] = []
    thought: list[str] = []
    calls: list[dict[str, Any]] = []
    for path, block in blocks:
        if block["type"] == "text":
            said.append(_text(path, block))
        elif block["type"] == "tool_use":
            given = block.get("input", {})
            if not isinstance(given, dict):
                raise invalid(f"{path}.input", "must be an object")
            function = {"name": _text(path, block, "name"), "arguments": encoder.encode(given).decode()}
            calls.append({"id": _text(path, block, "id"), "type": "function", "function": function})
        elif block["type"] == "thinking":
            thought.append(_text(path, block, "thinking"))
        elif block["type"] not in _THOUGHTS:
            raise unsupported(f"{path}.type", f"is {block['type'][:40]!r}; text, tool_use, thinking are supported")
    message: dict[str, Any] = {"role": "assistant", "content": "".join(said)}
    if calls:
        message |= {"content": message["content"] or None, "tool_calls": calls}
    if thought:
        message["reasoning_content"] = "".join(thought)
    return [message]


_SPOKEN = {"user": _user, "assistant": _assistant, "system": _system}


def tools_of(declared: Any) -> list[dict[str, Any]]:
    """Tools in the form of OpenAI's chat. Raises `GatewayError`."""
    if not isinstance(declared, list):
        raise invalid("tools", "must be a list of tools")
    found = []
    for place, tool in enumerate(declared):
        path = f"tools.{place}"
        if not isinstance(tool, dict):
            raise invalid(path, "must be an object")
        if tool.get("type") not in (None, "custom"):
            raise unsupported(f"{path}.type", "must be custom; tools that run at Anthropic are not supported")
        function = {"name": _text(path, tool, "name"), "parameters": tool.get("input_schema")}
        function |= {name: tool[name] for name in ("description", "strict") if tool.get(name) is not None}
        found.append({"type": "function", "function": function})
    return found


def choice_of(choice: Any) -> tuple[str | dict[str, Any] | None, bool | None]:
    """OpenAI's tool_choice and parallel_tool_calls. Raises `GatewayError`."""
    if choice is None:
        return None, None
    kind = choice.get("type") if isinstance(choice, dict) else None
    parallel = None if kind is None or choice.get("disable_parallel_tool_use") is not True else False
    if kind == "tool":
        return {"type": "function", "function": {"name": _text("tool_choice", choice, "name")}}, parallel
    known = {"auto": "auto", "any": "required", "none": "none"}
    if not isinstance(kind, str) or kind not in known:
        raise GatewayError(Kind.INVALID, "tool_choice.type must be auto, any, tool or none", "tool_choice.type")
    return known[kind], parallel
