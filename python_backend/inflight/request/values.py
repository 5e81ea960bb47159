"""Typed access to one request's values, wherever the client put them.

Order of precedence (contract): tensor, then `sampling_parameters` (JSON), then request parameter. A name and its alias
together are refused, and so is a name that nobody knows.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from inflight.errors import RequestError, did_you_mean, invalid, unsupported
from inflight.request.contract import (
    ELSEWHERE,
    INPUTS,
    JSON_ALIASES,
    JSON_ONLY,
    TRITON_PARAMETERS,
    VLLM_DEFAULTS,
)
from inflight.request.limits import MAX_JSON_BYTES

INT32_MAX = 2**31 - 1

_CANONICAL = {alias: item.name for item in INPUTS for alias in item.aliases} | JSON_ALIASES
_KNOWN = (frozenset(item.name for item in INPUTS) | frozenset(_CANONICAL) | frozenset(JSON_ONLY)) - {
    "sampling_parameters"
}
_SPELT_WITH_UNDERSCORES = frozenset(name for name in _KNOWN | {"sampling_parameters"} if "_" in name)
_LISTS = frozenset(item.name for item in INPUTS if item.dims == -1) | {"stop_token_ids"}


class Values:
    """One request's values under their canonical names. Every getter raises INVALID_ARG that names the parameter."""

    def __init__(self, tensors: Mapping[str, Sequence[Any]], parameters: Mapping[str, Any]) -> None:
        self._found: dict[str, Any] = {}
        self._spelt: dict[str, str] = {}  # canonical name → the name the client used
        self._unknown: list[tuple[str, str]] = []
        self._lacking: list[RequestError] = []
        self._take(
            {name: _from_tensor(name, items) for name, items in tensors.items() if name != "sampling_parameters"},
            "input",
        )
        in_parameter = parameters.get("sampling_parameters")
        if "sampling_parameters" in tensors:
            self._take(
                _parse_json(_from_tensor("sampling_parameters", tensors["sampling_parameters"])), "sampling_parameters"
            )
        elif in_parameter is not None:
            self._take(_parse_json(in_parameter), "sampling_parameters")
        self._take(
            {
                name: value
                for name, value in parameters.items()
                if name != "sampling_parameters" and not _is_tritons(name)
            },
            "request parameter",
        )

    def _take(self, source: Mapping[str, Any], origin: str) -> None:
        """Add a source's values below those already there."""
        for name, value in source.items():
            if name in VLLM_DEFAULTS:
                self._compare(name, value)
                continue
            if name not in _KNOWN:
                self._unknown.append((name, origin))
                continue
            if value is None:
                continue
            canonical = _CANONICAL.get(name, name)
            spelt = self._spelt.setdefault(canonical, name)
            if spelt != name:
                raise invalid(name, f"and {spelt} are the same parameter; give only one of them")
            self._found.setdefault(canonical, value)

    def _compare(self, name: str, value: Any) -> None:
        """A key of vLLM's that we lack is taken at its default, which asks for nothing."""
        said = {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value
        default = VLLM_DEFAULTS[name]
        if said is not None and said != default and not (default is None and said in ({}, [])):
            shown = msgspec.json.encode(default).decode()
            self._lacking.append(
                unsupported(name, f"is not supported by this model; leave it out, or at vLLM's default ({shown})")
            )

    def refuse_unknown(self) -> None:
        """Raises INVALID_ARG for a name that no part of the contract has, UNSUPPORTED for one that only vLLM has."""
        if self._lacking:
            raise self._lacking[0]
        for name, origin in self._unknown:
            shown = name if len(name) <= 64 else name[:61] + "..."
            where = "in sampling_parameters" if origin == "sampling_parameters" else f"({origin})"
            raise invalid(shown, f"{where} is not a parameter of this model{_hint(name[:64])}")

    def given(self, name: str) -> bool:
        """Whether the client gave this value at all."""
        return name in self._found

    def forget(self, name: str) -> None:
        """Go on as if the client had not given this value."""
        self._found.pop(name, None)

    def accept(self, name: str) -> None:
        """A value that is taken without effect; it still has to be an integer."""
        self.optional_integer(name, -(2**31))

    def integer(self, name: str, default: int, least: int, most: int = INT32_MAX) -> int:
        """A whole number between `least` and `most`; strings such as "16" are accepted."""
        if name not in self._found:
            return default
        number = _to_int(self.name(name), self._found[name])
        if not least <= number <= most:
            limit = f"at least {least}" if number < least else f"at most {most}"
            raise invalid(self.name(name), f"must be {limit}, but is {number}")
        return number

    def optional_integer(self, name: str, least: int) -> int | None:
        """The same without a default."""
        return self.integer(name, 0, least) if name in self._found else None

    def number(
        self, name: str, default: float, *, least: float = -math.inf, most: float = math.inf, above: float = -math.inf
    ) -> float:
        """A finite number; strings such as "0.7" are accepted."""
        if name not in self._found:
            return default
        number = _to_float(self.name(name), self._found[name])
        if number < least:
            raise invalid(self.name(name), f"must be at least {least:g}, but is {number:g}")
        if number <= above:
            raise invalid(self.name(name), f"must be above {above:g}, but is {number:g}")
        if number > most:
            raise invalid(self.name(name), f"must be at most {most:g}, but is {number:g}")
        return number

    def boolean(self, name: str, default: bool) -> bool:
        """True or false; also 0, 1 and the strings "true" and "false"."""
        if name not in self._found:
            return default
        value = self._found[name]
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if isinstance(value, str):
            value = {"true": True, "false": False, "1": True, "0": False}.get(value.lower())
        if isinstance(value, (bool, int)) and value in (0, 1):
            return bool(value)
        raise invalid(self.name(name), "must be true or false")

    def text(self, name: str, max_bytes: int) -> str | None:
        """A string of at most `max_bytes` bytes in UTF-8, or None."""
        if name not in self._found:
            return None
        value = self._found[name]
        too_long = isinstance(value, (str, bytes)) and len(value) > max_bytes  # seen before any work
        text = "" if too_long else _to_text(self.name(name), value)
        if too_long or len(text.encode()) > max_bytes:
            raise invalid(self.name(name), f"is longer than the {max_bytes} bytes allowed")
        return text

    def prompt_text(self, name: str, max_bytes: int) -> str:
        """A prompt: not empty, no NUL (many clients read the answer as a C string)."""
        text = self.text(name, max_bytes) or ""
        if not text:
            raise invalid(name, "is empty; a prompt needs at least one character")
        if "\0" in text:
            raise invalid(name, "holds a NUL character; remove it")
        return text

    def texts(self, name: str) -> list[str]:
        """A list of strings; a single string is a list of one."""
        value = self._found.get(name, [])
        items = [value] if isinstance(value, (str, bytes)) else value
        if not isinstance(items, (list, tuple)):
            raise invalid(self.name(name), "must be a string or a list of strings")
        return [_to_text(self.name(name), item) for item in items]

    def count(self, name: str) -> int:
        """How many values a list has; 0 for what is none."""
        value = self._found.get(name)
        return len(value) if isinstance(value, (list, tuple)) else 0

    def integers(self, name: str, most: int | None = None) -> tuple[int, ...]:
        """A list of whole numbers, at most `most` of them."""
        value = self._found.get(name, [])
        items = [value] if isinstance(value, int) else value
        if not isinstance(items, (list, tuple)):
            raise invalid(self.name(name), "must be a list of whole numbers")
        if most is not None and len(items) > most:
            raise invalid(self.name(name), f"has {len(items)} values; this model takes at most {most}")
        if all(type(item) is int for item in items):
            return tuple(items)
        return tuple(_to_int(self.name(name), item) for item in items)

    def raw(self, name: str) -> Any:
        """The value as the client sent it."""
        return self._found[name]

    def is_false(self, name: str) -> bool:
        """Whether the client sent `false` where something else than a truth value belongs."""
        value = self._found.get(name)
        return value is False or (isinstance(value, str) and value.lower() == "false")

    def name(self, canonical: str) -> str:
        """What the client called it, for messages."""
        return self._spelt.get(canonical, canonical)

    def spellings(self) -> dict[str, str]:
        """Canonical name → what the client called it, for every name that was given."""
        return dict(self._spelt)


def _is_tritons(name: str) -> bool:
    """Parameters of Triton's own, and forwarded HTTP headers: those with a hyphen, and the trace headers. One that is
    a name of ours but for its hyphens is taken for that name, misspelt.
    """
    if "-" in name:
        return name.lower().replace("-", "_") not in _SPELT_WITH_UNDERSCORES
    return name in TRITON_PARAMETERS or name.startswith("triton_") or name in ("traceparent", "tracestate")


def _hint(name: str) -> str:
    """The parameter that was meant: misspelt, or by the name that it has elsewhere. What is merely similar misleads."""
    name = name.lower().replace("-", "_")
    elsewhere = ELSEWHERE.get(name)
    known = _KNOWN | {"sampling_parameters"}
    return f" (did you mean {elsewhere}?)" if elsewhere else did_you_mean(name, known, cutoff=0.81)


def _from_tensor(name: str, items: Sequence[Any]) -> Any:
    if _CANONICAL.get(name, name) in _LISTS:
        return list(items)
    if len(items) != 1:
        found = "is empty" if not items else f"has {len(items)} values"
        raise invalid(name, f"{found}; one request has exactly one value (send several requests instead of a batch)")
    return items[0]


def _parse_json(value: Any) -> dict[str, Any]:
    data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
    if not isinstance(data, bytes):
        raise invalid("sampling_parameters", "must be a string that holds a JSON object")
    if len(data) > MAX_JSON_BYTES:
        raise invalid("sampling_parameters", f"is larger than the {MAX_JSON_BYTES} bytes allowed")
    try:
        content = msgspec.json.decode(data) if data.strip() else {}
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise invalid("sampling_parameters", f"is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise invalid("sampling_parameters", 'must be a JSON object such as {"max_tokens": 16}')
    return content


def _is_plain(text: str) -> bool:
    """Not one of the spellings of numbers that only Python knows (1_000, other scripts' digits)."""
    return text.isascii() and "_" not in text


def _to_int(name: str, value: Any) -> int:
    if type(value) is int:
        return value
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str) and len(value) <= 32 and _is_plain(value):
        try:
            return int(value)
        except ValueError:
            pass
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise invalid(name, "must be a whole number")


_FP32 = struct.Struct("<f")


def _to_float(name: str, value: Any) -> float:
    """The value as FP32 has it, wherever it came from: the same request, the same answer in all three places."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if (isinstance(value, (int, float)) and not isinstance(value, bool)) or (
        isinstance(value, str) and len(value) <= 64 and _is_plain(value)
    ):
        try:
            (number,) = _FP32.unpack(_FP32.pack(float(value)))
        except (ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return float(number)
    raise invalid(name, "must be a finite number")


def _to_text(name: str, value: Any) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise invalid(name, f"is not UTF-8 text (byte {error.start} is wrong)") from None
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise invalid(name, "holds a lone surrogate, which is no text") from None
        return value
    raise invalid(name, "must be a string")
