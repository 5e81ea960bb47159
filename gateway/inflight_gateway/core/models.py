"""A model as clients may ask for it, and what it says of itself."""

from __future__ import annotations

from typing import Any

import msgspec


class ModelInfo(msgspec.Struct, frozen=True):
    """What a model says of itself (docs/chat.md)."""

    release: str = ""
    engine: str = ""
    engine_version: str = ""
    context: int = 4096
    capabilities: tuple[str, ...] = ()
    chat: bool = False
    template_variables: tuple[str, ...] = ()
    tool_format: str = "none"
    reasoning_format: str = "none"
    generation_defaults: dict[str, Any] = {}
    adapters: tuple[str, ...] = ()


class _Told(msgspec.Struct, frozen=True):
    relaxations: tuple[str, ...] = ()


_told = msgspec.json.Decoder(_Told)


def relaxations(info: str) -> tuple[str, ...]:
    """What a guide leaves out of a request's tools, each as `tool/path: keyword`: from the output model_info."""
    try:
        return _told.decode(info).relaxations if info else ()
    except msgspec.MsgspecError:  # of a model that says it in another way
        return ()


class Model(msgspec.Struct, frozen=True):
    """A name that clients may ask for."""

    id: str
    triton_name: str
    batched: bool
    inputs: frozenset[str]
    info: ModelInfo
    adapter: str | None
    created: int
    engine_dir: str
