"""Text is UTF-8 whatever the locale: Triton's stub runs Python with the locale C, in which a bare `open` reads ASCII.

ruff PLW1514 sees a bare `open` or `read_text` only where it can tell the type; this test looks at every call of such
a name, and at what subprocesses print.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TREES = ("python_backend", "build_engine", "scripts")
PLACES = {"read_text": 0, "write_text": 1}  # where encoding stands when it is not named


def sources() -> list[Path]:
    return [path for tree in TREES for path in sorted((ROOT / tree).rglob("*.py"))]


def calls(path: Path) -> Iterator[tuple[ast.Call, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = node.func
            yield node, called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")


def opens_text(call: ast.Call, name: str) -> bool:
    """Whether this is an `open` (of the builtins, of a path, of a descriptor) whose mode is text."""
    method = isinstance(call.func, ast.Attribute)
    if name not in ("open", "fdopen", "NamedTemporaryFile", "TemporaryFile"):
        return False
    owner = getattr(call.func.value, "id", "") if isinstance(call.func, ast.Attribute) else ""
    if owner in ("os", "zipfile", "tarfile", "Image", "safe_open") and name == "open":
        return False
    default = "w+b" if name.endswith("File") else "r"
    place = 0 if (method and name == "open" and owner != "io") or name.endswith("File") else 1
    stated = next((keyword.value for keyword in call.keywords if keyword.arg == "mode"), None)
    if stated is None and len(call.args) > place:
        stated = call.args[place]
    if isinstance(stated, ast.IfExp):
        stated = stated.body
    mode = default if stated is None else getattr(stated, "value", None)
    return isinstance(mode, str) and "b" not in mode


def without_encoding(path: Path) -> Iterator[str]:
    for call, name in calls(path):
        named = {keyword.arg for keyword in call.keywords}
        where = f"{path.relative_to(ROOT)}:{call.lineno}"
        if None in named or "encoding" in named:
            continue
        if name in PLACES and isinstance(call.func, ast.Attribute) and len(call.args) <= PLACES[name]:
            yield f"{where}: {name} without encoding"
        elif opens_text(call, name):
            yield f"{where}: {name} of text without encoding"
        elif any(keyword.arg == "text" and getattr(keyword.value, "value", None) is True for keyword in call.keywords):
            yield f"{where}: a subprocess's text without encoding"


@pytest.mark.parametrize("tree", TREES)
def test_every_text_file_is_read_and_written_as_utf_8(tree: str) -> None:
    found = [line for path in sources() if path.relative_to(ROOT).parts[0] == tree for line in without_encoding(path)]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "path.read_text()",
        "(folder / 'a').write_text(text)",
        "open(path)",
        "open(path, 'w')",
        "path.open()",
        "path.open('a')",
        "os.fdopen(descriptor, 'w')",
        "tempfile.NamedTemporaryFile('w')",
        "subprocess.run(command, text=True)",
    ],
)
def test_what_the_test_above_finds(tmp_path: Path, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    file = tmp_path / "module.py"
    file.write_text(line, encoding="utf-8")
    assert len(list(without_encoding(file))) == 1
    file.write_text(f"{line[:-1].replace(', text=True', '')}, encoding='utf-8')".replace("(, ", "("), encoding="utf-8")
    assert list(without_encoding(file)) == []


@pytest.mark.parametrize(
    "line",
    [
        "open(path, 'rb')",
        "path.open('wb')",
        "os.open(path, 0)",
        "tempfile.NamedTemporaryFile()",
        "f(text=x)",
        "a.open(b)",
    ],
)
def test_what_it_leaves_alone(tmp_path: Path, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "module.py").write_text(line, encoding="utf-8")
    assert list(without_encoding(tmp_path / "module.py")) == []
