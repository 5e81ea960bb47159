"""A certificate of its own that a test's server shows: made by openssl, of which Debian has one everywhere."""

from __future__ import annotations

import subprocess
from pathlib import Path


def certificate(folder: Path) -> tuple[Path, Path]:
    """A new certificate of localhost, and its key."""
    files = [folder / "certificate.pem", folder / "key.pem"]
    words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    command = ["openssl", *words.split(), "-out", files[0], "-keyout", files[1]]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return files[0], files[1]
