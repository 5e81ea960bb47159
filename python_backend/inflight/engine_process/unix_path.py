"""Addresses of AF_UNIX sockets in folders of any depth: the kernel takes 107 bytes, and a folder may be deeper."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

MAX_ADDRESS_BYTES = 107  # sockaddr_un has 108, the last of which is a NUL


@contextlib.contextmanager
def address(path: Path) -> Iterator[str | bytes]:
    """What to bind or connect for the socket at `path`, valid inside the `with`.

    An address that would be too long goes through a descriptor of the folder, under which /proc has the folder again.
    Raises OSError when the folder cannot be opened.
    """
    plain = os.fsencode(path)
    if len(plain) <= MAX_ADDRESS_BYTES:
        yield plain
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield b"/proc/self/fd/%d/%s" % (folder, os.fsencode(path.name))
    finally:
        os.close(folder)
