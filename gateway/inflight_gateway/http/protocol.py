"""uvicorn's HTTP connection, which an application can also break off."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

ABORT = "inflight.abort"  # in the scope's extensions: ends the connection, whatever is still to be written


class Connection(HttpToolsProtocol):
    """Closing waits until everything is written: for ever, where the client does not read."""

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self.scope["extensions"] = {ABORT: self._abort}  # type: ignore[dict-item]

    def _abort(self) -> None:
        self.transport.abort()
