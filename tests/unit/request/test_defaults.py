from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from inflight.errors import LoadError, RequestError
from inflight.request.defaults import GenerationDefaults, read_generation_defaults
from tests.unit.machines.strategies import request

pytestmark = pytest.mark.fast


def read(folder: Path, content: Any) -> GenerationDefaults:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "generation_config.json").write_text(text, encoding="utf-8")
    return read_generation_defaults(folder)


def test_defaults_of_checkpoints(tmp_path: Path) -> None:
    assert read_generation_defaults(tmp_path) == GenerationDefaults()
    assert read(tmp_path, {"do_sample": False, "temperature": 0.6, "top_p": 0.9}) == GenerationDefaults()
    sampled = {"do_sample": True, "temperature": 0.5, "top_p": 0.75, "top_k": 64, "min_p": 0.0}
    assert read(tmp_path, sampled) == GenerationDefaults(0.5, 0.75, 64, 0.0)
    assert read(tmp_path, {"do_sample": True}) == GenerationDefaults(1.0)
    assert read(tmp_path, {"do_sample": True, "temperature": None, "top_k": None}) == GenerationDefaults(1.0)
    assert read(tmp_path, {"do_sample": None, "repetition_penalty": 1.5}) == GenerationDefaults(repetition_penalty=1.5)
    assert read(tmp_path, {"do_sample": True, "top_k": 50.0, "top_p": 1}) == GenerationDefaults(1.0, 1.0, 50)
    assert read(tmp_path, {"do_sample": True, "top_k": -1, "temperature": 0}) == GenerationDefaults(0.0, None, -1)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", ["-0.1", "101", "Infinity", "NaN", "true", '"0.7"', "[1]", "1" + "0" * 400]),
        ("top_p", ["0", "-1", "2", "1.0001", "Infinity", "false", '"0.9"', "{}"]),
        ("top_k", ["-2", "1.5", "Infinity", "NaN", "true", '"50"', "[50]", str(2**31)]),
        ("min_p", ["-0.5", "3", "Infinity", '"0.1"']),
        ("repetition_penalty", ["0", "-1", "101", "Infinity", "true", '"1.1"']),
    ],
)
def test_a_value_that_no_request_could_have_fails_the_load(name: str, values: list[str], tmp_path: Path) -> None:
    for value in values:
        with pytest.raises(LoadError) as caught:
            read(tmp_path, f'{{"do_sample": true, "{name}": {value}}}')
        message = str(caught.value)
        assert message.startswith(f"{name} of generation_config.json "), message
        assert "\n" not in message
        assert len(message) < 200


@pytest.mark.parametrize("value", ["1", '"true"', "[]"])
def test_do_sample_is_true_or_false(value: str, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"do_sample of generation_config\.json"):
        read(tmp_path, f'{{"do_sample": {value}}}')


def test_what_a_greedy_model_does_not_use_is_not_looked_at(tmp_path: Path) -> None:
    assert read(tmp_path, '{"do_sample": false, "top_p": 0, "top_k": Infinity}') == GenerationDefaults()


@pytest.mark.parametrize("name", ["temperature", "top_p", "top_k", "min_p", "repetition_penalty"])
def test_defaults_and_requests_have_the_same_bounds(name: str, tmp_path: Path) -> None:
    for value in (-2, -1, -0.5, 0, 0.5, 1, 1.5, 2, 100, 100.5, 2**31 - 1, 2**31):
        try:
            read(tmp_path, {"do_sample": True, name: value})
            loads = True
        except LoadError:
            loads = False
        try:
            request(sampling_parameters=json.dumps({name: value}))
            taken = True
        except RequestError:
            taken = False
        assert loads == taken, value
