"""What a model thought, apart from its answer: <think> … </think> before the answer, or [THINK] … [/THINK]."""

from __future__ import annotations

import dataclasses
import enum

from inflight.answer.tools.events import SPACE, possible_start


class ReasoningForm(enum.Enum):
    """How a model marks its thoughts. `THINK_BRACKETS` is Mistral's."""

    THINK = "think"
    THINK_BRACKETS = "think_brackets"
    NONE = "none"


TAGS = {
    ReasoningForm.THINK: ("<think>", "</think>"),
    ReasoningForm.THINK_BRACKETS: ("[THINK]", "[/THINK]"),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Split:
    """New text: thought, and answer."""

    thought: str
    answer: str


class ReasoningSplitter:
    """Splits the text of one sequence as it arrives, however it was cut.

    Thoughts stand before the answer, once. White space around their tags belongs to the form. A text that does not
    begin with the opening tag is all answer, unless the prompt has opened it already (`opened`).
    """

    def __init__(self, form: ReasoningForm, opened: bool, raw: bool = False) -> None:
        """`raw`: thoughts keep their tags and the white space around them, so that both parts joined are the text."""
        self._open, self._close = TAGS[form]
        self._raw = raw
        self._held = ""
        self._state = self._space_before_thought if opened else self._before

    @property
    def thinking(self) -> bool:
        """Whether the closing tag is still to come."""
        return self._state in (self._space_before_thought, self._in_thought)

    @property
    def behind(self) -> bool:
        """Whether all that comes is answer: nothing need be pushed any more."""
        return self._state == self._in_answer and not self._held

    def push(self, text: str) -> Split:
        """Take further text."""
        if not self._held and self._state == self._in_thought and self._is_plain(text):
            return Split(text, "")
        thought = answer = ""
        rest = self._held + text
        self._held = ""
        while rest:
            state = self._state
            new_thought, new_answer, rest = state(rest)
            thought += new_thought
            answer += new_answer
            if self._state == state:
                self._held = rest
                break
        return Split(thought, answer)

    def _is_plain(self, text: str) -> bool:
        """Whether nothing in the text can begin what ends a thought: what most text is, told in a moment."""
        return bool(text) and self._close[0] not in text and (self._raw or text[-1] not in SPACE)

    def finish(self) -> Split:
        """The text has ended: what is held back comes out."""
        held, self._held = self._held, ""
        if self._state in (self._space_before_thought, self._space_before_answer):
            return Split(held if self._raw else "", "")
        return Split(held, "") if self.thinking else Split("", held)

    # Each state: (thought, answer, what is left). A state that stays the same needs more text for what is left.

    def _before(self, text: str) -> tuple[str, str, str]:
        bare = text.lstrip(SPACE)
        if bare.startswith(self._open):
            self._state = self._space_before_thought
            left = bare[len(self._open) :]
            return text[: len(text) - len(left)] if self._raw else "", "", left
        if len(text) <= 256 and self._open.startswith(bare):
            return "", "", text
        self._state = self._in_answer
        return "", "", text

    def _space_before_thought(self, text: str) -> tuple[str, str, str]:
        bare = text if self._raw else text.lstrip(SPACE)
        if bare:
            self._state = self._in_thought
        return "", "", bare

    def _in_thought(self, text: str) -> tuple[str, str, str]:
        end = text.find(self._close)
        if end >= 0 and self._raw:
            end += len(self._close)
            self._state = self._in_answer
            return text[:end], "", text[end:]
        if end >= 0:
            self._state = self._space_before_answer
            return text[:end].rstrip(SPACE), "", text[end + len(self._close) :]
        keep = len(text) - possible_start(text, 0, self._close)
        while not self._raw and keep and text[keep - 1] in SPACE and len(text) - keep < 256:
            keep -= 1
        return text[:keep], "", text[keep:]

    def _space_before_answer(self, text: str) -> tuple[str, str, str]:
        bare = text.lstrip(SPACE)
        if bare:
            self._state = self._in_answer
        return "", "", bare

    def _in_answer(self, text: str) -> tuple[str, str, str]:
        return "", text, ""


def form_of_template(template: str) -> ReasoningForm:
    """What a chat template shows of how its model thinks."""
    if "</think>" in template:
        return ReasoningForm.THINK
    return ReasoningForm.THINK_BRACKETS if "[/THINK]" in template else ReasoningForm.NONE


class Stage(enum.Enum):
    """Where a prompt leaves its model: before a thought that it may begin, within one, or behind all of them."""

    BEFORE = "before"
    WITHIN = "within"
    BEHIND = "behind"


def stage_of(prompt: str, form: ReasoningForm, prefill: str = "") -> Stage:
    """By how the prompt ends, or by the beginning of an answer that the client gave (`prefill`, the prompt's end). A
    tag in what a user wrote says nothing. A model that does not think is behind all thoughts.
    """
    if form is ReasoningForm.NONE:
        return Stage.BEHIND
    opening, closing = TAGS[form]
    bare = prompt.rstrip(SPACE)
    if bare.endswith(opening) or prefill.rfind(opening) > prefill.rfind(closing):
        return Stage.WITHIN
    return Stage.BEHIND if bare.endswith(closing) or prefill.strip(SPACE) else Stage.BEFORE


def is_open(prompt: str, form: ReasoningForm, prefill: str = "") -> bool:
    """Whether the model goes on within thoughts."""
    return stage_of(prompt, form, prefill) is Stage.WITHIN
