"""The manifests: strictly valid, and their parts agree with one another and with what Inflight does.

What runs of them runs in tests/reliability/test_kubernetes.py.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from inflight.model.parameters import model_parameters, parse_model_config
from inflight.serving.metrics import exported
from tests.harness.kubernetes import FOLDER, VERSIONS, Document, kustomize, pick, validate

OVERLAYS = sorted(path.name for path in (FOLDER / "overlays").iterdir())
RUNTIME: Document = yaml.safe_load((FOLDER / "kserve" / "servingruntime.yaml").read_text("utf-8"))


@functools.cache
def manifests(overlay: str) -> tuple[Document, ...]:
    return tuple(kustomize(FOLDER / "overlays" / overlay))


def deployment(overlay: str) -> Document:
    return pick(list(manifests(overlay)), "Deployment")


def pod_of(overlay: str) -> Document:
    found: Document = deployment(overlay)["spec"]["template"]["spec"]
    return found


def containers(spec: Document) -> list[Document]:
    return [*spec.get("initContainers", []), *spec["containers"]]


def as_a_pod(spec: Document) -> Document:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_document_is_valid_to_the_last_field(overlay: str, version: str) -> None:
    for document in manifests(overlay):
        validate(document, version)


def test_the_serving_runtime_is_valid_and_so_are_its_containers() -> None:
    validate(RUNTIME, VERSIONS[0])
    for version in VERSIONS:
        validate(as_a_pod({key: RUNTIME["spec"][key] for key in ("containers", "volumes")}), version)


@pytest.mark.parametrize(
    ("kind", "place", "name"),
    [
        ("Deployment", "spec.template.spec.containers.0.readinessProbe", "periodSecond"),
        ("PodMonitor", "spec.podMetricsEndpoints.0", "scrapeTimeOut"),
        ("InferencePool", "spec", "targetPort"),
        ("ScaledObject", "spec", "maxReplicas"),
        ("NetworkPolicy", "spec", "from"),
    ],
)
def test_a_field_that_does_not_exist_is_found(kind: str, place: str, name: str) -> None:
    document = yaml.safe_load(yaml.safe_dump(pick(list(manifests("multi-gpu")), kind)))
    inside: Any = document
    for step in place.split("."):
        inside = inside[int(step) if step.isdigit() else step]
    inside[name] = 1
    with pytest.raises(jsonschema.ValidationError):
        validate(document, VERSIONS[-1])


def test_the_overlays_have_what_their_names_promise() -> None:
    kinds = {overlay: {document["kind"] for document in manifests(overlay)} for overlay in OVERLAYS}
    base = {"ConfigMap", "Deployment", "NetworkPolicy", "PodDisruptionBudget", "Service"}
    assert kinds == {
        "cpu": base,
        "gpu": base | {"HorizontalPodAutoscaler", "PodMonitor", "PrometheusRule"},
        "multi-gpu": base | {"ScaledObject", "PodMonitor", "PrometheusRule", "InferencePool"},
    }
    gpus = [pod_of(name)["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", "0") for name in OVERLAYS]
    assert gpus == ["0", "1", "4"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_select_our_pods_and_ports_have_their_names(overlay: str) -> None:
    labels = deployment(overlay)["spec"]["template"]["metadata"]["labels"]
    names = {port["name"] for each in containers(pod_of(overlay)) for port in each["ports"]}
    numbers = {port["containerPort"] for each in containers(pod_of(overlay)) for port in each["ports"]}
    for document in manifests(overlay):
        spec = document.get("spec", {})
        selector = spec.get("selector") or spec.get("podSelector")
        if selector is not None:
            wanted = selector.get("matchLabels", selector)
            assert wanted, document["kind"]
            assert wanted.items() <= labels.items(), document["kind"]
        if document["kind"] == "Service":
            assert {port["targetPort"] for port in spec["ports"]} <= names
        if document["kind"] == "PodMonitor":
            assert {endpoint["port"] for endpoint in spec["podMetricsEndpoints"]} <= names
        if document["kind"] == "InferencePool":
            assert {port["number"] for port in spec["targetPorts"]} <= numbers


@pytest.mark.parametrize("spec", [*map(pod_of, OVERLAYS), RUNTIME["spec"]], ids=[*OVERLAYS, "kserve"])
def test_nothing_runs_as_root_or_writes_where_it_may_not(spec: Document) -> None:
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    for each in containers(spec):
        security = {**spec.get("securityContext", {}), **each["securityContext"]}
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] > 0
        assert security["readOnlyRootFilesystem"] is True
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        mounts = {mount["mountPath"]: mount for mount in each["volumeMounts"]}
        assert {mount["name"] for mount in mounts.values()} <= set(volumes)
        env = {item["name"]: item.get("value", "") for item in each["env"]}
        for name in ("HOME", "XDG_CACHE_HOME"):  # what libraries and logs are written to
            assert name not in env or any(f"{env[name]}/".startswith(f"{path}/") for path in mounts)
        assert "HOME" in env
    assert volumes["shm"]["emptyDir"]["medium"] == "Memory"


def seconds(probe: Document) -> int:
    return int(probe["periodSeconds"] * probe["failureThreshold"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_times_fit_into_one_another(overlay: str) -> None:
    spec, rollout = pod_of(overlay), deployment(overlay)["spec"]
    (server,) = spec["containers"]
    (_, text), *_ = pick(list(manifests(overlay)), "ConfigMap")["data"].items()
    model = parse_model_config(dict(re.findall(r'key: "(\w+)" value { string_value: "([^"]*)" }', text)))
    budget = seconds(server["startupProbe"])
    assert budget >= model.load_timeout_s
    assert int(server["args"][server["args"].index("--ready-timeout") + 1]) >= model.load_timeout_s
    assert rollout["progressDeadlineSeconds"] > budget
    words = server["lifecycle"]["preStop"]["exec"]["command"]
    streams_ms = int(words[words.index("--timeout-ms") + 1])
    grace = spec["terminationGracePeriodSeconds"]
    assert grace > (model.drain_notice_ms + streams_ms) / 1000 + 10 + 30  # answers, and --stop-timeout
    assert model.drain_notice_ms / 1000 > seconds(server["readinessProbe"])
    assert model.restart_hold_ms > 0
    assert seconds(server["livenessProbe"]) >= 60  # an engine that starts again is no reason to kill the server
    assert rollout["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_probes_ask_about_the_model_at_our_port(overlay: str) -> None:
    gateway, server = containers(pod_of(overlay))
    asked = {name: server[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert {(each["path"], each["port"]) for each in asked.values()} == {("/ready", "health"), ("/live", "health")}
    assert asked["livenessProbe"]["path"] == "/live"
    # The sidecar starts before the server: a startup that asked for a model would wait for ever.
    assert gateway["restartPolicy"] == "Always"
    assert gateway["startupProbe"]["httpGet"]["path"] == "/live"
    assert gateway["readinessProbe"]["httpGet"]["path"] == "/ready"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_strangers_reach_the_gateway_alone(overlay: str) -> None:
    policy = pick(list(manifests(overlay)), "NetworkPolicy")["spec"]
    assert policy["egress"] == []
    open_to: dict[int, list[Document]] = {}
    for rule in policy["ingress"]:
        assert rule["from"], "a rule without `from` is for everybody"
        for port in rule["ports"]:
            open_to.setdefault(port["port"], []).extend(rule["from"])
    assert set(open_to) == {8000, 8001, 8002, 8003, 8080}
    for port in (8000, 8001, 8003):
        assert open_to[port] == [{"podSelector": {"matchLabels": {"inflight/role": "balancer"}}}]
    assert {"podSelector": {}} not in open_to[8002]


def scaled_by() -> Iterator[str]:
    for metric in pick(list(manifests("gpu")), "HorizontalPodAutoscaler")["spec"]["metrics"]:
        yield metric["pods"]["metric"]["name"]
    for trigger in pick(list(manifests("multi-gpu")), "ScaledObject")["spec"]["triggers"]:
        yield from re.findall(r"\binflight_\w+", trigger["metadata"]["query"])


def test_scaling_goes_by_metrics_that_there_are_and_down_slowly() -> None:
    named = set(scaled_by())
    assert named == {"inflight_requests_running", "inflight_requests_waiting"}
    assert named <= {name for name, _, _ in exported()}
    hpa = pick(list(manifests("gpu")), "HorizontalPodAutoscaler")["spec"]
    keda = pick(list(manifests("multi-gpu")), "ScaledObject")["spec"]
    behaviours = [hpa["behavior"], keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]]
    assert [each["scaleDown"]["stabilizationWindowSeconds"] for each in behaviours] == [600, 600]
    assert {hpa["scaleTargetRef"]["name"], keda["scaleTargetRef"]["name"]} == {"inflight"}


def test_the_job_names_are_those_of_the_alerts() -> None:
    jobs = {
        rule["replacement"]
        for endpoint in pick(list(manifests("gpu")), "PodMonitor")["spec"]["podMetricsEndpoints"]
        for rule in endpoint["relabelings"]
    }
    rules = (FOLDER.parent / "observability" / "rules.yml").read_text("utf-8")
    assert jobs == set(re.findall(r'job="([^"]+)"', rules))
    assert pick(list(manifests("gpu")), "PrometheusRule")["spec"] == yaml.safe_load(rules)


def test_the_model_of_the_recipes_has_parameters_that_there_are() -> None:
    text = Path(FOLDER / "base" / "config.pbtxt").read_text("utf-8")
    assert set(re.findall(r'key: "(\w+)"', text)) <= set(model_parameters())
