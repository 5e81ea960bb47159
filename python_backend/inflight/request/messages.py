"""OpenAI chat messages out of JSON, and in the form that a chat template was written for."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from inflight.errors import invalid
from inflight.request.limits import MAX_MESSAGES
from inflight.request.template_features import REASONING_NAMES, TemplateFeatures

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

Message = dict[str, Any]


def parse_messages(data: bytes, features: TemplateFeatures | None = None) -> list[Message]:
    """The messages of a JSON string, checked. A role that the template names is a role.

    Raises INVALID_ARG naming `messages`.
    """
    try:
        messages = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise invalid("messages", f"is not valid JSON: {error}") from None
    if not isinstance(messages, list) or not messages:
        raise invalid("messages", 'must be a JSON list such as [{"role": "user", "content": "Hello"}]')
    if len(messages) > MAX_MESSAGES:
        raise invalid("messages", f"has {len(messages)} entries; at most {MAX_MESSAGES} are allowed")
    known = features or TemplateFeatures()
    return [_parse_message(place, message, known) for place, message in enumerate(messages)]


def _parse_message(place: int, message: Any, features: TemplateFeatures) -> Message:
    if not isinstance(message, dict):
        raise invalid("messages", f"[{place}] must be an object with role and content")
    role = message.get("role")
    if not isinstance(role, str) or (role not in ROLES and role not in features.words):
        raise invalid("messages", f"[{place}].role must be one of {', '.join(ROLES)}")
    _check_calls(place, message)
    calls = message.get("tool_calls") or message.get("function_call")
    content = message.get("content")
    if content is None and role == "assistant":
        # Templates tell a turn that is only a call by content that is none, or not there at all.
        return {**message, "role": role} if calls else {**message, "role": role, "content": ""}
    if isinstance(content, list):
        content = [{"type": "text", "text": _part_text(place, part)} for part in content]
        texts = [part["text"] for part in content]
    elif isinstance(content, str):
        texts = [content]
    else:
        raise invalid("messages", f"[{place}].content must be a string or a list of text parts")
    if any("\0" in text for text in texts):
        raise invalid("messages", f"[{place}].content holds a NUL character; remove it")
    return {**message, "role": role, "content": content}


def _check_calls(place: int, message: Message) -> None:
    calls = message.get("tool_calls")
    if calls is None:
        return
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise invalid("messages", f"[{place}].tool_calls must be a list of objects with id, type and function")
    for number, call in enumerate(calls):
        function = call.get("function", call)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise invalid("messages", f"[{place}].tool_calls[{number}].function must be an object with a name")


def _part_text(place: int, part: Any) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict) or part.get("type") not in ("text", None) or not isinstance(part.get("text"), str):
        raise invalid("messages", f"[{place}].content may have parts of type text only")
    return str(part["text"])


def last_text(messages: list[Message]) -> str:
    """The text of the last message."""
    content = messages[-1].get("content")
    return content[-1]["text"] if isinstance(content, list) and content else content if isinstance(content, str) else ""


def fit_messages(messages: list[Message], features: TemplateFeatures, arguments_as_text: bool = False) -> list[Message]:
    """The messages as a template with these features wants them. Arguments of calls are objects, as transformers' own
    templates have them, unless `arguments_as_text`.
    """
    fitted = [_fit(message, features, arguments_as_text) for message in messages]
    _name_results(fitted)
    if features.short_call_ids:
        for message in fitted:
            _shorten_ids(message)
    return fitted


def has_text_arguments(messages: list[Message]) -> bool:
    """Whether any call's arguments came as text, as OpenAI's clients send them."""
    return any(
        isinstance(call.get("function", call).get("arguments"), str)
        for message in messages
        for call in message.get("tool_calls") or ()
    )


def _fit(message: Message, features: TemplateFeatures, arguments_as_text: bool) -> Message:
    fitted = dict(message)
    content = fitted.get("content")
    if isinstance(content, list) and not features.reads_parts:
        fitted["content"] = "".join(part["text"] for part in content)
    elif isinstance(content, str) and features.reads_parts and not features.reads_strings:
        fitted["content"] = [{"type": "text", "text": content}]
    if fitted["role"] == "developer" and not features.mentions("developer"):
        fitted["role"] = "system"
    name = features.reasoning_name
    if name is not None and fitted.get(name) is None:
        thoughts = next((fitted[other] for other in REASONING_NAMES if isinstance(fitted.get(other), str)), None)
        if thoughts is not None:
            fitted[name] = thoughts
    if fitted.get("tool_calls") and not arguments_as_text:
        fitted["tool_calls"] = [_with_object(call) for call in fitted["tool_calls"]]
    return fitted


def _with_object(call: Message) -> Message:
    """A call with its arguments as an object, where they are one."""
    function = call.get("function", call)
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        return call
    try:
        value = msgspec.json.decode(arguments) if arguments.strip() else {}
    except (msgspec.DecodeError, RecursionError):
        return call
    if not isinstance(value, dict):
        return call
    changed = {**function, "arguments": value}
    return {**call, "function": changed} if "function" in call else changed


def _name_results(messages: list[Message]) -> None:
    """Results of tools get the name of the tool, which OpenAI's form has only in the call."""
    names: dict[str, str] = {}
    for message in messages:
        for call in message.get("tool_calls") or ():
            if isinstance(call.get("id"), str):
                names[call["id"]] = call.get("function", call)["name"]
        called = message.get("tool_call_id")
        if message["role"] == "tool" and message.get("name") is None and isinstance(called, str) and called in names:
            message["name"] = names[called]


def _shorten_ids(message: Message) -> None:
    """Ids of nine letters and digits, for templates that take no others; the same id becomes the same one."""
    if message.get("tool_calls"):
        message["tool_calls"] = [
            {**call, "id": short_call_id(call["id"])} if isinstance(call.get("id"), str) else call
            for call in message["tool_calls"]
        ]
    if isinstance(message.get("tool_call_id"), str):
        message["tool_call_id"] = short_call_id(message["tool_call_id"])


def short_call_id(call_id: str) -> str:
    """An id as Mistral's templates want them: itself if it is one."""
    if len(call_id) == 9 and call_id.isascii() and call_id.isalnum():
        return call_id
    number = int.from_bytes(hashlib.sha256(call_id.encode("utf-8", "surrogatepass")).digest()[:8], "big")
    digits = []
    for _ in range(9):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(digits)
