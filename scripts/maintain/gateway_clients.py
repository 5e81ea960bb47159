"""What the gateway was tried with, as the table in docs/gateway.md: `tests/integration/test_gateway_clients.py` writes
what it saw to `tried.json`, in the full tier.
"""

from __future__ import annotations

import json
from typing import Any

from inflight_tools.common.layout import REPOSITORY

TRIED = REPOSITORY / "tests" / "integration" / "gateway_clients" / "tried.json"
BEGIN = "<!-- Between these lines scripts/maintain/generate.py writes what tests saw. -->\n"
END = "<!-- The end of it. -->\n"
FEATURES = (
    "chat",
    "chat, streamed",
    "tools",
    "tools, streamed",
    "structured",
    "completions",
    "completions, streamed",
    "models",
)
# Of clients of the other dialects, which have a table of their own.
FURTHER = (
    "responses",
    "responses, streamed",
    "messages",
    "messages, streamed",
    "text generation",
    "text generation, streamed",
    "tools",
    "tools, streamed",
    "handoffs",
    "structured",
    "tokens counted",
    "errors",
)


def tried() -> list[dict[str, Any]]:
    """What was seen: client, version, date and features of each."""
    return list(json.loads(TRIED.read_text(encoding="utf-8")))


def record(client: str, version: str, date: str, features: dict[str, str]) -> None:
    """Replace what is known of a client's version by what was just seen."""
    known = {(one["client"], one["version"]): one for one in tried()}
    known = {key: one for key, one in known.items() if one["client"] != client}
    known[client, version] = {"client": client, "version": version, "date": date, "features": features}
    found = sorted(known.values(), key=lambda one: one["client"].lower())
    TRIED.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def table() -> str:
    """Client × feature, for chat and completions and for what else there is; empty where a client has no such thing or
    its script does not try it.
    """
    further = [one for one in tried() if set(one["features"]) & set(FURTHER[:6])]
    return _lines(FEATURES, [one for one in tried() if one not in further]) + "\n" + _lines(FURTHER, further)


def _lines(features: tuple[str, ...], clients: list[dict[str, Any]]) -> str:
    lines = ["| client | version | tried | " + " | ".join(features) + " |", "|---" * (3 + len(features)) + "|"]
    for one in clients:
        cells = [one["features"].get(feature, "") for feature in features]
        lines.append("| " + " | ".join([one["client"], one["version"], one["date"], *cells]) + " |")
    return "\n".join(lines) + "\n"


def gateway_text(text: str) -> str:
    """docs/gateway.md with the table between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError("docs/gateway.md has lost the marks of its table of clients")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"
