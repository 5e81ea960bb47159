"""The model's own chat template, rendered in jinja2's sandbox with limits on time and size.

Templates come from the engine directory or from a file the operator names, never from a client. They are compiled once;
the output is taken piece by piece.
"""

from __future__ import annotations

import datetime
import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2.ext
import jinja2.nodes
import jinja2.parser
import msgspec

from inflight.errors import LoadError, RequestError, first_line, invalid
from inflight.model.files import read_json_object
from inflight.request.limits import MAX_MESSAGES, RENDER_SECONDS
from inflight.request.template_sandbox import Budget, Sandbox, TemplateTimeout

log = logging.getLogger("inflight.backend")

ROLES = ("system", "developer", "user", "assistant", "tool")
MAX_PATTERN = 256  # characters of a date's format


class _Rejected(Exception):
    """The template called `raise_exception`: the conversation is not what it accepts."""


class _GenerationTag(jinja2.ext.Extension):
    """Hugging Face's {% generation %} … {% endgeneration %}: it marks text for training, and here it is just text."""

    tags = {"generation"}  # noqa: RUF012 — jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
    """As Hugging Face templates expect it: plain JSON, not escaped for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _nothing() -> None:
    return None


class ChatTemplate:
    """A compiled template and the special tokens it may use. Thread-safe."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Raises `LoadError` when the template does not compile."""
        self._special_tokens = dict(special_tokens)
        self._sandbox = Sandbox(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _GenerationTag]
        )
        self._sandbox.add_filter("tojson", _tojson)
        self._sandbox.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
        try:
            self._template = self._sandbox.from_string(source)
        except Exception as error:  # noqa: BLE001 — jinja2's own, and Python's over what jinja2 makes of the template
            raise LoadError(
                f"the chat template is not a valid jinja2 template ({first_line(error)}); mend chat_template.jinja."
            ) from None

    def render(
        self,
        messages: list[dict[str, Any]],
        max_bytes: int,
        clock: Callable[[], float] = time.monotonic,
        go_on: Callable[[], None] = _nothing,
    ) -> str:
        """The prompt for `messages`, at most `max_bytes` long, ready for the assistant's turn.

        Raises INVALID_ARG with the template's own message when it refuses the conversation. `go_on` is called now and
        then; what it raises ends the rendering.
        """
        stop = _Stop(go_on)
        budget = Budget(max_bytes, clock() + RENDER_SECONDS, clock, stop)
        try:
            with self._sandbox.spending(budget):
                return self._render(messages, max_bytes)
        except RequestError:
            raise
        except _Rejected as error:
            raise invalid("messages", f"are refused by the model's chat template: {str(error)[:500]}") from None
        except TemplateTimeout:
            raise invalid(
                "messages", "take the model's chat template too long or make too much of it; send less"
            ) from None
        except Exception as error:  # noqa: BLE001 — whatever a template makes of odd messages is the client's to mend
            if stop.error is not None:
                raise stop.error from None
            raise invalid("messages", f"do not fit the model's chat template: {str(error)[:500]}") from None

    def _render(self, messages: list[dict[str, Any]], max_bytes: int) -> str:
        pieces: list[str] = []
        size = 0
        for piece in self._template.generate(messages=messages, add_generation_prompt=True, **self._special_tokens):
            self._sandbox.check()
            size += len(piece.encode("utf-8", "replace"))
            if size > max_bytes:
                raise invalid("messages", f"make a prompt of more than the {max_bytes} bytes this model accepts")
            pieces.append(piece)
        return "".join(pieces)


class _Stop:
    """Remembers what ended a rendering from outside."""

    def __init__(self, go_on: Callable[[], None]) -> None:
        self._go_on = go_on
        self.error: Exception | None = None

    def __call__(self) -> None:
        try:
            self._go_on()
        except Exception as error:
            self.error = error
            raise


def _raise_exception(message: str) -> None:
    raise _Rejected(str(message))


def _strftime_now(pattern: str) -> str:
    if len(pattern) > MAX_PATTERN:
        raise TemplateTimeout
    return datetime.datetime.now().strftime(pattern)


def load_chat_template(folder: Path, override: Path | None, special_tokens: Mapping[str, str]) -> ChatTemplate | None:
    """The operator's file if named, else `chat_template.jinja`, else `chat_template` in tokenizer_config.json, else
    None.
    """
    if override is not None:
        return ChatTemplate(
            _read_template(override, f"the file that model parameter chat_template names ({override.name})"),
            special_tokens,
        )
    file = folder / "chat_template.jinja"
    if file.is_file():
        return ChatTemplate(_read_template(file, "the engine directory's chat_template.jinja"), special_tokens)
    source = read_json_object(folder, "tokenizer_config.json").get("chat_template")
    if isinstance(source, list):  # several named templates: the one called "default"
        named = [item for item in source if isinstance(item, dict)]
        source = next((item.get("template") for item in named if item.get("name") == "default"), None)
    if source is not None and not isinstance(source, str):
        log.warning("chat_template of tokenizer_config.json is neither text nor a list of templates: there is none")
    return ChatTemplate(source, special_tokens) if isinstance(source, str) else None


def _read_template(file: Path, what: str) -> str:
    """Raises `LoadError`; `what` is the file in words."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise LoadError(f"{what} is not UTF-8 text; save it as UTF-8.") from None
    except OSError as error:
        raise LoadError(f"cannot read {what} ({error.strerror}); check its name and permissions.") from None


def parse_messages(data: bytes) -> list[dict[str, Any]]:
    """OpenAI chat messages out of a JSON string. Multi-part content is joined where every part is text.

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
    return [_parse_message(place, message) for place, message in enumerate(messages)]


def _parse_message(place: int, message: Any) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise invalid("messages", f"[{place}] must be an object with role and content")
    role = message.get("role")
    if role not in ROLES:
        raise invalid("messages", f"[{place}].role must be one of {', '.join(ROLES)}")
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(_part_text(place, part) for part in content)
    if content is None and (role == "assistant" or message.get("tool_calls")):
        content = ""
    if not isinstance(content, str):
        raise invalid("messages", f"[{place}].content must be a string or a list of text parts")
    if "\0" in content:
        raise invalid("messages", f"[{place}].content holds a NUL character; remove it")
    return {**message, "role": role, "content": content}


def _part_text(place: int, part: Any) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict) or part.get("type") not in ("text", None) or not isinstance(part.get("text"), str):
        raise invalid("messages", f"[{place}].content may have parts of type text only")
    return str(part["text"])
