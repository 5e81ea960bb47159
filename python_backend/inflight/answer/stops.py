"""Stop strings: matched on text, across token borders, and never emitted."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Finds the first of several stop strings in text that arrives in pieces.

    The match that *ends* first wins, as if the text came character by character; of several that end together the
    longest wins. The result therefore does not depend on how the text was cut. Text that could still become a stop
    string is held back, and released as soon as it cannot.

    What a push costs follows from the text that it adds, however much is held: a place from which no stop string can
    come any more has left `held` for good, so each place is given up once.
    """

    __slots__ = ("_beginning", "_longest", "_stops", "held", "matched")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._beginning: dict[str, list[str]] = {}  # first character → stop strings, the longest first
        for stop in sorted(self._stops, key=len, reverse=True):
            self._beginning.setdefault(stop[0], []).append(stop)
        self.held = ""
        self.matched = ""  # the stop string that was found

    def push(self, text: str) -> tuple[str, bool]:
        """(text that may be emitted now, whether a stop string was found). After a match nothing more may be pushed."""
        if not self._stops:
            return text, False
        window = self.held + text
        match = self._first_match(window, len(self.held))
        if match is not None:
            self.held = ""
            start, end = match
            self.matched = window[start:end]
            return window[:start], True
        keep = self._possible_start(window)
        self.held = window[keep:]
        return window[:keep], False

    def pass_over(self, text: str) -> str:
        """The text that may be emitted now, when no stop string that ends in `text` counts."""
        window = self.held + text
        keep = self._possible_start(window)
        self.held = window[keep:]
        return window[:keep]

    def flush(self) -> str:
        """The held text, when the sequence ended without a match."""
        held, self.held = self.held, ""
        return held

    def _first_match(self, window: str, read: int) -> tuple[int, int] | None:
        """Where the winning match starts and ends; it ends behind the first `read` characters."""
        best: tuple[int, int] | None = None
        for stop in self._stops:
            start = window.find(stop, max(0, read - len(stop) + 1))
            if start >= 0:
                found = (start + len(stop), start)
                best = found if best is None else min(best, found)
        return None if best is None else (best[1], best[0])

    def _possible_start(self, window: str) -> int:
        """The first position from which the rest of `window` is a proper beginning of some stop string."""
        for start in range(max(0, len(window) - self._longest + 1), len(window)):
            stops = self._beginning.get(window[start])
            if stops is None:
                continue
            rest = window[start:]
            for stop in stops:
                if len(stop) <= len(rest):
                    break
                if stop.startswith(rest):
                    return start
        return len(window)
