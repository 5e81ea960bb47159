"""Where a model's chat templates stand: the operator's file, or the engine directory's."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path

from inflight.errors import LoadError
from inflight.model.files import read_json_object
from inflight.request.chat import ChatOptions
from inflight.request.chat_template import ChatTemplate

log = logging.getLogger("inflight.backend")

DEFAULT = "default"
FOLDER = "additional_chat_templates"  # of checkpoints written by transformers from 4.51 on
MOST = 16  # templates of one model


@dataclasses.dataclass(frozen=True, slots=True)
class ChatTemplates:
    """A model's templates by name. One is called `default`."""

    sources: Mapping[str, str]
    compiled: Mapping[str, ChatTemplate]

    def choose(self, chat: ChatOptions) -> ChatTemplate:
        """The one for tools or for documents where there is one, as transformers chooses."""
        return self.compiled[self.name_for(chat)]

    def name_for(self, chat: ChatOptions) -> str:
        """Its name."""
        if chat.tools and "tool_use" in self.compiled:
            return "tool_use"
        return "rag" if chat.documents and "rag" in self.compiled else DEFAULT

    @classmethod
    def of(cls, source: str, special_tokens: Mapping[str, str]) -> ChatTemplates:
        """One template for everything; raises `LoadError` when it does not compile."""
        return cls({DEFAULT: source}, {DEFAULT: ChatTemplate(source, special_tokens)})

    @property
    def settable(self) -> list[str]:
        """Names that chat_template_kwargs may have, whichever template is chosen."""
        return sorted(frozenset.intersection(*(each.settable for each in self.compiled.values())))

    @property
    def for_tools(self) -> str:
        """The source of the one that shows how tools are called."""
        return self.sources.get("tool_use", self.sources[DEFAULT])

    @property
    def show_tools(self) -> bool:
        """Whether the model is told which tools there are."""
        return "tools" in self.compiled.get("tool_use", self.compiled[DEFAULT]).features.variables


def load_chat_templates(folder: Path, override: Path | None, special_tokens: Mapping[str, str]) -> ChatTemplates | None:
    """The operator's file if named, else `chat_template.jinja` and the folder of further ones beside it, else
    `chat_template` in tokenizer_config.json, which is one or a list of named ones. None where none is called default.
    """
    sources = _sources(folder, override)
    if DEFAULT not in sources:
        return None
    return ChatTemplates(sources, {name: ChatTemplate(source, special_tokens) for name, source in sources.items()})


def _sources(folder: Path, override: Path | None) -> dict[str, str]:
    if override is not None:
        return {DEFAULT: _read(override, f"the file that model parameter chat_template names ({override.name})")}
    file = folder / "chat_template.jinja"
    if file.is_file():
        sources = {DEFAULT: _read(file, "the engine directory's chat_template.jinja")}
        for other in sorted((folder / FOLDER).glob("*.jinja"))[:MOST]:
            sources[other.stem] = _read(other, f"{other.name} of the engine directory's {FOLDER}")
        return sources
    source = read_json_object(folder, "tokenizer_config.json").get("chat_template")
    if isinstance(source, str):
        return {DEFAULT: source}
    if isinstance(source, list):
        named = [item for item in source[:MOST] if isinstance(item, dict)]
        return {str(item.get("name")): item["template"] for item in named if isinstance(item.get("template"), str)}
    if source is not None:
        log.warning("chat_template of tokenizer_config.json is neither text nor a list of templates: there is none")
    return {}


def _read(file: Path, what: str) -> str:
    """Raises `LoadError`; `what` is the file in words."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise LoadError(f"{what} is not UTF-8 text; save it as UTF-8.") from None
    except OSError as error:
        raise LoadError(f"cannot read {what} ({error.strerror}); check its name and permissions.") from None
