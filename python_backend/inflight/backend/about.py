"""What a client can be told of a model. Triton serves configurations as they were written, so the model says it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from inflight import __version__
from inflight.backend.forms import ModelForms
from inflight.engines.base import EngineInfo
from inflight.model.files import is_folder, path_of
from inflight.model.parameters import ModelConfig
from inflight.request.defaults import GenerationDefaults
from inflight.request.template_files import ChatTemplates

MOST_ADAPTERS = 1000
MOST_VARIABLES = 200


def about(
    config: ModelConfig,
    forms: ModelForms,
    templates: ChatTemplates | None,
    defaults: GenerationDefaults,
    info: EngineInfo,
) -> str:
    """The output `model_info`: a JSON object (docs/chat.md)."""
    return json.dumps(
        {
            "release": __version__,
            "engine": info.name,
            "engine_version": info.version,
            "context": info.max_seq_len,
            "vocab_size": info.vocab_size,
            "max_beam_width": info.max_beam_width,
            "capabilities": sorted(capability.value for capability in info.capabilities),
            "chat": templates is not None,
            "template_variables": templates.settable[:MOST_VARIABLES] if templates is not None else [],
            "shows_tools": forms.shows_tools,
            "tool_format": forms.tools.value,
            "reasoning_format": forms.reasoning.value,
            "default_reasoning": config.default_reasoning,
            "default_max_tokens": config.default_max_tokens,
            "generation_defaults": {
                name: value for name, value in dataclasses.asdict(defaults).items() if value is not None
            },
            "adapters": _adapters(config),
        },
        ensure_ascii=False,
    )


def with_left_out(model_info: str, left_out: list[str] | None) -> str:
    """`model_info` for a request whose calls are made by a guide: what that leaves out of the tools' schemas, each as
    `tool/path: keyword`, under `relaxations`. None: no guide makes its calls, and nothing is added.
    """
    if left_out is None:
        return model_info
    return json.dumps({**json.loads(model_info), "relaxations": left_out}, ensure_ascii=False)


def _adapters(config: ModelConfig) -> list[str]:
    """The names that lora_name takes, as they are now."""
    folder = config.engine_options.get("lora_dir")
    if not isinstance(folder, str) or not folder:
        return []
    try:
        found = sorted(path.name for path in Path(path_of(folder)).iterdir() if is_folder(path))
    except OSError:
        return []
    return [name for name in found if not name.startswith(".")][:MOST_ADAPTERS]
