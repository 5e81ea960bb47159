"""Temporary model repositories: any number of models over the built engine, with parameters of their own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inflight_tools.common.layout import ENGINE

_CONFIG = """\
backend: "inflight"
max_batch_size: {max_batch_size}
model_transaction_policy {{ decoupled: true }}
instance_group [ {{ count: 1, kind: KIND_CPU }} ]
"""


def write_model(
    repository: Path,
    name: str,
    parameters: Mapping[str, Any] | None = None,
    *,
    max_batch_size: int = 0,
    engine_dir: Path = ENGINE,
    config: str = "",
) -> Path:
    """Write one model; returns its folder.

    `parameters` are those of config.pbtxt; a value that is not a string is written as JSON (so engine_options can be a
    dictionary). `config` is appended to config.pbtxt as it is.
    """
    model = repository / name
    (model / "1").mkdir(parents=True)
    (model / "1" / "engine").symlink_to(engine_dir)
    text = _CONFIG.format(max_batch_size=max_batch_size)
    for key, value in (parameters or {}).items():
        written = value if isinstance(value, str) else json.dumps(value)
        text += f"parameters {{ key: {json.dumps(key)} value {{ string_value: {json.dumps(written)} }} }}\n"
    (model / "config.pbtxt").write_text(text + config, encoding="utf-8")
    return model
