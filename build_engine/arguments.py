"""A command line whose mistakes are one sentence, with the nearest right word."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from inflight.errors import did_you_mean

_INVALID_CHOICE = re.compile(r"invalid choice: '(?P<word>[^']*)' \(choose from (?P<known>.*)\)\Z")
_UNKNOWN = "unrecognized arguments: "


class Parser(argparse.ArgumentParser):
    """Errors are one sentence, without the usage in front; what is unknown is told by the parser that did not know it,
    so that the sentence names the sub-command's own options and its own help.
    """

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As argparse's, but a word that nobody knows is an error here already."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"{_UNKNOWN}{' '.join(unknown)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and end with status 2."""
        hint = nearest(message, [*self._option_string_actions])
        print(f"error: {message}{hint} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(2)


def nearest(message: str, options: Sequence[str]) -> str:
    """`" (did you mean --max-tokens?)"` for argparse's `message`, where an option or a choice that it names is near."""
    choice = _INVALID_CHOICE.search(message)
    if choice:
        return did_you_mean(choice["word"], re.findall(r"[\w.+/-]+", choice["known"]))
    if message.startswith(_UNKNOWN):
        word = message.removeprefix(_UNKNOWN).split()[0]
        return did_you_mean(word.partition("=")[0], options) if word.startswith("-") else ""
    return ""
