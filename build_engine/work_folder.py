"""A temporary folder for a command's log: it stays only where what the user is told names it."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from build_engine.errors import BuilderError


@contextmanager
def work_folder() -> Iterator[Path]:
    """Inside the block a folder. It is gone afterwards, unless the error that ends the block names it as a log's place.

    What is no error of the builder's is a bug: its log stays as well, and its place is said on standard error.
    """
    folder = Path(tempfile.mkdtemp(prefix="build_engine-"))
    keep = False
    try:
        yield folder
    except BuilderError as error:
        keep = str(folder) in str(error)
        raise
    except Exception:
        keep = any(folder.iterdir())
        if keep:
            print(f"what the libraries said lies in {folder}", file=sys.stderr)
        raise
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
