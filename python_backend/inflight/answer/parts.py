"""The parts of one sequence's text: what was thought, what is answered, and which tools are called."""

from __future__ import annotations

import dataclasses
import json
import secrets
import string
from collections.abc import Mapping
from typing import Any, Final

from inflight.answer.reasoning import ReasoningForm, ReasoningSplitter, Split
from inflight.answer.tools.events import CallArguments, CallStart, Text, ToolEvent
from inflight.answer.tools.forms import ToolForm, make_parser

_LETTERS: Final = string.ascii_letters + string.digits


@dataclasses.dataclass(frozen=True, slots=True)
class PartsForm:
    """What one request's sequences are taken apart by. `reasoning`: the form of thoughts that may stand before the
    answer; `opened`: the prompt has begun one; `splits`: the request wants thoughts apart from the answer.
    """

    reasoning: ReasoningForm = ReasoningForm.NONE
    opened: bool = False
    splits: bool = False
    tools: ToolForm = ToolForm.NONE
    schemas: tuple[Mapping[str, Any], ...] = ()  # the tools, in OpenAI's form
    max_calls: int | None = None

    @property
    def plain(self) -> bool:
        """Whether all text is answer."""
        return self.tools is ToolForm.NONE and not (self.splits and self.reasoning is not ReasoningForm.NONE)

    def make(self) -> Parts:
        """For one sequence."""
        return Parts(self)


@dataclasses.dataclass(slots=True)
class _Call:
    call_id: str
    name: str
    arguments: list[str]
    told: bool = False  # id and name are in a reply


class Parts:
    """Takes text, and gives what is new of each part. Not thread-safe."""

    def __init__(self, form: PartsForm) -> None:
        self._new_id = _mistral_id if form.tools is ToolForm.MISTRAL else _call_id
        self._splitter = (
            None
            if form.reasoning is ReasoningForm.NONE
            else ReasoningSplitter(form.reasoning, form.opened, raw=not form.splits)
        )
        self._splits = form.splits
        self._parser = make_parser(form.tools, form.schemas, form.max_calls)
        self._thought: list[str] = []
        self._answer: list[str] = []
        self._calls: dict[int, _Call] = {}  # those that have something new
        self._latest: _Call | None = None  # more of its arguments may come

    @property
    def calls(self) -> int:
        """How many calls have begun."""
        return self._parser.calls if self._parser is not None else 0

    @property
    def pending(self) -> bool:
        """Whether there is anything new."""
        return bool(self._thought or self._answer or self._calls)

    def push(self, text: str) -> None:
        """Take further text."""
        if not text:
            return
        if self._splitter is None or self._splitter.behind:
            self._take_answer(text)
        else:
            self._take(self._splitter.push(text))

    def finish(self) -> None:
        """The text has ended."""
        if self._splitter is not None:
            self._take(self._splitter.finish())
        if self._parser is not None:
            self._read(self._parser.finish())

    def take_answer(self) -> str:
        """What is new of the answer."""
        text = "".join(self._answer)
        self._answer.clear()
        return text

    def take_thought(self) -> str:
        """What is new of the thoughts."""
        text = "".join(self._thought)
        self._thought.clear()
        return text

    def take_calls(self, whole: bool) -> str:
        """What is new of the calls, as a JSON list; `whole`: all of it is, and ends here."""
        if not self._calls:
            return "[]"
        items = []
        for index, call in self._calls.items():
            arguments = "".join(call.arguments)
            item: dict[str, Any] = {} if whole else {"index": index}
            if call.told:
                item["function"] = {"arguments": arguments}
            else:
                function = {"name": call.name, "arguments": arguments}
                item |= {"id": call.call_id, "type": "function", "function": function}
            items.append(item)
            call.told = True
            call.arguments.clear()
        self._calls = {}
        return json.dumps(items, ensure_ascii=False)

    def _take(self, split: Split) -> None:
        if split.thought:
            (self._thought if self._splits else self._answer).append(split.thought)
        if split.answer:
            self._take_answer(split.answer)

    def _take_answer(self, text: str) -> None:
        if self._parser is None:
            self._answer.append(text)
        else:
            self._read(self._parser.push(text))

    def _read(self, events: list[ToolEvent]) -> None:
        for event in events:
            match event:
                case Text(text):
                    self._answer.append(text)
                case CallStart(index, name):
                    self._latest = self._calls[index] = _Call(self._new_id(), name, [])
                case CallArguments(index, text):
                    assert self._latest is not None
                    self._latest.arguments.append(text)
                    self._calls[index] = self._latest


def _call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def _mistral_id() -> str:
    """Mistral's templates take ids of nine letters and digits and no others."""
    return "".join(secrets.choice(_LETTERS) for _ in range(9))
