"""Types of the options of scripts: what nothing can be measured with is refused by argparse, in one sentence (2)."""

from __future__ import annotations

import json
import math
import os
from argparse import ArgumentTypeError
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from inflight_tools.common.report import Failure

MOST = 10**9  # of anything that is counted: more is a slip of the finger, and would fill memory before it failed


def at_least(least: int, why: str = "") -> Callable[[str], int]:
    """A type of whole numbers from `least` on; `why` says what a smaller one would come to."""

    def whole(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= MOST:
            raise ArgumentTypeError(f"{text!r} has to be a whole number from {least} to {MOST:,}{why and f': {why}'}")
        return number

    return whole


count = at_least(1)
count_or_none = at_least(0)


def _number(text: str, fits: Callable[[float], bool], what: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or not fits(number):
        raise ArgumentTypeError(f"{text!r} has to be {what}")
    return number


def positive(text: str) -> float:
    """A number above 0."""
    return _number(text, lambda number: 0 < number <= MOST, "a number above 0")


def not_negative(text: str) -> float:
    """A number from 0 on."""
    return _number(text, lambda number: 0 <= number <= MOST, "a number, 0 or more")


def share(text: str) -> float:
    """A share of a whole, 0 … 1."""
    return _number(text, lambda number: 0 <= number <= 1, "a number from 0 to 1")


def percentile(text: str) -> float:
    """Which of a hundred, above 0."""
    return _number(text, lambda number: 0 < number <= 100, "a number above 0 and at most 100")


def counts(text: str) -> list[int]:
    """Whole numbers from 1 on, with commas between them."""
    try:
        return [count(part) for part in text.split(",")]
    except ArgumentTypeError:
        raise ArgumentTypeError(f"{text!r} has to be whole numbers from 1 on, such as 1,8,32") from None


def numbers(text: str) -> list[float]:
    """Numbers above 0, with commas between them."""
    try:
        return [positive(part) for part in text.split(",")]
    except ArgumentTypeError:
        raise ArgumentTypeError(f"{text!r} has to be numbers above 0, such as 0.5,2") from None


def names(known: Collection[str]) -> Callable[[str], list[str]]:
    """A type of names out of `known`, with commas between them, each once."""

    def several(text: str) -> list[str]:
        found = text.split(",")
        strange = next((name for name in found if name not in known), None)
        if strange is not None:
            raise ArgumentTypeError(f"{strange!r} is none of {', '.join(known)}")
        return list(dict.fromkeys(found))

    return several


def accepted_by(parse: Callable[[str], object]) -> Callable[[str], str]:
    """A type of texts that `parse` does not refuse with a `Failure`; the text stays as it is."""

    def accepted(text: str) -> str:
        try:
            parse(text)
        except Failure as failure:
            raise ArgumentTypeError(str(failure).rstrip(".")) from None
        return text

    return accepted


def json_object(text: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ArgumentTypeError(f'{text!r} has to be a JSON object, such as {{"name": 1}}')
    return found


def engine(text: str) -> Path:
    """An engine directory, as far as it has a tokenizer: all that the simulated engine needs of it."""
    folder = Path(text)
    if not text or not (folder / "tokenizer.json").is_file():
        raise ArgumentTypeError(
            f"there is no engine at {text!r} (it has no tokenizer.json): run scripts/quickstart.sh, or name another"
        )
    return folder


def openvino_engine(text: str) -> Path:
    """A directory that `build_engine --target openvino` made."""
    folder = engine(text)
    if not (folder / "openvino_model.xml").is_file():
        raise ArgumentTypeError(f"{text} is no engine of OpenVINO (it has no openvino_model.xml): name another")
    return folder


def checkpoint(text: str) -> Path:
    """A folder with a Hugging Face checkpoint."""
    folder = Path(text)
    if not text or not (folder / "config.json").is_file():
        raise ArgumentTypeError(
            f"there is no checkpoint at {text!r} (it has no config.json): run scripts/fetch_model.py, or name another"
        )
    return folder


def folder(text: str) -> Path:
    """A folder that is there."""
    if not text or not Path(text).is_dir():
        raise ArgumentTypeError(f"there is no folder {text!r}")
    return Path(text)


def folder_with(name: str) -> Callable[[str], Path]:
    """A type of folders that have `name` in them."""

    def found(text: str) -> Path:
        if not text or not (Path(text) / name).exists():
            raise ArgumentTypeError(f"{text!r} has no {name} in it: name the right folder")
        return Path(text)

    return found


def output_folder(text: str) -> Path:
    """A folder to write into, which need not be there yet: known to be possible before anything is measured."""
    folder = Path(text)
    nearest = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    if not nearest.is_dir():
        raise ArgumentTypeError(f"{nearest} is a file and no folder: name another place")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ArgumentTypeError(f"nothing can be written into {nearest}: name another place")
    return folder


def output_file(text: str) -> Path:
    """A JSON file to write. One that is there already has to be such a file: nothing else is overwritten."""
    file = Path(text)
    if file.is_dir():
        raise ArgumentTypeError(f"{text} is a folder: name a file in it")
    output_folder(str(file.absolute().parent))
    if file.exists():
        with file.open("rb") as opened:
            begin = opened.read(64).lstrip()
        if begin and not begin.startswith((b"{", b"[")):
            raise ArgumentTypeError(f"{text} is there and is no JSON file: name another, or remove it")
        if not os.access(file, os.W_OK):
            raise ArgumentTypeError(f"{text} cannot be written: name another file")
    return file
