#!/usr/bin/env python3
"""Writes tests/unit/deploy/crds/KIND.json: what a CRD of another project admits, strict and without its prose.

    git -C CHECKOUT show HEAD:PATH | scripts/maintain/crd_schemas.py REPOSITORY@COMMIT VERSION [--pod-fields]

A field that the CRD does not know is an error here, where an API server would drop it in silence. With --pod-fields the
CRD repeats the fields of a pod at its `spec`: they are left open, because Kubernetes' own schema checks them better.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "unit" / "deploy" / "crds"
KEPT = {"type", "enum", "required", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "pattern"}
OF_PODS = {"containers", "volumes", "affinity", "tolerations", "nodeSelector", "imagePullSecrets"}


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """The same, in JSON Schema's words, closed where the CRD says which fields there are."""
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    found = {name: value for name, value in schema.items() if name in KEPT}
    if "(?i)" in found.get("pattern", ""):  # Go takes it anywhere, Python at the beginning alone
        found["pattern"] = "(?i)" + found["pattern"].replace("(?i)", "")
    if "items" in schema:
        found["items"] = strict(schema["items"])
    if "properties" in schema:
        found["properties"] = {name: strict(value) for name, value in sorted(schema["properties"].items())}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            found["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), dict):
        found["additionalProperties"] = strict(schema["additionalProperties"])
    return found


def main() -> int:
    """Write one file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("source", metavar="REPOSITORY@COMMIT")
    parser.add_argument("version")
    parser.add_argument("--pod-fields", action="store_true")
    options = parser.parse_args()
    crd = yaml.safe_load(sys.stdin)
    names, group = crd["spec"]["names"], crd["spec"]["group"]
    (version,) = (each for each in crd["spec"]["versions"] if each["name"] == options.version)
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"] |= {"kind": {"const": names["kind"]}, "apiVersion": {"const": f"{group}/{options.version}"}}
    schema["properties"]["metadata"] = {"type": "object"}
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    if options.pod_fields:
        fields = schema["properties"]["spec"]["properties"]
        fields |= {name: {} for name in OF_PODS & set(fields)}
        fields.pop("workerSpec", None)
    content = {"$comment": f"Written by scripts/maintain/crd_schemas.py from {options.source}.", **schema}
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{names['kind'].lower()}.json").write_text(json.dumps(content) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
