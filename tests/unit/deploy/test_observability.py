"""What is provisioned fits together: files that are mounted exist, names that refer to one another agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "deploy" / "observability"
SOURCES = FOLDER / "grafana" / "provisioning" / "datasources" / "prometheus.yml"
PROVIDERS = FOLDER / "grafana" / "provisioning" / "dashboards" / "inflight.yml"


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


SERVICES: dict[str, Any] = {**read(ROOT / "compose.yaml")["services"], **read(FOLDER / "compose.yaml")["services"]}


def test_what_is_mounted_is_there_and_what_is_written_keeps_its_place() -> None:
    for name in ("prometheus", "grafana"):
        for volume in SERVICES[name]["volumes"]:
            source, target, *rest = volume.split(":")
            assert target.startswith("/")
            if source.startswith("."):
                assert (ROOT / source).exists(), volume
                assert rest == ["ro"]
            else:
                assert source in read(FOLDER / "compose.yaml")["volumes"]
    mounted = {volume.split(":")[1] for volume in SERVICES["grafana"]["volumes"]}
    assert {provider["options"]["path"] for provider in read(PROVIDERS)["providers"]} <= mounted
    assert "--config.file=/etc/prometheus/prometheus.yml" in SERVICES["prometheus"]["command"]


def test_everybody_asks_services_that_there_are_at_ports_that_they_have() -> None:
    targets = [
        target
        for job in read(FOLDER / "prometheus.yml")["scrape_configs"]
        for group in job["static_configs"]
        for target in group["targets"]
    ]
    assert targets == ["inflight:8002", "inflight:8080"]
    published = {port.rsplit(":", 1)[1] for port in SERVICES["inflight"]["ports"]}
    assert {target.rsplit(":", 1)[1] for target in targets} <= published
    (source,) = read(SOURCES)["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert {"inflight", "prometheus", "grafana"} <= set(SERVICES)


def test_every_panel_asks_the_provisioned_source() -> None:
    (source,) = read(SOURCES)["datasources"]
    dashboard = json.loads((FOLDER / "grafana" / "dashboards" / "inflight.json").read_text("utf-8"))
    named = [panel["datasource"]["uid"] for panel in dashboard["panels"] if panel["type"] != "row"]
    named += [target["datasource"]["uid"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    assert set(named) == {source["uid"]}
    assert source["jsonData"]["timeInterval"] == read(FOLDER / "prometheus.yml")["global"]["scrape_interval"]


def test_nothing_listens_beyond_the_machine_and_everything_comes_back() -> None:
    for name, service in SERVICES.items():
        assert service["restart"] == "unless-stopped", name
        assert all(port.startswith(("127.0.0.1:", "${INFLIGHT_BIND:-127.0.0.1}:")) for port in service["ports"]), name
