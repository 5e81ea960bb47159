"""Every form of checkpoint through the command: built as far as the first step of work, or refused in one sentence."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest

from build_engine import cli, stages
from build_engine.errors import StageFailure
from tests.unit.build.checkpoints.forms import REFUSED, WELL, Form, whole

pytestmark = pytest.mark.fast

BEGUN = "the first step of work was begun"


@pytest.fixture(autouse=True)
def no_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def begin(*_: object, **__: object) -> None:
        raise StageFailure(BEGUN)

    monkeypatch.setattr("build_engine.job.run_stage", begin)
    assert stages.run_stage is not begin
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


def build(form: Form, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """(status, what was said); checks that nothing was left behind."""
    (tmp_path / "given").mkdir()
    (tmp_path / "made").mkdir()
    model = form.make(whole(tmp_path / "given" / "model"))
    command = ["build", str(model), "--target", "openvino", "--no-cache", "--output", str(tmp_path / "made" / "engine")]
    status = cli.main(command)
    assert not list((tmp_path / "made").iterdir())
    assert not list((tmp_path / "temporary").iterdir())
    return status, capsys.readouterr().err


@pytest.mark.parametrize("form", WELL, ids=lambda form: form.name)
def test_what_can_be_built_reaches_the_work(form: Form, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = build(form, tmp_path, capsys)
    assert (status, said.splitlines()[-1]) == (1, f"error: {BEGUN}"), said
    assert bool(form.warns) == ("warning:" in said), said
    assert re.search(form.warns, said)


@pytest.mark.parametrize("form", REFUSED, ids=lambda form: form.name)
def test_what_cannot_be_built_is_refused_in_one_sentence_before_any_work(
    form: Form, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said = build(form, tmp_path, capsys)
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert status == 2, said
    assert said.splitlines()[-1:] == errors  # the sentence, and nothing after it
    assert re.search(form.says, errors[0]), said
    assert len(errors[0]) < 500


def test_the_forms_are_all_there() -> None:
    names = [form.name for form in (*WELL, *REFUSED)]
    assert len(names) == len(set(names)) >= 60
