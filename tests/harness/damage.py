"""Engine directories with one thing wrong in each: cut, garbled, of another type, another encoding, or not a file.

Everything follows from the number of the damage, so that a test that fails names what to try again.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json", "generation_config.json")

# What JSON can hold where something else is expected. 1e400 and NaN are what Python's reader makes of them.
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 3, 2**31, 2**63, 2**70, -(2**65), 0.5, -0.0, 1e308, float("inf"), float("nan")),
    *("", "x", "ä€𝄞", "\ud800", "0", "\0", "{{", "{% for %}", "../..", "a" * 5000),
    *([], [[]], [None], ["x"], [-1], {}, {"": None}, {"content": 3}, {"content": "x"}, [{"name": "default"}]),
)
BYTES = (
    b"",
    b"\0",
    b"\xff",
    b"\xc3",
    b"\xed\xa0\x80",
    b"{",
    b"]",
    b'"',
    b",",
    b"{{",
    b"{%",
    b"\\ud800",
    b"1e999",
    b"\n",
)


def damage(folder: Path, number: int, files: tuple[str, ...] = FILES) -> str:
    """Do one thing to one file of `folder`; says what."""
    random_ = random.Random(number)
    name = random_.choice(files)
    how = random_.choice([_value, _value, _value, _bytes, _bytes, _cut, _whole, _kind])
    return f"damage {number}: {name}: {how(folder / name, random_)}"


def _value(file: Path, random_: random.Random) -> str:
    """Another value at one place of a JSON file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return _bytes(file, random_)
    places: list[tuple[Any, Any]] = []

    def collect(node: Any, depth: int) -> None:
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in random_.sample(list(keys), min(len(keys), 12)):
            places.extend([(node, key)] * (4 if depth < 2 else 1))
            collect(node[key], depth + 1)

    collect(content, 0)
    if not places:
        return _bytes(file, random_)
    node, key = random_.choice(places)
    odd = random_.choice(ODD)
    if random_.random() < 0.15:
        del node[key]
        said = f"{key!r} is gone"
    else:
        node[key] = odd
        said = f"{key!r} is {odd!r:.40}"
    file.write_text(json.dumps(content), encoding="utf-8")
    return said


def _bytes(file: Path, random_: random.Random) -> str:
    """Other bytes at a few places."""
    data = bytearray(file.read_bytes())
    for _ in range(random_.choice([1, 1, 3, 30])):
        place = random_.randrange(len(data) + 1)
        data[place : place + random_.choice([0, 1, 1, 4])] = random_.choice([*BYTES, bytes([random_.randrange(256)])])
    file.write_bytes(bytes(data))
    return "other bytes"


def _cut(file: Path, random_: random.Random) -> str:
    data = file.read_bytes()
    length = random_.randrange(len(data) + 1)
    file.write_bytes(data[:length] if random_.random() < 0.7 else data[length:])
    return f"cut at {length}"


def _whole(file: Path, random_: random.Random) -> str:
    """Quite another content."""
    old = file.read_bytes()
    whole: dict[str, Callable[[], bytes]] = {
        "empty": lambda: b"",
        "zeros": lambda: bytes(4096),
        "noise": lambda: random_.randbytes(2000),
        "deep": lambda: b"[" * 200_000,
        "deep objects": lambda: b'{"a":' * 100_000,
        "deep template": lambda: b"{% if x %}" * 3000,
        "UTF-16": lambda: old.decode("utf-8", "replace").encode("utf-16"),
        "Latin-1": lambda: "\u00e4".encode("latin-1") + old,
        "a byte order mark": lambda: b"\xef\xbb\xbf" + old,
        "twice": lambda: old + old,
        "null": lambda: b"null",
        "a list": lambda: b"[]",
        "an object": lambda: b"{}",
        "a long number": lambda: b'{"a": ' + b"9" * 10_000 + b"}",
    }
    said = random_.choice(list(whole))
    file.write_bytes(whole[said]())
    return said


def _kind(file: Path, random_: random.Random) -> str:
    """No file, or one that cannot be read."""
    said = random_.choice(["gone", "a folder", "a link to itself", "a link to nothing", "closed to all"])
    if said == "closed to all":
        file.chmod(0)
        return said
    file.unlink()
    if said == "a folder":
        file.mkdir()
    elif said == "a link to itself":
        file.symlink_to(file.name)
    elif said == "a link to nothing":
        file.symlink_to("nothing")
    return said


def copy_files(source: Path, target: Path, linked: tuple[str, ...] = ()) -> None:
    """`source` again at `target`: files of its own, but for those that may be linked (large ones)."""
    target.mkdir(parents=True)
    for file in sorted(source.iterdir()):
        if file.name in linked:
            os.link(file, target / file.name)
        else:
            shutil.copyfile(file, target / file.name)
