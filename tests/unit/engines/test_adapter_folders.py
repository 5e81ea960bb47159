"""Which adapters there are, among thousands."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from inflight.engines.adapters import adapter_folder
from inflight.engines.base import EngineRefusal

pytestmark = pytest.mark.fast

ADAPTERS = 500


def test_a_name_that_is_none_of_thousands_does_not_look_at_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine waits meanwhile, and a client may be wrong as often as it likes."""
    for number in range(ADAPTERS):
        (tmp_path / f"adapter-{number:03}").mkdir()
    (tmp_path / "a-file").write_text("", encoding="utf-8")
    looked: list[object] = []
    stat = os.stat

    def counted(path: Any, *arguments: Any, **more: Any) -> os.stat_result:
        looked.append(path)
        return stat(path, *arguments, **more)

    monkeypatch.setattr(os, "stat", counted)
    with pytest.raises(
        EngineRefusal, match=r"adapters of this model are adapter-000, .*adapter-009 and 490 more"
    ) as caught:
        adapter_folder(tmp_path, "nobody")
    assert caught.value.parameter == "lora_name"
    assert len(looked) < 50
    assert adapter_folder(tmp_path, "adapter-499") == tmp_path / "adapter-499"
    with pytest.raises(EngineRefusal, match=r"the adapters of this model are none$"):
        adapter_folder(tmp_path / "gone", "nobody")
