"""The choices of one answer, as every dialect's renderer keeps them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Generic, Protocol, TypeVar

from inflight_gateway.core.errors import GatewayError, Kind
from inflight_gateway.core.events import Event


class HasFinish(Protocol):
    """What every dialect's own choice has: why it ended, "" until then."""

    finish: str


C = TypeVar("C", bound=HasFinish)


class Choices(Generic[C]):
    """One choice for each sequence that was asked for."""

    __slots__ = ("_all",)

    def __init__(self, choices: Iterable[C]) -> None:
        self._all = list(choices)

    def __iter__(self) -> Iterator[C]:
        return iter(self._all)

    def of(self, event: Event) -> C:
        """The choice that an event belongs to. Raises `GatewayError` for one that nobody asked for."""
        if not 0 <= event.choice < len(self._all):
            raise GatewayError(Kind.INTERNAL, "the model answered with a sequence that nobody asked for")
        return self._all[event.choice]

    def require_finished(self) -> None:
        """Raise `GatewayError` unless every choice has come to its end: what breaks off is no answer."""
        if not all(choice.finish for choice in self._all):
            raise GatewayError(Kind.INTERNAL, "the model ended its answer without saying why")
