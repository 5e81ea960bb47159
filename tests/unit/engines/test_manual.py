"""The page of each engine in docs/engines has every option of its table `engine_options`, with its default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from inflight.engines.openvino.engine import OpenVinoOptions
from inflight.engines.simulated.cost import SimulatedOptions
from inflight.engines.vllm.options import VllmOptions

PAGES = Path(__file__).resolve().parents[3] / "docs" / "engines"
OPTIONS = {"openvino": OpenVinoOptions, "vllm": VllmOptions, "simulated": SimulatedOptions}
FROM_THE_ENGINE = {"kv_precision": "from engine.json"}


def told(page: str) -> dict[str, str]:
    """Option → default, as the page's table says; a row may hold several, with one default each or one for all."""
    table = page[page.index("\n| option") :].strip().split("\n\n")[0]
    found: dict[str, str] = {}
    for line in table.splitlines()[2:]:
        names, defaults = ([part.strip() for part in cell.split(",")] for cell in line.split("|")[1:3])
        found |= dict(zip(names, defaults * len(names) if len(defaults) == 1 else defaults, strict=False))
    return found


def shown(default: Any) -> str:
    return default.strip('"') if isinstance(default, str) and default else msgspec.json.encode(default).decode()


@pytest.mark.parametrize("engine", OPTIONS)
def test_the_page_has_every_option_with_its_default_and_no_other(engine: str) -> None:
    fields = msgspec.structs.fields(OPTIONS[engine])
    defaults = {
        field.name: field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
        for field in fields
    }
    expected = {name: FROM_THE_ENGINE.get(name, shown(default)) for name, default in defaults.items()}
    found = told((PAGES / f"{engine}.md").read_text("utf-8"))
    assert {name: value.removesuffix(".0") for name, value in expected.items()} == found
