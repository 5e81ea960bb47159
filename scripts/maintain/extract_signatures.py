"""Read the Python surface of TensorRT-LLM's executor out of a checkout of its public repository.

    python scripts/maintain/extract_signatures.py CHECKOUT --release 1.2 [--write TABLE]

The checkout's own binding definitions (nanobind, or pybind11 before it) are parsed: classes, constructors with keyword
names, types and defaults, attributes, methods, enums. Facts only; no code is taken over. Without `--write` the result
is printed; with it the release's entry in that table (inflight_tools/selfcheck/signatures.json) is replaced.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDERS = ("cpp/tensorrt_llm/nanobind/executor", "cpp/tensorrt_llm/pybind/executor")
FILES = ("bindings.cpp", "request.cpp", "executorConfig.cpp", "executor.cpp")
HEADERS = ("cpp/include/tensorrt_llm/executor/executor.h", "cpp/include/tensorrt_llm/executor/types.h")

INTEGERS = {"SizeType32", "SizeType", "TokenIdType", "int", "size_t", "uint64_t", "int64_t", "IdType", "RandomSeedType"}
INTEGERS |= {"RetentionPriority", "CacheSaltIDType", "IterationType", "RequestIdType"}
TYPES = {
    "bool": "bool",
    "float": "float",
    "double": "float",
    "FloatType": "float",
    "PriorityType": "float",
    "std::string": "str",
    "std::filesystem::path": "path",
    "std::chrono::milliseconds": "duration",
    "MillisecondsType": "duration",
    "VecTokens": "[int]",
    "VecTokenExtraIds": "[int]",
    "Tensor": "tensor",
    "MedusaChoices": "[[int]]",
    "EagleChoices": "[[int]]",
    "nb::bytes": "bytes",
    "py::buffer": "bytes",
    "nb::dict": "dict",
    "py::dict": "dict",
    "LogitsPostProcessor": "callable",
    "LogitsPostProcessorBatched": "callable",
    "LogitsPostProcessorMap": "dict",
} | dict.fromkeys(INTEGERS, "int")
OPEN, CLOSE = "([{", ")]}"


class ExtractionError(Exception):
    """The checkout does not hold what is looked for; the message says what and where."""


def without_comments(text: str) -> str:
    """The source without comments, strings kept."""
    pattern = re.compile(r'"(?:\\.|[^"\\])*"|//[^\n]*|/\*.*?\*/', re.DOTALL)
    return pattern.sub(lambda match: match[0] if match[0].startswith('"') else " ", text)


def closing(text: str, start: int, pair: str = "()") -> int:
    """The place of the bracket that closes the one at `start`. Strings are skipped."""
    depth, place = 0, start
    while place < len(text):
        char = text[place]
        if char == '"':
            place = text.index('"', place + 1)
            while text[place - 1] == "\\":
                place = text.index('"', place + 1)
        elif char == pair[0]:
            depth += 1
        elif char == pair[1] and not (pair == "<>" and text[place - 1] == "-"):
            depth -= 1
            if not depth:
                return place
        place += 1
    raise ExtractionError(f"a bracket does not close: {text[start : start + 60]!r}")


def split(text: str) -> list[str]:
    """Cut at the commas outside of all brackets, templates included."""
    parts, depth, start = [], 0, 0
    place = 0
    while place < len(text):
        char = text[place]
        if char == '"':
            place = closing_quote(text, place)
        elif char in OPEN + "<":
            depth += 1
        elif char in CLOSE or (char == ">" and text[place - 1] != "-"):
            depth -= 1
        elif char == "," and not depth:
            parts.append(text[start:place])
            start = place + 1
        place += 1
    parts.append(text[start:])
    return [part.strip() for part in parts if part.strip()]


def closing_quote(text: str, start: int) -> int:
    """The place of the quote that ends the string beginning at `start`."""
    place = start + 1
    while text[place] != '"':
        place += 2 if text[place] == "\\" else 1
    return place


def chain(text: str, start: int) -> Iterator[tuple[str, str]]:
    """(method, arguments) of every `.method(…)` from `start` to the end of the statement."""
    place = start
    while place < len(text):
        char = text[place]
        if char == ";":
            return
        match = re.compile(r"\.(\w+)\s*\(").match(text, place)
        if match:
            end = closing(text, match.end() - 1)
            yield match[1], text[match.end() : end]
            place = end + 1
        elif char in "({":
            place = closing(text, place, "()" if char == "(" else "{}") + 1
        else:
            place += 1


def type_of(cpp: str, known: set[str]) -> str:
    """Our word for a C++ type: int, float, bool, str, path, duration, tensor, [x] for lists, x? for optional, or the
    name of a bound class.
    """
    cpp = re.sub(r"\b(const|tle::(?=\w+$))\b", " ", cpp).replace("&", " ").strip()
    cpp = re.sub(r"\s+", " ", cpp).replace("tle::", "").replace(" const", "").strip()
    template = re.fullmatch(r"std::(optional|vector|list|shared_ptr|set|unordered_set)<(.*)>", cpp)
    if template:
        inner = type_of(template[2], known)
        return {"optional": f"{inner}?", "shared_ptr": f"{inner}?"}.get(template[1], f"[{inner}]")
    if cpp in TYPES:
        return TYPES[cpp]
    name = cpp.split("::")[-1]
    return TYPES.get(name, name)


def default_of(text: str, constants: dict[str, Any], enums: dict[str, dict[str, str]]) -> Any:
    """A default as JSON: a plain value, {"enum": "Class.NAME"} or {"new": "Class"}."""
    text = text.strip()
    if text in ("nb::none()", "py::none()", "std::nullopt", "nullptr"):
        return None
    if text in ("true", "false"):
        return text == "true"
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    if re.fullmatch(r"-?\d*\.\d*f?", text):
        return float(text.rstrip("f"))
    if text.startswith('"'):
        return text[1:-1]
    if text.endswith("dict()"):
        return {"new": "dict"}
    made = re.fullmatch(r"(?:\w+::)*(\w+)\(\)", text)
    if made:
        return {"new": made[1]}
    name = text.split("::")[-1]
    for enum, values in enums.items():
        if text.removeprefix("tle::") in values:
            return {"enum": f"{enum}.{values[text.removeprefix('tle::')]}"}
    if name in constants:
        return constants[name]
    raise ExtractionError(f"the default {text!r} is not understood")


def find_enums(text: str) -> dict[str, dict[str, str]]:
    """Python name of each enum → {C++ value: Python name}. Nested ones carry their class's C++ name in front."""
    found: dict[str, dict[str, str]] = {}
    for match in re.finditer(r"(?:nb|py)::enum_<([^>]+)>\(\s*(\w+)\s*,\s*\"(\w+)\"", text):
        outer = match[1].removeprefix("tle::").split("::")[:-1] if match[2] != "m" else []
        name = ".".join([*outer, match[3]])
        values = found.setdefault(name, {})
        for method, arguments in chain(text, closing(text, text.index("(", match.start())) + 1):
            if method == "value":
                python, cpp = split(arguments)[:2]
                values[cpp.removeprefix("tle::")] = python.strip('"')
    return found


