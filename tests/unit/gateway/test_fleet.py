"""The real gateway before several Tritons of ours: who gets which request, and what clients see of one that is gone."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.harness.fake_triton import FakeTriton, serving
from tests.harness.gateway import Gateway, running


class Pair:
    """Two servers and a gateway before them."""

    def __init__(self, servers: list[FakeTriton], gateway: Gateway) -> None:
        self.servers, self.gateway = servers, gateway

    def ask(self, act: str = "hello", stream: bool = False, headers: dict[str, str] | None = None, **more: Any) -> Any:
        body = {"model": "llm", "messages": [{"role": "user", "content": act}], "stream": stream} | more
        return self.gateway.call("POST", "/v1/chat/completions", body, **(headers or {}))

    def asked(self) -> list[int]:
        """Requests since this was last called, by server."""
        found = [one.asked for one in self.servers]
        for one in self.servers:
            one.asked = 0
        return found


@pytest.fixture
def pair() -> Iterator[Pair]:
    servers = [FakeTriton(), FakeTriton()]
    with contextlib.ExitStack() as stack:
        first, second = (stack.enter_context(serving(one)) for one in servers)
        gateway = stack.enter_context(running(first, "--triton", second, "--drain-notice", "0"))
        gateway.wait_ready()
        yield Pair(servers, gateway)


def test_requests_spread_and_those_of_one_kind_stay_together(pair: Pair) -> None:
    for _ in range(8):
        assert pair.ask()[0] == 200
    assert pair.asked() == [4, 4]
    taken = set()
    for number in range(12):
        for given in (
            {"headers": {"x_session_id": f"s{number}"}},
            {"headers": {"x_session_id": f"s{number}"}, "user": f"u{number + 1}"},  # the session counts
            {"headers": {"x_session_id": f"s{number}"}, "prompt_cache_key": "p"},
        ):
            assert pair.ask(**given)[0] == 200  # type: ignore[arg-type]
        asked = pair.asked()
        assert sorted(asked) == [0, 3]
        taken.add(asked.index(3))
    assert taken == {0, 1}
    for field in ("user", "prompt_cache_key"):
        for _ in range(3):
            assert pair.ask(**{field: "the same"})[0] == 200  # type: ignore[arg-type]
        assert sorted(pair.asked()) == [0, 3]


def test_an_affinity_does_not_crowd_its_server(pair: Pair) -> None:
    """Ten requests of one session, all under way at once: the bound is 1.25 times the even share."""
    with ThreadPoolExecutor(10) as pool:
        pending = [pool.submit(pair.ask, "hang", True, {"x_session_id": "busy"}) for _ in range(10)]
        end = time.monotonic() + 10
        while sum(one.asked for one in pair.servers) < 10 and time.monotonic() < end:
            time.sleep(0.02)
        assert max(pair.asked()) <= 7
        for one in pair.servers:
            one.left.set()
        assert all(one.result(10)[0] == 200 for one in pending)


def test_one_that_turns_away_is_left_out_and_the_client_hears_nothing_of_it(pair: Pair) -> None:
    for reason in ("the server is draining; send the request to another one", "the queue is full (7 requests wait)"):
        pair.servers[0].turned_away = reason
        for _ in range(6):
            status, _, body = pair.ask()
            assert (status, json.loads(body)["choices"][0]["message"]["content"]) == (200, "one two")
        first, second = pair.asked()
        assert second == 6
        assert first <= (1 if "draining" in reason else 3)  # a full queue is asked again, a drain only after a while
    pair.servers[1].turned_away = "the queue is full (7 requests wait)"
    status, headers, body = pair.ask()
    assert (status, json.loads(body)["error"]["code"]) == (503, "overloaded")
    assert headers["retry-after"]


def test_what_has_begun_is_never_begun_again(pair: Pair) -> None:
    for act in ("break", "then:the engine died and is being restarted; try again"):
        status, _, body = pair.ask(act, stream=True)
        assert status == 200
        assert b'"error"' in body
        assert body.count(b"one ") == 1
        assert sum(pair.asked()) == 1


def test_one_that_is_gone_is_left_out_and_taken_back() -> None:
    first, second = FakeTriton(), FakeTriton()
    with contextlib.ExitStack() as stack:
        stays = stack.enter_context(serving(second))
        leaves = contextlib.ExitStack()
        address = leaves.enter_context(serving(first))
        gateway = stack.enter_context(running(address, "--triton", stays, "--drain-notice", "0"))
        gateway.wait_ready()
        pair = Pair([first, second], gateway)
        leaves.close()
        for _ in range(10):
            assert pair.ask()[0] == 200
        assert pair.asked() == [0, 10]
        assert gateway.call("GET", "/ready")[0] == 200
        back = FakeTriton()
        stack.enter_context(serving(back, address))
        pair.servers[0] = back
        end = time.monotonic() + 10
        while not back.asked and time.monotonic() < end:
            assert pair.ask()[0] == 200
            time.sleep(0.1)
        assert back.asked


def test_without_any_server_it_says_so() -> None:
    with running("127.0.0.1:1", "--triton", "127.0.0.1:2", "--drain-notice", "0") as gateway:
        gateway.wait_alive()
        status, headers, body = gateway.call("POST", "/v1/chat/completions", {"model": "llm", "messages": []})
        assert (status, json.loads(body)["error"]["code"]) == (503, "unavailable")
        assert headers["retry-after"]
        assert b"127.0.0.1" not in body
