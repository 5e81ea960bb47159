"""Keeps asking a server how it is: every model over its control socket, Triton over HTTP, a few times a second.

One asyncio loop, and nothing in it waits for long: each question has a time-out, and a model that does not answer keeps
nobody else waiting. What was heard last is judged when somebody asks (`verdict.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
import urllib.parse
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from inflight.control.server import MAX_LINE_BYTES, peer_of
from inflight.control.verdict import ModelFacts, TritonFacts, Verdict, judge
from inflight.engine_process import unix_path

TICK_S = 0.25
ANSWER_S = 0.8  # what one round of questions may take
FOLDERS_S = 2.0  # how often is looked for new folders of sockets
MAX_SOCKETS = 64
MAX_BODY_BYTES = 1 << 16


class Watch:
    """Watches one Triton, `host`:`port` of its HTTP endpoint, and the models that run in it.

    `folders` names where control sockets may lie (it may take its time); `wanted` are models without which the server
    is not ready; `is_ours` says of a process id whether it belongs to the server (None: everybody's does); `runs`
    whether tritonserver does, where its process is known. `run` and `verdict` belong to one event loop.
    """

    def __init__(
        self,
        host: str,
        port: int,
        folders: Callable[[], Sequence[Path]],
        *,
        wanted: Collection[str] = (),
        is_ours: Callable[[int], bool] | None = None,
        runs: Callable[[], bool] | None = None,
    ) -> None:
        self.stopping = False  # set by who stops the server, from any thread
        self._host = host
        self._port = port
        self._find_folders = folders
        self._wanted = frozenset(wanted)
        self._is_ours = is_ours
        self._runs = runs
        self._folders: Sequence[Path] = ()
        self._asking: dict[Path, asyncio.Task[None]] = {}
        self._models: dict[Path, ModelFacts] = {}
        self._seen: set[str] = set()  # models that were heard, until Triton has none of that name any more
        self._triton = TritonFacts()

    def verdict(self) -> Verdict:
        """What holds now."""
        triton, runs = self._triton, None if self._runs is None else self._runs()
        known = TritonFacts(triton.asked_at, triton.live, triton.ready, triton.models, runs, self.stopping)
        return judge(known, list(self._models.values()), self._wanted, time.monotonic())

    async def run(self) -> None:
        """Watch until it is cancelled."""
        tasks = [
            asyncio.ensure_future(each) for each in (self._watch_folders(), self._watch_sockets(), self._watch_triton())
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in [*tasks, *self._asking.values()]:
                task.cancel()

    async def _watch_folders(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                self._folders = await asyncio.to_thread(self._find_folders)
            await asyncio.sleep(FOLDERS_S)

    async def _watch_sockets(self) -> None:
        while True:
            found = sorted(path for folder in self._folders for path in folder.glob("*.sock"))[:MAX_SOCKETS]
            for path in self._asking.keys() - set(found):
                self._asking.pop(path).cancel()
                self._models.pop(path, None)
            for path in set(found) - self._asking.keys():
                self._asking[path] = asyncio.ensure_future(self._watch_socket(path))
            await asyncio.sleep(TICK_S)

    async def _watch_socket(self, path: Path) -> None:
        while True:
            asked_at = time.monotonic()
            try:
                facts = await asyncio.wait_for(self._ask(path, asked_at), ANSWER_S)
            except (asyncio.TimeoutError, BlockingIOError):
                pass  # what it said before counts for a moment more
            except (OSError, ValueError):  # nobody is behind it any more, or never was; or it is not a model's
                self._models.pop(path, None)
            else:
                self._models[path] = facts
                self._seen.add(facts.name)
            await asyncio.sleep(TICK_S)

    async def _ask(self, path: Path, asked_at: float) -> ModelFacts:
        """One question to one socket. Raises OSError when nobody answers, ValueError for what is no answer."""
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.setblocking(False)
            with unix_path.address(path) as address:
                connection.connect(address)  # never waits: BlockingIOError when as many callers wait as may
            process, user = peer_of(connection)
            if user != path.parent.lstat().st_uid or not (self._is_ours is None or self._is_ours(process)):
                raise ProcessLookupError(f"{path.name} is another process's")
            await loop.sock_sendall(connection, b'{"command": "health"}\n')
            data = b""
            while not data.endswith(b"\n") and len(data) < MAX_LINE_BYTES:
                piece = await loop.sock_recv(connection, MAX_LINE_BYTES)
                if not piece:
                    break
                data += piece
        return _facts(json.loads(data), asked_at)

    async def _watch_triton(self) -> None:
        """A round every `TICK_S`, whether or not the last one has its answers: each of Triton's few HTTP threads serves
        its own connections, and one that loads a model leaves its own unanswered for as long as that takes.
        """
        rounds: set[asyncio.Task[None]] = set()  # at most ANSWER_S / TICK_S
        try:
            while True:
                one = asyncio.ensure_future(self._ask_triton_once())
                rounds.add(one)
                one.add_done_callback(rounds.discard)
                await asyncio.sleep(TICK_S)
        finally:
            for one in rounds:
                one.cancel()

    async def _ask_triton_once(self) -> None:
        asked_at = time.monotonic()
        names = sorted(self._wanted | self._seen)
        try:
            live, ready, *models = await asyncio.wait_for(self._ask_triton(names), ANSWER_S)
        except (asyncio.TimeoutError, OSError, ValueError, EOFError):
            return  # what it said before counts for a moment more
        if self._triton.asked_at is not None and asked_at < self._triton.asked_at:
            return  # a later question has been answered before
        self._triton = TritonFacts(asked_at, live, ready, dict(zip(names, models, strict=True)))
        here = {facts.name for facts in self._models.values()}
        self._seen -= {name for name, there in self._triton.models.items() if not there and name not in here}

    async def _ask_triton(self, names: Sequence[str]) -> list[bool]:
        """Whether Triton is live, is ready, and has each of the models ready. The connection does not outlive the
        round: an open one would hold Triton's stop.
        """
        paths = [
            "health/live",
            "health/ready",
            *(f"models/{urllib.parse.quote(name, safe='')}/ready" for name in names),
        ]
        reader, writer = await asyncio.open_connection(self._host, self._port, limit=MAX_BODY_BYTES)
        try:
            answers = []
            for path in paths:
                writer.write(f"GET /v2/{path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n\r\n".encode())
                answers.append(await _status(reader) == 200)
            return answers
        finally:
            writer.transport.abort()


def _facts(answer: object, asked_at: float) -> ModelFacts:
    """Raises ValueError for anything that is not the answer of a model."""
    if not isinstance(answer, Mapping):
        raise ValueError("a model answers with an object")
    texts = [answer.get(name) for name in ("model", "health", "reason", "phase")]
    ready, numbers = answer.get("ready"), [answer.get(name) for name in ("under_way", "limit")]
    if not (isinstance(ready, bool) and all(isinstance(text, str) for text in texts)):
        raise ValueError("that is no answer about health")
    name, health, reason, phase = map(str, texts)
    under_way, limit = (number if isinstance(number, int) else 0 for number in numbers)
    return ModelFacts(name, asked_at, ready, health, reason, phase, under_way, limit)


async def _status(reader: asyncio.StreamReader) -> int:
    """The status of one HTTP answer, which is read to its end. Raises ValueError and EOFError for what is none."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    length = next((line.split(":", 1)[1] for line in head if line.lower().startswith("content-length:")), "0")
    if not 0 <= int(length) <= MAX_BODY_BYTES:
        raise ValueError("an answer about health is short")
    await reader.readexactly(int(length))
    return int(head[0].split()[1])
