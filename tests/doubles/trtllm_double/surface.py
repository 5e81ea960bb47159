"""Classes with the names, keywords, defaults and strictness of the bindings, made from the table of facts."""

from __future__ import annotations

import copy
import datetime
import enum
import json
import os
from collections.abc import Mapping
from typing import Any

from trtllm_double.options import TABLES, profile
from trtllm_double.rules import CONSTRUCTORS, METHODS


def fits(value: Any, kind: str, names: Mapping[str, Any], strict: bool) -> bool:
    """Whether the bindings take `value` for a parameter of the table's type `kind`.

    Strict is nanobind, which takes neither None for a plain value nor numpy's scalars; otherwise pybind11, which turns
    None into False and takes whatever has `__index__` or `__float__`.
    """
    if kind.endswith("?"):
        return value is None or fits(value, kind[:-1], names, strict)
    if kind.startswith("["):
        return isinstance(value, (list, tuple)) and all(fits(item, kind[1:-1], names, strict) for item in value)
    if kind == "bool":
        return type(value) is bool or (not strict and (value is None or type(value).__name__ in ("bool_", "bool")))
    if kind == "int":
        return type(value) is int or (not strict and not isinstance(value, float) and hasattr(value, "__index__"))
    if kind == "float":
        return type(value) in (int, float) or (not strict and hasattr(value, "__float__"))
    if kind == "duration":
        return isinstance(value, datetime.timedelta) or type(value) is float
    if kind == "path":
        return isinstance(value, (str, os.PathLike))
    if kind == "tensor":
        return type(value).__module__.split(".")[0] == "torch"
    if kind == "callable":
        return callable(value)
    plain = {"str": str, "bytes": bytes, "dict": dict}.get(kind)
    if plain is not None:
        return isinstance(value, plain)
    found = names.get(kind)
    return found is not None and isinstance(value, found)


