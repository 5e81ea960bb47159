"""The playground as files: what is served, to whom, under which policy, and that a package brings all of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from inflight_gateway import playground
from inflight_tools.common.layout import REPOSITORY
from tests.harness.gateway import Gateway, running

FILES = sorted(playground.FOLDER.glob("*.*"))


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with running("127.0.0.1:1", keys="secret") as found:  # no Triton there: the page needs none
        found.wait_alive()
        yield found


def test_the_page_and_all_that_it_names_come_without_a_key_under_its_policy(gateway: Gateway) -> None:
    status, headers, page = gateway.call("GET", "/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    named = {found.decode() for found in re.findall(rb'(?:src|href)="([^"#]+)"', page)}
    assert {"playground/main.js", "playground/style.css", "playground/theme.js"} <= named
    for path in named:
        status, headers, data = gateway.call("GET", f"/{path}")
        assert (status, bool(data)) == (200, True), path
        assert headers["content-security-policy"].startswith("default-src 'self';")
        assert headers["x-content-type-options"] == "nosniff"
    modules = "\n".join(one.read_text(encoding="utf-8") for one in FILES if one.suffix == ".js")
    for name in sorted(set(re.findall(r'from "\./(\w+\.js)"', modules))):
        status, headers, _ = gateway.call("GET", f"/playground/{name}")
        assert (status, headers["content-type"]) == (200, "text/javascript; charset=utf-8")
    status, headers, data = gateway.call("HEAD", "/")
    assert (status, headers["content-length"], data) == (200, str(len(page)), b"")


def test_nothing_else_is_open(gateway: Gateway) -> None:
    for path in ("/v1/models", "/playground/__init__.py", "/playground/../cli.py", "/playground/", "/playground"):
        status, _, body = gateway.call("GET", path)
        assert (status, json.loads(body)["error"]["code"]) == (401, "invalid_api_key"), path


def test_it_can_be_left_out() -> None:
    with running("127.0.0.1:1", "--no-playground") as found:
        found.wait_alive()
        assert found.call("GET", "/")[0] == 405
        assert found.call("GET", "/playground/main.js")[0] == 404


def test_nothing_is_inline_or_from_elsewhere_and_a_models_text_is_only_ever_text() -> None:
    markup = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function")
    for one in FILES:
        if one.suffix not in playground.KINDS:
            continue
        said = one.read_text(encoding="utf-8")
        assert not markup.search(said), one.name
        links = re.findall(r"\b(?:https?:)?//[\w.]+", re.sub(r"(^|\s)//.*", "", said, flags=re.MULTILINE))
        assert set(links) <= {"http://www.w3.org"}, one.name  # the name of SVG
    page = (playground.FOLDER / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", page)


def test_a_wheel_brings_every_file(tmp_path: Path) -> None:
    """The real build, of a copy: setuptools writes beside what it builds."""
    (tmp_path / "source").mkdir()
    for name in ("pyproject.toml", "README.md", "python_backend", "build_engine", "scripts", "gateway"):
        (tmp_path / "source" / name).symlink_to(REPOSITORY / name)
    script = "import setuptools.build_meta as b, sys; b.build_wheel(sys.argv[1])"
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=tmp_path / "source", capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    assert {f"inflight_gateway/playground/{one.name}" for one in FILES} <= names
