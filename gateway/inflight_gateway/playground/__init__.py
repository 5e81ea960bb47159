"""The playground: one page, as static files that anybody may read; what it asks for needs the key typed into it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing from elsewhere, nothing inline, in nobody's frame: what a model says can never become a program here.
POLICY = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


class File(NamedTuple):
    """One file of the page."""

    kind: bytes  # its content type
    data: bytes


def files() -> Mapping[str, File]:
    """Path → file; the page itself is `/`. Raises OSError where the package lacks them."""
    found = {
        f"/playground/{one.name}": File(KINDS[one.suffix].encode(), one.read_bytes())
        for one in FOLDER.iterdir()
        if one.suffix in KINDS
    }
    found["/"] = found.pop("/playground/index.html")
    return found