def parameters(init: str, constants: dict[str, Any], enums: dict[str, dict[str, str]]) -> list[dict[str, Any]] | None:
    """The parameters of one `.def(…)` that makes a constructor; None for any other."""
    pieces = split(init)
    made = re.match(r"(?:nb|py)::init<", pieces[0])
    if made:
        begin = pieces[0].index("<")
        types = split(pieces[0][begin + 1 : closing(pieces[0], begin, "<>")])
        rest = pieces[1:]
    elif pieces[0] == '"__init__"' or pieces[0].startswith(("py::init(", "py::init([")):
        source = pieces[1] if pieces[0] == '"__init__"' else pieces[0]
        begin = source.index("(", source.index("]"))
        types = [re.sub(r"\s*\b\w+$", "", part) for part in split(source[begin + 1 : closing(source, begin)])]
        rest = pieces[2:] if pieces[0] == '"__init__"' else pieces[1:]
        if pieces[0] == '"__init__"':
            types = types[1:]
    else:
        return None
    found: list[dict[str, Any]] = []
    keyword_only = False
    for piece in rest:
        if re.match(r"(?:nb|py)::kw_only\(\)", piece):
            keyword_only = True
        match = re.match(r'(?:nb|py)::arg(_v)?\(\s*"(\w+)"', piece)
        if not match:
            continue
        entry: dict[str, Any] = {"name": match[2], "type": type_of(types[len(found)], set())}
        if keyword_only:
            entry["keyword"] = True
        if match[1]:
            entry["default"] = default_of(split(piece[piece.index("(") + 1 : -1])[1], constants, enums)
        else:
            end = closing(piece, piece.index("("))
            if re.match(r"\.none\(\)", piece[end + 1 :]):
                entry["none"] = True
            assigned = piece[end + 1 :].partition("=")[2]
            if assigned:
                entry["default"] = default_of(assigned, constants, enums)
        found.append(entry)
    if len(found) != len(types):
        raise ExtractionError(f"{len(types)} types but {len(found)} names in {init[:80]!r}")
    return found


