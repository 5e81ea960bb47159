"""What follows from the contract tables says what they say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

pytestmark = pytest.mark.fast


def _generated() -> dict[Path, str]:
    spec = importlib.util.spec_from_file_location("inflight_generate", ROOT / "scripts" / "maintain" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return dict(module.generated())


@pytest.mark.parametrize("path", sorted(_generated()), ids=lambda path: path.name + "/" + path.parent.name)
def test_generated_file_is_up_to_date(path: Path) -> None:
    assert path.read_text("utf-8") == _generated()[path], "run scripts/maintain/generate.py"


def test_every_module_of_the_product_says_what_it_is_for() -> None:
    text = (ROOT / "docs" / "map.md").read_text("utf-8")
    modules = [
        path.relative_to(ROOT)
        for folder in ("python_backend", "build_engine", "scripts")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "__init__.py" and not {"bench", "maintain"} & set(path.relative_to(ROOT).parts[:2])
    ]
    assert len(modules) > 40
    assert [str(path) for path in modules if f"| `{path}` |" not in text] == []
    assert "| `scripts/bench/" not in text
    assert "| `scripts/maintain/" not in text
    assert "| `tests/" not in text
