"""Typed access to the fields of one request. A field that is null counts as absent; whatever nobody took is unknown."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from inflight_gateway.core.errors import GatewayError, Kind, invalid, unsupported

MAX_STRINGS = 64


def too_deep() -> GatewayError:
    """What is said of lists and objects within each other by the hundred."""
    return GatewayError(Kind.INVALID, "the body is nested too deeply; use fewer levels")


def decode(body: bytes) -> dict[str, Any]:
    """A request's JSON object. Raises `GatewayError`."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise GatewayError(Kind.INVALID, f"the body is not valid JSON: {error}") from None
    except RecursionError:
        raise too_deep() from None
    if not isinstance(found, dict):
        raise GatewayError(Kind.INVALID, "the body must be a JSON object")
    return found


class Fields:
    """The fields of one JSON object."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self._taken: set[str] = set()

    def raw(self, name: str) -> Any:
        """Any value, or None."""
        self._taken.add(name)
        return self._values.get(name)

    def number(self, name: str, least: float, most: float) -> float | None:
        """A finite number within bounds."""
        value = self.raw(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise invalid(name, "must be a number")
        if not least <= value <= most:
            raise invalid(name, f"must be from {least:g} to {most:g}, but is {value:g}")
        return value

    def whole(self, name: str, least: int, most: int) -> int | None:
        """A whole number within bounds."""
        value = self.raw(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise invalid(name, "must be a whole number")
        if not least <= value <= most:
            raise invalid(name, f"must be from {least} to {most}, but is {value}")
        return value

    def flag(self, name: str) -> bool | None:
        """True or false."""
        value = self.raw(name)
        if value is not None and not isinstance(value, bool):
            raise invalid(name, "must be true or false")
        return value

    def text(self, name: str, most: int = 1024) -> str | None:
        """A string of at most `most` characters."""
        value = self.raw(name)
        if value is None:
            return None
        if not isinstance(value, str):
            raise invalid(name, "must be a string")
        if len(value) > most:
            raise invalid(name, f"is longer than the {most} characters allowed")
        if "\0" in value:
            raise invalid(name, "holds a NUL character; remove it")
        return value

    def strings(self, name: str) -> list[str]:
        """A string or a list of them; empty ones do not count."""
        value = self.raw(name)
        items = [value] if isinstance(value, str) else [] if value is None else value
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise invalid(name, "must be a string or a list of strings")
        if len(items) > MAX_STRINGS:
            raise invalid(name, f"has {len(items)} strings; at most {MAX_STRINGS} are allowed")
        if any("\0" in item for item in items):
            raise invalid(name, "holds a NUL character; remove it")
        return [item for item in items if item]

    def object(self, name: str) -> dict[str, Any] | None:
        """A JSON object."""
        value = self.raw(name)
        if value is not None and not isinstance(value, dict):
            raise invalid(name, "must be an object")
        return value

    def refuse(self, names: Collection[str]) -> None:
        """Raise for a field that would change the answer and cannot be honoured, unless its value asks for nothing."""
        for name in names:
            if self.raw(name) not in (None, 0, False, "", [], {}):
                raise unsupported(name)

    def ignore(self, names: Collection[str]) -> None:
        """These have no effect, and that is documented."""
        self._taken.update(names)

    def unknown(self) -> list[str]:
        """Names that nobody took, of fields with a value."""
        return sorted(name for name, value in self._values.items() if name not in self._taken and value is not None)