def find_classes(text: str, constants: dict[str, Any], enums: dict[str, dict[str, str]]) -> dict[str, dict[str, Any]]:
    """Every bound class with constructors, attributes and methods."""
    classes: dict[str, dict[str, Any]] = {}
    starts: list[tuple[int, str]] = []
    variables: dict[str, str] = {}
    pattern = r"(?:auto\s+(\w+)\s*=\s*)?(?:nb|py)::class_?h?_?<([^;]*?)>\s*(\w+)?\s*\(\s*(\w+)\s*,\s*\"(\w+)\"([^)]*)\)"
    for match in re.finditer(pattern, text):
        variable, cpp, other, scope, name, _ = match.groups()
        if "(" in cpp or "{" in cpp:
            continue
        outer = variables.get(scope, "")
        full = f"{outer}.{name}" if outer else name
        classes.setdefault(full, {"init": [], "attributes": {}, "methods": {}, "statics": []})
        if "dynamic_attr" in text[match.start() : text.index(";", match.start())][: len(match[0]) + 40]:
            classes[full]["dynamic"] = True
        for each in (variable, other):
            if each:
                variables[each] = full
        starts.append((match.end(), full))
    for variable, full in variables.items():
        starts += [(match.start() + len(variable), full) for match in re.finditer(rf"\b{variable}\s*\.def", text)]
    for start, full in starts:
        entry = classes[full]
        for method, arguments in chain(text, start):
            if method == "def":
                made = parameters(arguments, constants, enums)
                name = split(arguments)[0].strip('"')
                if made is not None:
                    if made not in entry["init"]:
                        entry["init"].append(made)
                elif not name.startswith("__get") and not name.startswith("__set"):
                    names = re.findall(r'(?:nb|py)::arg\("(\w+)"\)', arguments)
                    entry["methods"].setdefault(name, [])
                    if names not in entry["methods"][name]:
                        entry["methods"][name].append(names)
            elif method == "def_static":
                entry["statics"].append(split(arguments)[0].strip('"'))
            elif method in ("def_rw", "def_prop_rw", "def_readwrite", "def_property"):
                entry["attributes"][split(arguments)[0].strip('"')] = "rw"
            elif method in ("def_ro", "def_prop_ro", "def_readonly", "def_property_readonly"):
                entry["attributes"][split(arguments)[0].strip('"')] = "ro"
    return classes


def find_constants(checkout: Path, known: dict[str, Any]) -> dict[str, Any]:
    """`static constexpr … kName = value` of the public headers, over those of `known`."""
    constants = dict(known)
    for header in HEADERS:
        path = checkout / header
        if path.is_file():
            for name, value in re.findall(r"\b(kDefault\w+)\s*=\s*([\d.']+)f?\s*;", path.read_text(encoding="utf-8")):
                number = value.replace("'", "")
                constants[name] = float(number) if "." in number else int(number)
    return constants


def extract(checkout: Path, known_constants: dict[str, Any]) -> dict[str, Any]:
    """The whole surface of one release. Raises `ExtractionError`."""
    folder = next((checkout / name for name in FOLDERS if (checkout / name / "request.cpp").is_file()), None)
    if folder is None:
        raise ExtractionError(
            f"{checkout} has none of {' and '.join(FOLDERS)}: is it TensorRT-LLM, before the removal?"
        )
    texts = {
        name: without_comments((folder / name).read_text(encoding="utf-8"))
        for name in FILES
        if (folder / name).is_file()
    }
    constants = find_constants(checkout, known_constants)
    enums: dict[str, dict[str, str]] = {}
    for text in texts.values():
        enums |= find_enums(text)
    classes: dict[str, Any] = {}
    for text in texts.values():
        classes |= find_classes(text, constants, enums)
    return {
        "binding": folder.parts[-2],
        "enums": {name: list(values.values()) for name, values in sorted(enums.items())},
        "classes": {name: classes[name] for name in sorted(classes)},
    }


def commit_of(checkout: Path) -> str:
    """The checkout's commit, or an empty string outside of git."""
    found = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "HEAD"],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
        timeout=30,
    )
    return found.stdout.strip() if found.returncode == 0 else ""


def main() -> int:
    """0 on success, 1 with a sentence when the checkout does not fit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--release", required=True, help="the profile this checkout stands for, as 1.2")
    parser.add_argument("--source", help="what to record as the source; default: the checkout's commit")
    parser.add_argument("--write", type=Path, help="the table to bring up to date")
    options = parser.parse_args()
    table = json.loads(options.write.read_text(encoding="utf-8")) if options.write and options.write.is_file() else {}
    constants = {name: entry["value"] for name, entry in table.get("constants", {}).items()}
    try:
        surface = extract(options.checkout, constants)
    except ExtractionError as error:
        print(error, file=sys.stderr)
        return 1
    surface = {"source": options.source or f"NVIDIA/TensorRT-LLM@{commit_of(options.checkout)}", **surface}
    if options.write is None:
        json.dump(surface, sys.stdout, indent=1)
        return 0
    before = table.get("releases", {}).get(options.release)
    table.setdefault("releases", {})[options.release] = surface
    options.write.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    print(f"{options.release}: {len(surface['classes'])} classes, {'unchanged' if before == surface else 'changed'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