class Surface:
    """Everything of one release: `names` is what the module exports."""

    def __init__(self) -> None:
        chosen = profile()
        table = json.loads((TABLES / "signatures.json").read_text())["releases"][chosen["table"]]
        self._strict: bool = chosen["strict"]
        self._flat: dict[str, Any] = {}  # by last name, for the types of parameters
        self.names: dict[str, Any] = {}
        self.table: dict[str, Any] = table
        only = chosen["only"]
        classes = {name: entry for name, entry in table["classes"].items() if only is None or name in only}
        nested = [(name, values) for name, values in table["enums"].items() if "." in name]
        for name, values in table["enums"].items():
            if "." not in name and (
                only is None or name in ("FinishReason", "RequestType", "RequestStage", "KvCacheTransferMode")
            ):
                self._export(name, _enum(name, values))
        for name in sorted(classes, key=lambda name: name.count(".")):
            entry = self._changed(name, copy.deepcopy(classes[name]), chosen)
            self._export(name, self._class(name.split(".")[-1], entry))
        for name, values in nested:
            outer, _, inner = name.partition(".")
            if outer in self.names:
                self._export(name, _enum(inner, values))

    def _export(self, name: str, made: Any) -> None:
        outer, _, inner = name.rpartition(".")
        self._flat[inner] = made
        if outer:
            setattr(self.names[outer], inner, made)
        else:
            self.names[name] = made

    @staticmethod
    def _changed(name: str, entry: dict[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
        """The class as the chosen release has it."""
        dropped = {item.partition(".")[2] for item in chosen["drop"] if item.partition(".")[0] == name}
        renamed = {key.partition(".")[2]: new for key, new in chosen["rename"].items() if key.startswith(f"{name}.")}
        entry["init"] = [
            [{**item, "name": renamed.get(item["name"], item["name"])} for item in init if item["name"] not in dropped]
            for init in entry["init"]
        ]
        entry["attributes"] = {
            renamed.get(key, key): mode for key, mode in entry["attributes"].items() if key not in dropped
        }
        return entry

    def _class(self, name: str, entry: dict[str, Any]) -> type:
        surface = self
        types = {item["name"]: item["type"] for init in entry["init"] for item in init}
        fixed = not entry.get("dynamic")

        def construct(self: Any, *args: Any, **kwargs: Any) -> None:
            for init in entry["init"]:
                values = surface._bind(init, args, kwargs)
                if values is not None:
                    CONSTRUCTORS.get(name, _anything)(values)
                    for key, mode in entry["attributes"].items():
                        object.__setattr__(self, key, values.get(key))
                        assert mode in ("rw", "ro")
                    for key, value in values.items():
                        object.__setattr__(self, key, value)
                    return
            shown = "; ".join(f"__init__(self, {', '.join(item['name'] for item in init)})" for init in entry["init"])
            given = ", ".join([*(type(item).__name__ for item in args), *(f"{k}={v!r:.40}" for k, v in kwargs.items())])
            raise TypeError(
                f"__init__(): incompatible function arguments. The following argument types are supported: {shown}. "
                f"Invoked with types: {name}({given})"
            )

        def assign(self: Any, key: str, value: Any) -> None:
            if key not in entry["attributes"]:
                if fixed:
                    raise AttributeError(f"'{name}' object has no attribute '{key}'")
            elif entry["attributes"][key] == "ro":
                raise AttributeError(f"property '{key}' of '{name}' object has no setter")
            elif key in types and not fits(value, types[key], surface._flat, surface._strict):
                raise TypeError(f"{name}.{key}: incompatible value {value!r:.40}")
            object.__setattr__(self, key, value)

        construct.__doc__ = "\n".join(signature(init) for init in entry["init"])
        body: dict[str, Any] = dict.fromkeys(entry["attributes"])  # so that `hasattr` on the class finds properties
        body |= {"__init__": construct, "__setattr__": assign, "__module__": "tensorrt_llm.bindings.executor"}
        made = type(name, (), body)
        known = METHODS.get(name, {})
        for method, does in known.items():
            setattr(made, method, does)
        for static in entry["statics"]:
            if static not in known:
                setattr(made, static, staticmethod(_factory(made, static)))
        for method in entry["methods"]:
            if method in known:
                continue
            if method.startswith("is"):
                setattr(made, method, _is_named(method[2:]))
            elif method == "has_error":
                setattr(made, method, lambda self: self.error_msg is not None)
            else:
                setattr(made, method, _not_pretended(name, method))
        return made

    def _bind(self, init: list[dict[str, Any]], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
        """Values of one constructor's parameters, or None where the call does not fit it."""
        positional = [item for item in init if not item.get("keyword")]
        if len(args) > len(positional) or not set(kwargs) <= {item["name"] for item in init}:
            return None
        given = dict(zip((item["name"] for item in positional), args, strict=False))
        if set(given) & set(kwargs):
            return None
        given |= kwargs
        values = {}
        for item in init:
            name, kind = item["name"], item["type"]
            if name not in given and "default" not in item:
                return None
            value = given[name] if name in given else self._default(item["default"])
            fitting = fits(value, kind, self._flat, self._strict) or (value is None and item.get("none"))
            # A default that its own type does not take: the caller has to give a value (nanobind casts defaults).
            if not fitting and (name in given or self._strict or value is not None):
                return None
            values[name] = bool(value) if kind == "bool" else value
        return values

    def _default(self, written: Any) -> Any:
        if isinstance(written, dict):
            if "enum" in written:
                owner, _, value = written["enum"].rpartition(".")
                return getattr(self._flat[owner.split(".")[-1]], value)
            return {} if written["new"] == "dict" else self._flat[written["new"]]()
        return written


def signature(init: list[dict[str, Any]]) -> str:
    """A constructor as nanobind's documentation shows it."""
    parts, keyword = ["self"], False
    for item in init:
        if item.get("keyword") and not keyword:
            parts.append("*")
            keyword = True
        default = item.get("default", ...)
        shown = "" if default is ... else f" = {default!r}" if not isinstance(default, dict) else " = ..."
        parts.append(f"{item['name']}: {item['type']}{shown}")
    return f"__init__({', '.join(parts)}) -> None"


def _anything(_: Mapping[str, Any]) -> None:
    """The rule of a class that has none."""


def _enum(name: str, values: list[str]) -> Any:
    return enum.Enum(
        name, {value: place for place, value in enumerate(values)}, module="tensorrt_llm.bindings.executor"
    )


def _factory(made: Any, name: str) -> Any:
    def make() -> Any:
        mode = made.__new__(made)
        object.__setattr__(mode, "name", name)
        return mode

    return make


def _not_pretended(name: str, method: str) -> Any:
    def refuse(*_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"the stand-in has no {name}.{method}")

    return refuse


def _is_named(name: str) -> Any:
    return lambda self: self.name == name


SURFACE = Surface()
