"""What a chat template reads, found in its syntax: which form of a conversation it was written for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jinja2
import jinja2.meta
import jinja2.nodes

REASONING_NAMES = ("reasoning_content", "reasoning", "thinking")


@dataclasses.dataclass(frozen=True, slots=True)
class TemplateFeatures:
    """`variables` are those that it reads and does not set; `words` are all constant texts and names in it.

    `reads_parts`: it goes through `content` as a list of parts; `reads_strings`: it asks whether something is a string.
    """

    variables: frozenset[str] = frozenset()
    words: frozenset[str] = frozenset()
    reads_parts: bool = False
    reads_strings: bool = False
    short_call_ids: bool = False

    @property
    def reasoning_name(self) -> str | None:
        """Under which name of a message it reads the thoughts of earlier turns."""
        return next((name for name in REASONING_NAMES if name in self.words), None)

    def mentions(self, word: str) -> bool:
        """Whether it writes or compares with `word`, by itself or within a longer text."""
        return word in self.words or any(word in other for other in self.words)


def features_of(environment: jinja2.Environment, source: str) -> TemplateFeatures:
    """Raises what jinja2 raises for a template that it cannot read."""
    tree = environment.parse(source)
    return TemplateFeatures(
        variables=frozenset(jinja2.meta.find_undeclared_variables(tree)),
        words=frozenset(_words(tree)),
        reads_parts=any(_is_content(loop.iter) for loop in tree.find_all(jinja2.nodes.For)),
        reads_strings=any(test.name == "string" for test in tree.find_all(jinja2.nodes.Test)),
        short_call_ids="length != 9" in source,
    )


def _words(tree: jinja2.nodes.Template) -> Iterator[str]:
    for constant in tree.find_all(jinja2.nodes.Const):
        if isinstance(constant.value, str):
            yield constant.value
    for data in tree.find_all(jinja2.nodes.TemplateData):
        yield data.data
    for attribute in tree.find_all(jinja2.nodes.Getattr):
        yield attribute.attr


def _is_content(node: jinja2.nodes.Node) -> bool:
    """Whether an expression is a message's content: `message.content`, or a variable that is called after it."""
    match node:
        case jinja2.nodes.Getattr(attr="content"):
            return True
        case jinja2.nodes.Getitem(arg=jinja2.nodes.Const(value="content")):
            return True
        case jinja2.nodes.Getitem() | jinja2.nodes.Filter() if node.node is not None:
            return _is_content(node.node)
        case jinja2.nodes.Name(name=name):
            return "content" in name
    return False
