"""Items of /v1/responses as messages in the form of OpenAI's chat, and its flat tools as that has them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from inflight_gateway.core.errors import invalid, unsupported

MAX_ITEMS = 4096
_TEXTS: Final = ("input_text", "output_text", "text")
_ROLES: Final = ("user", "assistant", "system", "developer")


def messages_of(instructions: str | None, given: Any) -> list[dict[str, Any]]:
    """The conversation. Raises `GatewayError`."""
    said = _Conversation()
    if instructions:
        said.messages.append({"role": "system", "content": instructions})
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise invalid("input", "must be a text, or a list of at least one item")
    if len(given) > MAX_ITEMS:
        raise invalid("input", f"has {len(given)} items; at most {MAX_ITEMS} are allowed")
    for place, item in enumerate(given):
        if not isinstance(item, dict):
            raise invalid(f"input[{place}]", "must be an object")
        said.take(f"input[{place}]", item)
    return said.messages


class _Conversation:
    """Thoughts, words and calls that follow one another are one turn of the assistant."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self._thought: list[str] = []
        self._turn: dict[str, Any] | None = None  # of the assistant, while its items come

    def take(self, path: str, item: Mapping[str, Any]) -> None:
        """One more item."""
        kind = item.get("type") or "message"
        if kind == "message":
            role = item.get("role")
            if role not in _ROLES:
                raise invalid(f"{path}.role", f"must be one of {', '.join(_ROLES)}")
            content = _content(f"{path}.content", item.get("content"))
            if role == "assistant":
                self._assistant(new=self._turn is not None and bool(self._turn["content"]))["content"] = content
                return
            self._over()
            self.messages.append({"role": role, "content": content})
        elif kind == "function_call":
            function = {name: _text(f"{path}.{name}", item.get(name)) for name in ("name", "arguments")}
            call = {"id": _text(f"{path}.call_id", item.get("call_id")), "type": "function", "function": function}
            self._assistant().setdefault("tool_calls", []).append(call)
        elif kind == "function_call_output":
            self._over()
            content = _content(f"{path}.output", item.get("output"))
            call_id = _text(f"{path}.call_id", item.get("call_id"))
            self.messages.append({"role": "tool", "tool_call_id": call_id, "content": content})
        elif kind == "reasoning":
            parts = item.get("content")
            for part in parts if isinstance(parts, list) else []:
                if isinstance(part, dict) and isinstance(part.get("text"), str):
                    self._thought.append(part["text"])
        else:
            raise unsupported(f"{path}.type", f"is {str(kind)[:40]!r}, which is not supported; leave the item out")

    def _assistant(self, new: bool = False) -> dict[str, Any]:
        if self._turn is None or new:
            self._turn = {"role": "assistant", "content": None}
            self.messages.append(self._turn)
        if self._thought:
            self._turn["reasoning_content"] = "".join(self._thought)
            self._thought = []
        return self._turn

    def _over(self) -> None:
        self._turn = None
        self._thought = []


def _text(path: str, value: Any) -> str:
    if not isinstance(value, str):
        raise invalid(path, "must be a string")
    return value


def _content(path: str, content: Any) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid(path, "must be a string or a list of parts")
    parts = []
    for place, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "refusal":
            parts.append({"type": "text", "text": _text(f"{path}[{place}].refusal", part.get("refusal"))})
        elif kind in _TEXTS:
            parts.append({"type": "text", "text": _text(f"{path}[{place}].text", part.get("text"))})
        else:
            raise unsupported(f"{path}[{place}].type", f"is {str(kind)[:40]!r}; only text is supported")
    return parts[0]["text"] if len(parts) == 1 else parts


def tools_of(declared: Any) -> list[dict[str, Any]]:
    """Tools as OpenAI's chat has them. Raises `GatewayError`."""
    if not isinstance(declared, list):
        raise invalid("tools", "must be a list of tools")
    found = []
    for place, tool in enumerate(declared):
        path = f"tools[{place}]"
        if not isinstance(tool, dict):
            raise invalid(path, "must be an object")
        if tool.get("type") != "function":
            raise unsupported(f"{path}.type", "must be function; tools that run at OpenAI are not supported")
        function = {"name": _text(f"{path}.name", tool.get("name"))}
        function |= {key: tool[key] for key in ("description", "parameters", "strict") if tool.get(key) is not None}
        found.append({"type": "function", "function": function})
    return found


def choice_of(choice: Any, tools: list[dict[str, Any]]) -> tuple[str | dict[str, Any] | None, list[dict[str, Any]]]:
    """Chat's tool_choice, and the tools that may be used. Raises `GatewayError`."""
    if choice is None or choice in ("none", "auto", "required"):
        return choice, tools
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind == "function":
        return {"type": "function", "function": {"name": _text("tool_choice.name", choice.get("name"))}}, tools
    if kind == "allowed_tools" and isinstance(choice.get("tools"), list):
        names = [one.get("name") for one in choice["tools"] if isinstance(one, dict)]
        mode = choice.get("mode") or "auto"
        if mode not in ("auto", "required"):
            raise invalid("tool_choice.mode", "must be auto or required")
        return mode, [one for one in tools if one["function"]["name"] in names]
    raise invalid("tool_choice", "must be none, auto, required, or name a function")
