"""TGI's /info."""

from __future__ import annotations

from typing import Any

from inflight_gateway.core.models import Model
from inflight_gateway.wire.fields import MAX_STRINGS


def info_of(model: Model, most_requests: int) -> dict[str, Any]:
    """What a model is, and its limits. `most_requests`: that the gateway has under way at once."""
    return {
        "model_id": model.id,
        "model_sha": None,
        "model_pipeline_tag": "text-generation",
        "max_concurrent_requests": most_requests,
        "max_best_of": 1,
        "max_stop_sequences": MAX_STRINGS,
        "max_input_tokens": model.info.context - 1,
        "max_total_tokens": model.info.context,
        "validation_workers": 1,
        "max_client_batch_size": 1,
        "router": "inflight",
        "version": model.info.release,
        "sha": None,
        "docker_label": None,
    }
