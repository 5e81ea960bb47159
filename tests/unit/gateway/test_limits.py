"""Who may ask, how much at once, and what is written down of it."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.fake_triton import FakeTriton, serving
from tests.harness.gateway import Gateway, running

PATH = "/v1/chat/completions"


@pytest.fixture
def fake() -> Iterator[tuple[FakeTriton, str]]:
    servicer = FakeTriton()
    with serving(servicer) as address:
        yield servicer, address


def asked(act: str, **more: Any) -> dict[str, Any]:
    return {"model": "llm", "messages": [{"role": "user", "content": act}], **more}


@contextlib.contextmanager
def under_way(gateway: Gateway, key: str) -> Iterator[None]:
    """A stream that has begun and does not end; its client leaves at the end."""
    body = json.dumps(asked("hang", stream=True)).encode()
    head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", gateway.port), 10) as client:
        client.sendall(head.encode() + body)
        assert b" 200 " in client.recv(1000).partition(b"\r\n")[0]
        yield


def becomes(condition: Callable[[], bool], within_s: float = 5.0) -> None:
    give_up = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def test_a_key_has_its_share_and_all_together_theirs(fake: tuple[FakeTriton, str]) -> None:
    with running(fake[1], "--max-requests", "3", "--max-requests-per-key", "2", keys="one,two") as gateway:
        gateway.wait_ready()

        def refused(key: str) -> tuple[int, Any, str]:
            status, headers, body = gateway.call("POST", PATH, asked("hi"), authorization=f"Bearer {key}")
            if status == 200:
                return status, None, ""
            assert 1 <= int(headers["retry-after"]) <= 2
            error = json.loads(body)["error"]
            return status, error["code"], error["message"]

        with under_way(gateway, "one"), contextlib.ExitStack() as second:
            second.enter_context(under_way(gateway, "one"))
            assert refused("one") == (
                429, "requests", "this key has as many requests under way as it may; try again in a moment",
            )  # fmt: skip
            assert refused("two")[0] == 200
            with under_way(gateway, "two"):
                assert refused("two") == (429, "requests", "3 requests are under way here; try again in a moment")
                # What asks no model is not counted.
                assert gateway.call("GET", "/v1/models", authorization="Bearer two")[0] == 200
                second.close()
                becomes(lambda: refused("two")[0] == 200)  # who leaves gives the place back
                assert refused("one")[0] == 200


def test_keys_are_read_again_and_a_file_that_is_gone_changes_nothing(
    fake: tuple[FakeTriton, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("first\n", encoding="utf-8")
    with running(fake[1], "--api-keys", str(keys)) as gateway:
        gateway.wait_ready()

        def let_in(key: str) -> bool:
            return gateway.call("GET", "/v1/models", authorization=f"Bearer {key}")[0] == 200

        assert let_in("first")
        keys.write_text("second\nthird\n", encoding="utf-8")
        gateway.terminate(signal.SIGHUP)
        becomes(lambda: let_in("third"))
        assert let_in("second")
        assert not let_in("first")
        keys.unlink()
        gateway.terminate(signal.SIGHUP)
        said = ""
        give_up = time.monotonic() + 5
        while "cannot be read, the keys stay as they were" not in said:
            assert time.monotonic() < give_up
            said += capfd.readouterr().err
            time.sleep(0.02)
        assert let_in("second")


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_line_a_request_without_keys_and_without_what_was_said(
    fake: tuple[FakeTriton, str], form: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with running(fake[1], "--log-format", form, keys="sesame") as gateway:
        gateway.wait_ready()
        for stream in (False, True):
            body = asked("a private matter", stream=stream)
            assert gateway.call("POST", PATH, body, authorization="Bearer sesame", x_request_id="mine")[0] == 200
        assert gateway.call("POST", PATH, asked("a private matter"), authorization="Bearer wrong-key")[0] == 401
    told = capfd.readouterr().err
    for secret in ("sesame", "wrong-key", "private"):
        assert secret not in told
    if form == "json":  # every line of the log, the first ones too
        assert all(set(json.loads(line)) > {"time", "level", "logger"} for line in told.splitlines())
    lines = [line for line in told.splitlines() if PATH in line]
    assert len(lines) == 3
    for line, status in zip(lines, (200, 200, 401), strict=True):
        if form == "json":
            found = {name: str(value) for name, value in json.loads(line).items()}
        else:
            found = dict(word.split("=", 1) for word in line.split() if "=" in word)
        assert (found["route"], found["status"]) == (PATH, str(status))
        assert float(found["ms"]) >= 0
        if status == 200:
            assert (found["id"], found["model"], found["tokens"]) == ("mine", "llm", "2")
            assert 0 <= float(found["ttft_ms"]) <= float(found["ms"])


def test_a_second_signal_ends_it_at_once_and_without_a_traceback(
    fake: tuple[FakeTriton, str], capfd: pytest.CaptureFixture[str]
) -> None:
    with running(fake[1], "--drain-notice", "60") as gateway:
        gateway.wait_ready()
        gateway.terminate()
        becomes(lambda: gateway.call("GET", "/ready")[0] == 503)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    assert "Traceback" not in capfd.readouterr().err


def test_what_is_nested_without_end_is_refused_and_never_fails(fake: tuple[FakeTriton, str]) -> None:
    """What Python reads at one depth of calls it may not write at another, so every depth near its bound is tried."""
    with running(fake[1]) as gateway:
        gateway.wait_ready()

        def answered(path: str, body: dict[str, Any]) -> int:
            status, _, said = gateway.call("POST", path, json.dumps(body).replace('"DEEP"', deep).encode())
            assert status == 200 or (status in (400, 422) and b"too deeply" in said), (status, said)
            return status

        tool = {"type": "function", "function": {"name": "f", "parameters": "DEEP"}}
        seen = set()
        for depth in (100, *range(880, 1000, 2), 100_000):
            deep = '{"a":' * depth + "1" + "}" * depth
            text = {"inputs": "hi", "parameters": {"grammar": {"type": "json", "value": deep}}}
            seen |= {
                answered(PATH, asked("hi", tools=[tool])),
                answered(PATH, asked("hi", guided_json="DEEP")),
                answered("/v1/messages", asked("hi", max_tokens=5, tools=[{"name": "f", "input_schema": "DEEP"}])),
                answered("/generate", text),
            }
        assert seen == {200, 400, 422}  # TGI's word for it is 422
