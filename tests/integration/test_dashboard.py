"""Every expression of the dashboard, and every rule, against a real Prometheus that scraped a loaded fleet.

Two servers, one of them with two models, and a gateway before it; Prometheus with the shipped configuration, but for
addresses and intervals.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from inflight_tools.common.layout import REPOSITORY
from tests.conftest import MakeServer
from tests.harness.gateway import Gateway, running
from tests.harness.http_client import HttpClient
from tests.harness.prometheus import Prometheus

pytestmark = [pytest.mark.server, pytest.mark.full]

FOLDER = REPOSITORY / "deploy" / "observability"
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "grafana/dashboards/inflight.json").read_text("utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
# Of these nothing but 0 is to be seen in a fleet that is well.
MAY_BE_ZERO = {"Draining", "Alerts that fire", "Restarts of engines", "Not served"}
OPTIONS = {"step_ms": 10, "max_running": 2, "draft_tokens": 2, "block_size": 16}
PARAMETERS = {"engine_options": OPTIONS, "price_per_hour": 3.6, "metrics_interval_ms": 100}
LONG = "Tell a long story about a bridge and all the people who have to cross it every day. " * 4


def configuration(targets: dict[str, list[str]]) -> str:
    """The shipped one with addresses of this test, and intervals that fit into it."""
    content = yaml.safe_load((FOLDER / "prometheus.yml").read_text("utf-8"))
    assert {job["job_name"] for job in content["scrape_configs"]} == set(targets)
    for job in content["scrape_configs"]:
        job["static_configs"] = [{"targets": targets[job["job_name"]]}]
    content["global"] = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"}
    return str(yaml.safe_dump(content))


def chat(gateway: Gateway, model: str, **more: Any) -> int:
    body = {"model": model, "messages": [{"role": "user", "content": LONG}], "max_tokens": 20, "ignore_eos": True}
    return gateway.call("POST", "/v1/chat/completions", {**body, "stream": True, **more})[0]


def leave(gateway: Gateway) -> None:
    """A client that has gone before its answer is whole."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=10)
    body = {"model": "llm", "prompt": LONG, "max_tokens": 2000, "ignore_eos": True, "stream": True}
    connection.request("POST", "/v1/completions", json.dumps(body))
    connection.getresponse().read(1)
    connection.close()


def load(gateway: Gateway, others: list[HttpClient], over: threading.Event) -> None:
    """Until it is over: chats through the gateway, refusals, clients that leave, plain requests to every server."""

    def chats() -> None:
        while not over.is_set():
            assert chat(gateway, "llm") == chat(gateway, "second") == 200
            assert chat(gateway, "llm", temperature=-1) == 400
            leave(gateway)

    def plain(client: HttpClient) -> None:
        while not over.is_set():
            for _ in client.generate_stream(text_input=LONG, max_tokens=20, ignore_eos=True):
                pass

    work = [threading.Thread(target=chats) for _ in range(3)]
    work += [threading.Thread(target=plain, args=(client,)) for client in others for _ in range(3)]
    for thread in work:
        thread.start()
    over.wait()
    for thread in work:
        thread.join(60.0)


def values(prometheus: Prometheus, expression: str) -> list[float]:
    result = prometheus.get("query", query=expression)["result"]
    return [float(each["value"][1]) for each in result]


def test_every_expression_has_data_of_a_loaded_fleet(make_server: MakeServer, tmp_path: Path) -> None:
    first = make_server({"llm": PARAMETERS, "second": PARAMETERS})
    second = make_server({"llm": PARAMETERS})
    shutil.copy(FOLDER / "rules.yml", tmp_path)
    metrics = [server.metrics_url.removeprefix("http://").removesuffix("/metrics") for server in (first, second)]
    over = threading.Event()
    with running(first.grpc_url) as gateway, contextlib.ExitStack() as stack:
        gateway.wait_ready()
        config = configuration({"inflight": metrics, "inflight-gateway": [f"127.0.0.1:{gateway.port}"]})
        prometheus = stack.enter_context(Prometheus(tmp_path, config=config))
        prometheus.until('sum(up{job=~"inflight.*"})', 3.0)
        clients = [HttpClient(server.http_url) for server in (first, second)]
        worker = threading.Thread(target=load, args=(gateway, clients, over))
        worker.start()
        try:
            time.sleep(6.0)
            seen = {
                (panel["title"], target["expr"]): values(prometheus, as_grafana_asks(target["expr"]))
                for panel in PANELS
                for target in panel["targets"]
            }
            rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
            recorded = {rule["name"]: values(prometheus, rule["name"]) for rule in rules if rule["type"] == "recording"}
        finally:
            over.set()
            worker.join(60.0)
    assert not worker.is_alive()
    assert len(seen) > 30
    bad = {key: found for key, found in seen.items() if not found or any(map(math.isnan, found))}
    assert bad == {}
    assert [key for key, found in seen.items() if key[0] not in MAY_BE_ZERO and not any(found)] == []
    empty = {name for name, found in recorded.items() if not found or any(map(math.isnan, found))}
    # Nothing of this fleet ended UNAVAILABLE, and a sum of no series is none.
    assert empty <= {"model:inflight_requests_failed:ratio_rate5m"}
    assert {rule["health"] for rule in rules} == {"ok"}
    firing = [rule["name"] for rule in rules if rule["type"] == "alerting" and rule["state"] == "firing"]
    assert firing == []


def as_grafana_asks(expression: str) -> str:
    """With its variables filled in: all models, and an interval that holds several scrapes."""
    return expression.replace("$model", ".*").replace("$__rate_interval", "5s")
