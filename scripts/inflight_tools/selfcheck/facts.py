"""Compares the installed TensorRT-LLM with the table of facts that the stand-in is made from, by introspection.

Runs in a process of its own (`python -m inflight_tools.selfcheck.facts OUTPUT.json`): importing TensorRT-LLM starts
MPI and may crash. Writes a list of findings; an empty one says that every fact holds.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TABLE = Path(__file__).resolve().parent


def profile_for(version: str, profiles: dict[str, Any]) -> str:
    """The profile whose release is that of `version`, else the newest older one."""
    wanted = tuple(int(part) for part in re.findall(r"\d+", version)[:2]) or (0,)
    older = [name for name in profiles if tuple(int(part) for part in name.split(".")) <= wanted]
    return max(older or profiles, key=lambda name: tuple(int(part) for part in name.split(".")))


def documentation(method: Any) -> str:
    """The signature as the binding library documents it: nanobind's own attribute, else the docstring."""
    parts = [str(item[0]) for item in getattr(method, "__nb_signature__", ()) or ()]
    return "\n".join([*parts, inspect.getdoc(method) or ""])


def find(module: Any, name: str) -> Any:
    """A class by its dotted name, or None."""
    for part in name.split("."):
        module = getattr(module, part, None)
        if module is None:
            return None
    return module


def same(expected: Any, found: Any) -> bool:
    """Whether a default is the table's; floats lose digits on their way through C++."""
    if isinstance(expected, dict):
        return "enum" not in expected or expected["enum"].rpartition(".")[2] == getattr(found, "name", str(found))
    if isinstance(expected, float) and isinstance(found, float):
        return abs(expected - found) < 1e-6
    return bool(expected == found)


def finding(what: str, table: Any, installed: Any) -> dict[str, str]:
    """One fact that does not hold."""
    return {"what": what, "table": str(table), "installed": str(installed)}


def compare(bindings: Any, chosen: dict[str, Any], table: dict[str, Any]) -> Iterator[dict[str, str]]:
    """Every class, parameter, default, attribute, method and enum of the table."""
    only, unsure = (
        chosen.get("only"),
        set(chosen.get("unsure", ())),
    )  # what no source tells of this release is not judged
    dropped = set(chosen.get("drop", ()))
    renamed = {key: key.rpartition(".")[0] + "." + new for key, new in chosen.get("rename", {}).items()}
    for name, values in table["enums"].items():
        outer = name.rpartition(".")[0] or name
        if only is not None and outer not in only and "." in name:
            continue
        enum = find(bindings, name)
        if enum is None:
            if only is None:
                yield finding(name, "an enum", "missing")
            continue
        for value in values:
            if not hasattr(enum, value):
                yield finding(f"{name}.{value}", "a value", "missing")
    for name, entry in table["classes"].items():
        if only is None or name in only:
            for each in compare_class(bindings, name, entry, dropped, renamed):
                if not any(fact in each["what"] for fact in unsure):
                    yield each
    for name in ("Executor", "ExecutorConfig"):
        if only is not None and find(bindings, name) is not None:
            yield finding(name, "gone from this release", "there")


def compare_class(
    bindings: Any, name: str, entry: dict[str, Any], dropped: set[str], renamed: dict[str, str]
) -> Iterator[dict[str, str]]:
    """One class of the bindings."""
    bound = find(bindings, name)
    if bound is None:
        yield finding(name, "a class", "missing")
        return
    signatures = documentation(bound.__init__)
    made = construct(bindings, name, bound)
    for init in entry["init"]:
        for parameter in init:
            full = f"{name}.{parameter['name']}"
            if full in dropped:
                if hasattr(bound, parameter["name"]):
                    yield finding(full, "not in this release", "there")
                continue
            word = renamed.get(full, full).rpartition(".")[2]
            if signatures and not re.search(rf"\b{word}\b", signatures):
                yield finding(f"{full} of the constructor", "a parameter", "not in its signature")
            # A default is what the object has when nothing was said; read-only facts of the C++ side may differ.
            if made is not None and parameter.get("default") is not None and hasattr(made, word):
                value = getattr(made, word)
                if not same(parameter["default"], value):
                    yield finding(f"default of {full}", parameter["default"], value)
    for attribute in entry["attributes"]:
        full = f"{name}.{attribute}"
        if full not in dropped and not hasattr(bound, renamed.get(full, full).rpartition(".")[2]):
            yield finding(full, "an attribute", "missing")
    for method in [*entry["methods"], *entry["statics"]]:
        if not hasattr(bound, method):
            yield finding(f"{name}.{method}()", "a method", "missing")


def construct(bindings: Any, name: str, bound: Any) -> Any:
    """An object with nothing but what is required; None where that takes more than plain values."""
    required: dict[str, tuple[Any, ...]] = {"Request": ([1], 1), "LoraConfig": (1,), "AdditionalModelOutput": ("x",)}
    try:
        return bound(*required.get(name, ()))
    except (TypeError, RuntimeError, ValueError):
        return None


def strictness(bindings: Any, strict: bool) -> Iterator[dict[str, str]]:
    """What has to be refused, and what may be."""
    cases: dict[str, dict[str, Any]] = {"a misspelt keyword": {"streming": True}}
    if strict:
        cases["None for a bool"] = {"streaming": None}
    for what, values in cases.items():
        try:
            bindings.Request([1], 1, **values)
        except TypeError:
            continue
        yield finding(f"Request with {what}", "refused", "taken")
    if hasattr(bindings, "KvCacheRetentionConfig") and strict:
        try:
            bindings.KvCacheRetentionConfig([])
        except TypeError:
            return
        yield finding("KvCacheRetentionConfig without a directory", "refused", "taken (harmless: one is always given)")


def main() -> int:
    """Write the findings; 0 however many there are."""
    output = Path(sys.argv[1])
    package = importlib.import_module("tensorrt_llm")
    bindings = importlib.import_module("tensorrt_llm.bindings.executor")
    profiles = json.loads((TABLE / "profiles.json").read_text(encoding="utf-8"))
    chosen_name = profile_for(str(package.__version__), profiles)
    chosen = profiles[chosen_name]
    table = json.loads((TABLE / "signatures.json").read_text(encoding="utf-8"))["releases"][chosen["table"]]
    findings = [*compare(bindings, chosen, table), *strictness(bindings, chosen["strict"])]
    checked = sum(len(init) for entry in table["classes"].values() for init in entry["init"])
    checked += sum(len(entry["attributes"]) + len(entry["methods"]) for entry in table["classes"].values())
    checked += sum(len(values) for values in table["enums"].values())
    report = {"version": str(package.__version__), "profile": chosen_name, "checked": checked, "findings": findings}
    output.write_text(json.dumps(report, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
