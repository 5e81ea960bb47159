"""Model parameters of config.pbtxt. The names are the contract's, written out here."""

from __future__ import annotations

from typing import Any

import pytest

from inflight.errors import LoadError
from inflight.model.parameters import ModelConfig, model_parameters, parse_model_config

pytestmark = pytest.mark.fast

# name, a value as it stands in config.pbtxt, what it becomes, bad values
CONTRACT: list[tuple[str, str, Any, list[str]]] = [
    ("engine_dir", "../../other/1/engine", "../../other/1/engine", []),
    ("engine", "vllm", "vllm", ["OpenVINO", "vLLM", ""]),
    ("engine_python", "../venv/bin/python", "../venv/bin/python", []),
    ("engine_options", '{"kv_cache_gb": 1.5}', {"kv_cache_gb": 1.5}, ["{", "[1]", "3", '"x"', "null"]),
    ("batching_strategy", "static", "static", ["continuous", ""]),
    ("batching_max_wait_ms", "75", 75, ["-1", "1.5", "soon", ""]),
    ("max_running", "12", 12, ["-1", "many"]),
    ("max_queue_size", "99", 99, ["-1"]),
    ("max_queue_tokens", "4096", 4096, ["-1"]),
    ("default_max_tokens", "16", 16, ["0", "-1"]),
    ("max_tokens_limit", "1024", 1024, ["-1"]),
    ("max_prompt_bytes", "65536", 65536, ["-1", str(1 << 31)]),
    ("default_deadline_ms", "30000", 30000, ["-1"]),
    ("stall_timeout_ms", "5000", 5000, ["0", "99"]),
    ("load_timeout_s", "60", 60, ["0"]),
    ("max_restarts", "3", 3, ["-1"]),
    ("drain_notice_ms", "2000", 2000, ["-1", "soon"]),
    ("restart_hold_ms", "2500", 2500, ["-1", "600001"]),
    ("drain_timeout_ms", "10000", 10000, ["-1"]),
    ("exclude_input_in_output", "false", False, ["no", "0", ""]),
    ("stream_echo", "true", True, ["no", "1"]),
    ("empty_final_response", "true", True, ["no", "1"]),
    ("chat_template", "mine.jinja", "mine.jinja", []),
    ("tool_format", "hermes", "hermes", ["xml", ""]),
    ("reasoning_format", "think", "think", ["xml", ""]),
    ("default_reasoning", "true", True, ["no", "1"]),
    ("special_tokens_in_messages", "true", True, ["no", "1"]),
    ("price_per_hour", "3.25", 3.25, ["-1", "nan", "inf", "4 EUR", ""]),
    ("metrics_interval_ms", "250", 250, ["0", "9"]),
    ("sender_threads", "4", 4, ["0", "65"]),
]
BAD = [(name, value) for name, _, _, values in CONTRACT for value in values]


@pytest.mark.parametrize(("name", "text", "value"), [row[:3] for row in CONTRACT], ids=[row[0] for row in CONTRACT])
def test_every_parameter_of_the_contract_is_read(name: str, text: str, value: Any) -> None:
    config = parse_model_config({name: text})
    assert getattr(config, name) == value
    assert getattr(ModelConfig(), name) != value, "the example must differ from the default to prove anything"
    others = set(model_parameters()) - {name}
    assert all(getattr(config, other) == getattr(ModelConfig(), other) for other in others)


@pytest.mark.parametrize(("name", "text"), BAD, ids=[f"{name}={text}" for name, text in BAD])
def test_a_bad_value_fails_the_load_with_the_name_of_its_parameter(name: str, text: str) -> None:
    with pytest.raises(LoadError) as caught:
        parse_model_config({name: text})
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_code_knows_no_parameter_that_the_contract_lacks() -> None:
    assert set(model_parameters()) == {row[0] for row in CONTRACT}


def test_nothing_configured_gives_the_documented_defaults() -> None:
    config = parse_model_config({})
    assert config == ModelConfig()
    assert (config.engine, config.engine_dir, config.batching_strategy) == ("auto", "engine", "inflight")
    assert config.default_max_tokens == 256
    assert config.exclude_input_in_output is True
    assert config.stall_timeout_ms == 10_000


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("max_runing", "max_running"), ("engine_directory", "engine_dir"), ("stall_timeout", "stall_timeout_ms")],
)
def test_an_unknown_parameter_fails_the_load_with_the_nearest_known_name(name: str, nearest: str) -> None:
    with pytest.raises(LoadError, match=f"{name}.*did you mean {nearest}"):
        parse_model_config({name: "1"})


def test_an_unknown_parameter_that_is_near_to_nothing_is_still_refused() -> None:
    with pytest.raises(LoadError, match="xyzzy"):
        parse_model_config({"xyzzy": "1"})


def test_tritons_own_parameters_are_let_through() -> None:
    assert parse_model_config({"FORCE_CPU_ONLY_INPUT_TENSORS": "no", "EXECUTION_ENV_PATH": "x"}) == ModelConfig()


def test_surrounding_spaces_do_not_matter() -> None:
    assert parse_model_config({"max_running": " 3 ", "engine": " openvino\n", "exclude_input_in_output": "True"}) == (
        ModelConfig(max_running=3, engine="openvino")
    )


def test_a_configuration_cannot_be_changed_after_the_load() -> None:
    with pytest.raises(AttributeError):
        ModelConfig().max_running = 1  # type: ignore[misc]
