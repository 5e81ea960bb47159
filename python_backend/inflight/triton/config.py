"""The model configuration: completed and checked before anything is loaded. Needs none of Triton's modules."""

from __future__ import annotations

import re
from typing import Any

from inflight.request.contract import OUTPUTS, declared_inputs

_COMMENT = re.compile(r"^\s*#.*$", re.MULTILINE)
_NAME = re.compile(r'\bname\s*:\s*"([^"]*)"')
_DECOUPLED = re.compile(r"\bdecoupled\s*:\s*true\b")


def auto_complete(config: Any) -> Any:
    """Fill every input and output, the batch size where none is given, and the decoupled policy."""
    for name, kind, dims in declared_inputs():
        config.add_input({"name": name, "data_type": f"TYPE_{kind}", "dims": [dims], "optional": True})
    for output in OUTPUTS:
        config.add_output({"name": output.name, "data_type": f"TYPE_{output.type}", "dims": [output.dims]})
    config.set_model_transaction_policy({"decoupled": True})
    return config


def tensors() -> str:
    """The same inputs and outputs as the text of a config.pbtxt."""
    lines = [
        f'input {{ name: "{name}" data_type: TYPE_{kind} dims: [ {dims} ] optional: true }}\n'
        for name, kind, dims in declared_inputs()
    ]
    lines += [
        f'output {{ name: "{output.name}" data_type: TYPE_{output.type} dims: [ {output.dims} ] }}\n'
        for output in OUTPUTS
    ]
    return "".join(lines)


def is_whole(text: str) -> bool:
    """Whether the text of a config.pbtxt says all that `auto_complete` would: Triton need not ask the backend then, for
    which it starts a process and sleeps a second.
    """
    text = _COMMENT.sub("", text)
    wanted = {name for name, *_ in declared_inputs()} | {output.name for output in OUTPUTS}
    return wanted <= set(_NAME.findall(text)) and _DECOUPLED.search(text) is not None


def instance_count(model_config: dict[str, Any]) -> int:
    """How many instances the configuration asks for, over all its groups."""
    total = 0
    for group in model_config.get("instance_group", []):
        places = len(group.get("gpus", [])) if group.get("kind") == "KIND_GPU" else 1
        total += int(group.get("count", 1)) * max(places, 1)
    return total


def warmup_requests(model_config: dict[str, Any]) -> int:
    """How many requests Triton sends by itself before the model is opened to clients."""
    samples = model_config.get("model_warmup", [])
    return sum(max(int(sample.get("count", 0)), 1) for sample in samples if int(sample.get("batch_size", 0)) > 0)
