"""The model's own chat template, rendered in jinja2's sandbox with limits on time and size.

Templates come from the engine directory or from a file the operator names, never from a client. They are compiled once;
the output is taken piece by piece.
"""

from __future__ import annotations

import datetime
import json
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

import jinja2.ext
import jinja2.nodes
import jinja2.parser

from inflight.errors import LoadError, RequestError, did_you_mean, first_line, invalid
from inflight.request.chat import ChatOptions
from inflight.request.limits import RENDER_SECONDS
from inflight.request.messages import Message, fit_messages, has_text_arguments
from inflight.request.template_features import features_of
from inflight.request.template_sandbox import Budget, Sandbox, TemplateTimeout

MAX_PATTERN = 256  # characters of a date's format


class _Rejected(Exception):
    """The template called `raise_exception`: the conversation is not what it accepts."""


class _GenerationTag(jinja2.ext.Extension):
    """Hugging Face's {% generation %} … {% endgeneration %}: it marks text for training, and here it is just text."""

    tags = {"generation"}  # noqa: RUF012 — jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As Hugging Face templates expect it: plain JSON, not escaped for HTML; its keywords are those of transformers."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


# Not for a request's chat_template_kwargs: what has an input of its own, and what transformers' own function takes.
_OURS = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "tokenize", "chat_template"}
)


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
            self.features = features_of(self._sandbox, source)
            self._template = self._sandbox.from_string(source)
        except Exception as error:  # noqa: BLE001 — jinja2's own, and Python's over what jinja2 makes of the template
            raise LoadError(
                f"the chat template is not a valid jinja2 template ({first_line(error)}); mend chat_template.jinja."
            ) from None

    @property
    def settable(self) -> frozenset[str]:
        """Names that chat_template_kwargs may have: read, and given by neither us nor jinja nor the tokenizer."""
        return self.features.variables.difference(_OURS, self._special_tokens, self._sandbox.globals)

    def render(
        self,
        messages: list[Message],
        max_bytes: int,
        clock: Callable[[], float] = time.monotonic,
        go_on: Callable[[], None] = _nothing,
        chat: ChatOptions | None = None,
    ) -> str:
        """The prompt for `messages`, at most `max_bytes` long: ready for the assistant's turn, or as `chat` says.

        Raises INVALID_ARG with the template's own message when it refuses the conversation. `go_on` is called now and
        then; what it raises ends the rendering.
        """
        chat = chat or ChatOptions()
        variables = self._variables(chat)
        stop = _Stop(go_on)
        budget = Budget(max_bytes, clock() + RENDER_SECONDS, clock, stop)
        try:
            with self._sandbox.spending(budget):
                return self._render(messages, variables, max_bytes, chat.continue_final_message, stop)
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

    def _variables(self, chat: ChatOptions) -> dict[str, Any]:
        """What the template is given beside the messages. What it does not read cannot be asked for."""
        known = self.features.variables
        for name in chat.template_kwargs:
            if name in _OURS or name in self._special_tokens or name in self._sandbox.globals:
                raise invalid("chat_template_kwargs", f"has {name}, which is not for requests to set; leave it out")
            if name not in known:
                shown = name if len(name) <= 64 else name[:61] + "..."
                hint = did_you_mean(name[:64], known - _OURS)
                raise invalid(
                    "chat_template_kwargs", f"has {shown}, which the model's chat template does not read{hint}"
                )
        if chat.documents and "documents" not in known:
            raise invalid("documents", "are not read by the model's chat template; put them into messages")
        return {
            **self._special_tokens,
            **chat.template_kwargs,
            "tools": list(chat.tools) or None,
            "documents": list(chat.documents) or None,
            "add_generation_prompt": chat.add_generation_prompt,
        }

    def _render(
        self, messages: list[Message], variables: Mapping[str, Any], max_bytes: int, continues: bool, stop: _Stop
    ) -> str:
        marker = ""
        if continues:
            marker = f"CONTINUE-{secrets.token_hex(8)}"
            messages = [*messages[:-1], _marked(messages[-1], marker + " ")]
        text = self._tried(messages, variables, max_bytes, stop)
        return _until(text, marker) if continues else text

    def _tried(self, messages: list[Message], variables: Mapping[str, Any], max_bytes: int, stop: _Stop) -> str:
        """The prompt. A template that fails gets what it may have wanted instead: arguments as they came, where it
        joins them to other text; then no words for none beside calls, where it joins those.
        """
        forms = [(messages, False)]
        if has_text_arguments(messages):
            forms.append((messages, True))
        if any(message.get("content", "") is None for message in messages):
            spoken = [{**one, "content": ""} if one.get("content", "") is None else one for one in messages]
            forms += [(spoken, as_text) for _, as_text in list(forms)]
        while True:
            given, as_text = forms.pop(0)
            try:
                return self._generate(
                    fit_messages(given, self.features, arguments_as_text=as_text), variables, max_bytes
                )
            except (_Rejected, TemplateTimeout, RequestError):
                raise
            except Exception:
                if stop.error is not None or not forms:
                    raise

    def _generate(self, messages: list[Message], variables: Mapping[str, Any], max_bytes: int) -> str:
        pieces: list[str] = []
        size = 0
        for piece in self._template.generate(messages=messages, **variables):
            self._sandbox.check()
            size += len(piece.encode("utf-8", "replace"))
            if size > max_bytes:
                raise invalid("messages", f"make a prompt of more than the {max_bytes} bytes this model accepts")
            pieces.append(piece)
        return "".join(pieces)


def _marked(message: Message, marker: str) -> Message:
    """The message with `marker` behind its text."""
    content = message.get("content")
    if isinstance(content, list) and content:
        last = content[-1]
        return {**message, "content": [*content[:-1], {**last, "text": last["text"] + marker}]}
    return {**message, "content": (content or "") + marker} if isinstance(content, (str, type(None))) else message


def _until(text: str, marker: str) -> str:
    """The prompt up to the end of the last message's text, which the template may have trimmed."""
    place = text.rfind(marker)
    if place < 0:
        raise invalid(
            "continue_final_message",
            "cannot be honoured: the model's chat template leaves the last message's text out; send another one last",
        )
    kept = text.startswith(marker + " ", place)
    return text[:place] if kept else text[:place].rstrip()


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
