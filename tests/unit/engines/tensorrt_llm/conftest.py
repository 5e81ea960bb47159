"""The stand-in, as the tests of this folder install it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.folders import write_checkpoint
from tests.doubles.stand_in import Checkpoint, Install, StandIn, stand_in


@pytest.fixture
def default_release() -> str:
    """The release that is meant where a test names none."""
    return "1.2"


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, default_release: str) -> Iterator[Install]:
    """`install(profile, **options)` pretends that a release is installed."""
    with ExitStack() as stack:

        def pretend(profile: str = default_release, **options: Any) -> StandIn:
            return stack.enter_context(stand_in(monkeypatch, tmp_path, profile, **options))

        yield pretend


@pytest.fixture
def checkpoint(install: Install, tmp_path: Path, default_release: str) -> Checkpoint:
    """`checkpoint(profile, double={…}, **options)` loads a checkpoint in the release of that profile."""

    def load(profile: str = default_release, double: dict[str, Any] | None = None, **options: Any) -> Any:
        installed = install(profile, **(double or {}))
        return installed.engine(write_checkpoint(tmp_path / "checkpoint", installed.tokenizer), **options)

    return load
