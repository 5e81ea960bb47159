"""Read the Python surface of TensorRT-LLM's executor out of its public repository, whole or file by file.

    python scripts/maintain/extract_signatures.py CHECKOUT --release 1.2 [--write TABLE]
    python scripts/maintain/extract_signatures.py --file request.cpp=PATH@COMMIT … --release 1.2 [--write TABLE]
    python scripts/maintain/extract_signatures.py --report PAGE.md --write TABLE

The binding definitions (nanobind, or pybind11 before it) are parsed: classes, constructors with keyword names, types
and defaults, attributes, methods, enums. Facts only; no code is taken over. Without `--write` the result is printed;
with it the release's rows in that table (inflight_tools/selfcheck/signatures.json) are replaced: all of them, or those
of the files that were given. Each row keeps the file and the commit it came from, and what changed is said. `--report`
writes that down between the marks of a page.
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
UNUSED = ("__getstate__", "__setstate__", "__eq__")  # pickling and comparing: nothing relies on them


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
                elif split(arguments)[0].startswith('"') and not name.startswith(UNUSED):
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


def read_checkout(checkout: Path) -> tuple[str, dict[str, str]]:
    """(the binding library, text by file name) of a whole checkout. Raises `ExtractionError`."""
    folder = next((checkout / name for name in FOLDERS if (checkout / name / "request.cpp").is_file()), None)
    if folder is None:
        raise ExtractionError(
            f"{checkout} has none of {' and '.join(FOLDERS)}: is it TensorRT-LLM, before the removal?"
        )
    found = {name: folder / name for name in FILES if (folder / name).is_file()}
    return folder.parts[-2], {name: path.read_text(encoding="utf-8") for name, path in found.items()}


def surface_of(texts: dict[str, str], constants: dict[str, Any]) -> dict[str, Any]:
    """Enums, classes, and which file each of them is registered in."""
    clean = {name: without_comments(text) for name, text in texts.items()}
    enums: dict[str, dict[str, str]] = {}
    classes: dict[str, Any] = {}
    files: dict[str, str] = {}
    for name, text in clean.items():
        found = find_enums(text)
        enums |= found
        files |= dict.fromkeys(found, name)
    for name, text in clean.items():
        registered = find_classes(text, constants, enums)
        classes |= registered
        files |= dict.fromkeys(registered, name)
    return {
        "enums": {name: list(values.values()) for name, values in sorted(enums.items())},
        "classes": {name: classes[name] for name in sorted(classes)},
        "files": dict(sorted(files.items())),
    }


def extract(checkout: Path, known_constants: dict[str, Any]) -> dict[str, Any]:
    """The whole surface of one release. Raises `ExtractionError`."""
    binding, texts = read_checkout(checkout)
    return {"binding": binding, **surface_of(texts, find_constants(checkout, known_constants))}


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


def replace_rows(before: dict[str, Any], surface: dict[str, Any], commits: dict[str, str]) -> list[str]:
    """Put the rows of ``surface`` into ``before``, a release of the table; returns a line for each that changed.

    An enum of which a file only names values that it needs for a default has to be registered there to count.
    """
    said = []
    sources = before.setdefault("sources", {})
    for kind in ("enums", "classes"):
        rows = before.setdefault(kind, {})
        for name, row in surface[kind].items():
            file = surface["files"][name]
            if rows.get(name) != row:
                said.append(f"{name}: {'changed' if name in rows else 'new'}")
            rows[name] = row
            sources[name] = {"file": file, "at": commits[file], "how": "extracted"}
        before[kind] = dict(sorted(rows.items()))
    before["sources"] = dict(sorted(sources.items()))
    return said


def given_files(texts: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """(text, commit) by name, of NAME=PATH@COMMIT. Raises `ExtractionError`."""
    found: dict[str, str] = {}
    commits: dict[str, str] = {}
    for item in texts:
        name, _, rest = item.partition("=")
        path, _, commit = rest.rpartition("@")
        if name not in FILES or not path or not commit:
            raise ExtractionError(f"--file {item} is not NAME=PATH@COMMIT with NAME one of {', '.join(FILES)}")
        found[name], commits[name] = Path(path).read_text(encoding="utf-8"), commit
    return found, commits


def report(table: dict[str, Any]) -> str:
    """Every row with its file and commit, and whether this script read it there."""
    lines = ["| release | row | file | at | how |", "|---|---|---|---|---|"]
    for release, rows in table["releases"].items():
        for name in (*rows["enums"], *rows["classes"]):
            source = rows["sources"][name]
            lines.append(f"| {release} | {name} | {source['file']} | {source['at']} | {source['how']} |")
    for name, entry in table.get("constants", {}).items():
        lines.append(f"| all | {name} | {entry['source']} | {entry.get('at', 'not kept')} | read |")
    return "\n".join(lines)


def between_marks(text: str, inside: str) -> str:
    """``text`` with what stands between the marks of this script replaced. Raises `ExtractionError`."""
    begin, end = "<!-- rows: written by scripts/maintain/extract_signatures.py -->\n", "<!-- /rows -->"
    if begin not in text or end not in text:
        raise ExtractionError(f"the page lacks {begin.strip()} and {end}")
    return text[: text.index(begin) + len(begin)] + inside + "\n" + text[text.index(end) :]


def main() -> int:
    """0 on success, 1 with a sentence when what was given does not fit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkout", type=Path, nargs="?")
    parser.add_argument("--file", action="append", default=[], metavar="NAME=PATH@COMMIT", help="instead of a checkout")
    parser.add_argument("--release", help="the profile this stands for, as 1.2")
    parser.add_argument("--source", help="what to record as the commit; default: the checkout's")
    parser.add_argument("--write", type=Path, help="the table to bring up to date")
    parser.add_argument("--report", type=Path, help="a page to write the table's rows into")
    options = parser.parse_args()
    table = json.loads(options.write.read_text(encoding="utf-8")) if options.write and options.write.is_file() else {}
    try:
        if options.checkout is not None or options.file:
            run(options, table)
        if options.report is not None:
            page = options.report.read_text(encoding="utf-8")
            options.report.write_text(between_marks(page, report(table)), encoding="utf-8")
    except ExtractionError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def run(options: argparse.Namespace, table: dict[str, Any]) -> None:
    """Extract, and print or write. Raises `ExtractionError`."""
    if options.release is None or (options.checkout is not None and options.file):
        raise ExtractionError("give --release, and a checkout or --file")
    constants = {name: entry["value"] for name, entry in table.get("constants", {}).items()}
    if options.file:
        texts, commits = given_files(options.file)
        surface = surface_of(texts, constants)
    else:
        surface = extract(options.checkout, constants)
        commits = dict.fromkeys(FILES, options.source or commit_of(options.checkout))
    if options.write is None:
        json.dump(surface, sys.stdout, indent=1)
        return
    before = table.setdefault("releases", {}).setdefault(options.release, {})
    if not options.file:  # a checkout is all there is: what it lacks is gone
        kept = {name: before.get(kind, {}) for kind in ("enums", "classes") for name in surface[kind]}
        before.update(
            {kind: {n: r for n, r in before.get(kind, {}).items() if n in kept} for kind in ("enums", "classes")}
        )
        before["sources"] = {name: entry for name, entry in before.get("sources", {}).items() if name in kept}
        before["binding"] = surface["binding"]
    said = replace_rows(before, surface, commits)
    options.write.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    print(f"{options.release}: {len(surface['classes'])} classes, {'; '.join(said) or 'unchanged'}")


if __name__ == "__main__":
    sys.exit(main())
