"""HTTP as tests need it: Triton's generate extension, server-sent events, the Prometheus page."""

from __future__ import annotations

import http.client
import json
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

_SAMPLE = re.compile(r"^(?P<name>[A-Za-z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class HttpClient:
    """Requests to one server; each opens a connection of its own, which ends with it."""

    def __init__(self, url: str, model: str = "llm", timeout_s: float = 60.0) -> None:
        """`url` is host:port."""
        self._host = url
        self.model = model
        self._timeout_s = timeout_s

    def call(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Any request; returns status and body."""
        connection = http.client.HTTPConnection(self._host, timeout=self._timeout_s)
        try:
            given = {"Content-Type": "application/json"} if body else {}
            connection.request(method, path, body, {**given, **(headers or {})})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def generate(self, **body: Any) -> tuple[int, dict[str, Any]]:
        """POST …/generate; returns status and the JSON of the answer."""
        status, content = self.call("POST", f"/v2/models/{self.model}/generate", json.dumps(body).encode())
        return status, json.loads(content)

    def generate_stream(self, **body: Any) -> Iterator[dict[str, Any]]:
        """POST …/generate_stream; gives each event as it comes. Leaving the iteration closes the connection."""
        connection = http.client.HTTPConnection(self._host, timeout=self._timeout_s)
        try:
            connection.request("POST", f"/v2/models/{self.model}/generate_stream", json.dumps({"stream": True, **body}))
            answer = connection.getresponse()
            if answer.status != 200:
                yield json.loads(answer.read())
                return
            while line := answer.readline():
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])
        finally:
            connection.close()

    def is_ready(self) -> bool:
        """Whether the server says that it is ready."""
        return self.call("GET", "/v2/health/ready")[0] == 200


def read_metrics(url: str, timeout_s: float = 10.0) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of a Prometheus page, by name and labels.

    Read by hand: prometheus_client's parser renames counters that do not end in `_total`, as those of the
    distributions do not.
    """
    host, _, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=timeout_s)
    try:
        connection.request("GET", "/" + path)
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    samples = (match for line in text.splitlines() if (match := _SAMPLE.match(line)))
    return {
        (sample["name"], frozenset(_LABEL.findall(sample["labels"] or ""))): float(sample["value"])
        for sample in samples
    }


def metric(url: str, name: str, **labels: str) -> float:
    """One value: the sum over the samples of that name whose labels include `labels`. Raises `KeyError` without any."""
    values = [
        value for (found, its), value in read_metrics(url).items() if found == name and frozenset(labels.items()) <= its
    ]
    if not values:
        raise KeyError(f"no sample {name} {labels}")
    return sum(values)


def wait_for_metric(url: str, value: float, name: str, timeout_s: float = 20.0, **labels: str) -> None:
    """Wait until `metric` is `value`: metrics are flushed at an interval. Raises `AssertionError`."""
    give_up = time.monotonic() + timeout_s
    while True:
        try:
            found: float | None = metric(url, name, **labels)
        except KeyError:
            found = None
        if found == value:
            return
        assert time.monotonic() < give_up, f"{name} {labels} is {found}, not {value}"
        time.sleep(0.05)
