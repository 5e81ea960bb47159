"""The model configuration: completed and checked before anything is loaded. Needs none of Triton's modules."""

from __future__ import annotations

from typing import Any

from inflight.request.contract import INPUTS, OUTPUTS


def auto_complete(config: Any) -> Any:
    """Fill every input and output, the batch size where none is given, and the decoupled policy."""
    for item in INPUTS:
        for name in (item.name, *item.aliases):
            config.add_input({"name": name, "data_type": f"TYPE_{item.type}", "dims": [item.dims], "optional": True})
    for output in OUTPUTS:
        config.add_output({"name": output.name, "data_type": f"TYPE_{output.type}", "dims": [output.dims]})
    config.set_model_transaction_policy({"decoupled": True})
    return config


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
