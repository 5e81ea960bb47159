"""How one model writes calls and thoughts, and what that makes of a request: its guide, and the parts of its text."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from inflight.answer.parts import PartsForm
from inflight.answer.reasoning import TAGS, ReasoningForm, Stage, is_open
from inflight.answer.reasoning import form_of_template as reasoning_of
from inflight.answer.tools.forms import MARKERS, ToolForm
from inflight.answer.tools.forms import form_of_template as tools_of
from inflight.backend.relaxations import Relaxations
from inflight.engines.base import Guide
from inflight.errors import invalid, unsupported
from inflight.grammar import tool_arguments
from inflight.grammar.thought import Thought
from inflight.grammar.tools import FORMS
from inflight.model.parameters import ModelConfig
from inflight.request.chat import ToolChoice
from inflight.request.parse import GenerationRequest
from inflight.request.prompt import Prompt

_FORCED = (ToolChoice.REQUIRED, ToolChoice.NAMED)


@dataclasses.dataclass(frozen=True, slots=True)
class ModelForms:
    """`shows_tools`: the chat template tells the model which tools there are. `markers`: special tokens that calls and
    thoughts are told by, which therefore stay in the text that is read.
    """

    tools: ToolForm
    reasoning: ReasoningForm
    shows_tools: bool
    markers: frozenset[int]
    _relaxations: Relaxations = dataclasses.field(default_factory=Relaxations, compare=False)

    def guided(self, request: GenerationRequest, stage: Callable[[GenerationRequest], Stage]) -> GenerationRequest:
        """The request with the guide that keeps what its tool_choice promises, and with room for a thought before its
        guide, whichever it is. Raises `RequestError`.

        `stage` says where the prompt will leave the model.
        """
        guided = self._with_calls(request)
        if guided.guide is None or self.reasoning is ReasoningForm.NONE:
            return guided
        found = stage(guided)
        # A bare text asks for no thought, unless it ends in one or the request knows of thoughts.
        chats = request.messages is not None or bool(request.chat.tools) or request.reasoning
        if found is Stage.BEHIND or not (chats or found is Stage.WITHIN):
            return guided
        thought = Thought(*TAGS[self.reasoning], found is Stage.WITHIN)
        return dataclasses.replace(guided, guide=msgspec.structs.replace(guided.guide, thought=thought))

    def _with_calls(self, request: GenerationRequest) -> GenerationRequest:
        chat = request.chat
        if not chat.tools or chat.tool_choice is ToolChoice.NONE:
            return request
        if chat.tool_choice not in _FORCED:
            if self.tools is ToolForm.NONE and not (request.messages is not None and self.shows_tools):
                raise unsupported(
                    "tools",
                    "have no effect on this model, whose chat template shows it none; set tool_choice to required or a "
                    "tool's name, or the model parameter tool_format",
                )
            return request
        if request.guide is not None:
            raise invalid("tool_choice", "asks for a call, and a guide for something else; leave one of them out")
        tools = _callable(request)
        several = chat.parallel_tool_calls and chat.tool_choice is ToolChoice.REQUIRED
        guide: dict[str, Any] = {"form": self._forced(tools).value, "tools": tools, "parallel": several}
        return dataclasses.replace(request, guide=Guide("tools", json.dumps(guide, sort_keys=True)))

    def left_out(self, request: GenerationRequest) -> list[str] | None:
        """What the guide of the request's tools does not keep of their schemas; None: no guide makes its calls."""
        if not request.chat.tools or request.chat.tool_choice not in _FORCED:
            return None
        return self._relaxations.of(_callable(request))

    def _forced(self, tools: Sequence[Mapping[str, Any]]) -> ToolForm:
        """The form in which a guide makes calls of these tools."""
        form = self.tools.value
        if form not in FORMS or (form in tool_arguments.FORMS and not tool_arguments.fits(form, tools)):
            return ToolForm.JSON_LIST
        return self.tools

    def parts_of(self, request: GenerationRequest, prompt: Prompt) -> PartsForm:
        """What the text of the request's sequences is taken apart by."""
        chat = request.chat
        tools = ToolForm.NONE
        if chat.tools and chat.tool_choice is not ToolChoice.NONE:
            tools = self._forced(_callable(request)) if chat.tool_choice in _FORCED else self.tools
        if tools is ToolForm.NONE and not request.reasoning:
            return PartsForm()
        single = not chat.parallel_tool_calls or chat.tool_choice is ToolChoice.NAMED
        return PartsForm(
            reasoning=self.reasoning,
            opened=is_open(prompt.end, self.reasoning, prompt.prefill),
            splits=request.reasoning,
            tools=tools,
            schemas=chat.tools,
            max_calls=1 if single else None,
        )


def _callable(request: GenerationRequest) -> list[Mapping[str, Any]]:
    """The tools of which one is to be called."""
    chat = request.chat
    return [tool for tool in chat.tools if chat.tool_name in (None, tool["function"]["name"])]


def model_forms(config: ModelConfig, template: str, shows_tools: bool, special: Mapping[str, int]) -> ModelForms:
    """By the model's parameters, or by what its chat template shows (empty: it has none). `special` are the special
    tokens by their text.
    """
    tools = tools_of(template) if config.tool_format == "auto" else ToolForm(config.tool_format)
    reasoning = reasoning_of(template) if config.reasoning_format == "auto" else ReasoningForm(config.reasoning_format)
    texts = [*MARKERS.get(tools, ()), *TAGS.get(reasoning, ())]
    return ModelForms(tools, reasoning, shows_tools, frozenset(special[text] for text in texts if text in special))
