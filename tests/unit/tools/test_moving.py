"""Other servers' command lines as ours: every translation is one that our own parsers take."""

from __future__ import annotations

import shlex

import msgspec
import pytest

from inflight.engines.vllm.options import VllmOptions
from inflight.model.parameters import ModelConfig
from inflight_tools.common.report import Failure
from inflight_tools.server.moving import PROGRAMS, main, program_of, translate
from inflight_tools.server.serve_options import parse

FLAGS = [flag for program in PROGRAMS for flag in program.flags]
COMMANDS = (
    (
        "vllm serve Qwen/Qwen3-0.6B --served-model-name llm --port 8000 --max_model_len=4096 --enforce-eager",
        "inflight serve Qwen/Qwen3-0.6B --name llm --gateway-port 8000 --engine vllm",
        {"max_seq_len": 4096, "enforce_eager": True},
    ),
    (
        "python3 -m vllm.entrypoints.openai.api_server --model m --host 0.0.0.0 --ssl-certfile 'a b.pem' --api-key k",
        "inflight serve m --host 0.0.0.0 --tls-cert 'a b.pem' --api-keys api-keys --engine vllm",
        {},
    ),
    (
        "text-generation-launcher --model-id dir -p 3000 --max-concurrent-requests 8 --cuda-memory-fraction 0.5"
        " --cors-allow-origin https://example.org",
        "inflight serve dir --gateway-port 3000 --max-requests 8 --cors-origin https://example.org --engine vllm",
        {"gpu_memory_utilization": 0.5},
    ),
    (
        "openai_frontend --model-repository repo --openai-port 9000 --enable-kserve-frontends --kserve-grpc-port 9001"
        " --openai-restricted-api inference k v --tritonserver-log-verbose-level 1",
        "inflight serve --repository repo --gateway-port 9000 --grpc-port 9001 --api-keys api-keys -- --log-verbose=1",
        {},
    ),
)


@pytest.mark.parametrize(("there", "here", "options"), COMMANDS)
def test_a_command_becomes_ours(there: str, here: str, options: dict[str, object]) -> None:
    found = program_of(shlex.split(there))
    assert found is not None
    moved = translate(*found)
    assert (moved.command(), moved.options, moved.lost) == (here, options, [])


def test_what_a_flag_becomes_exists() -> None:
    """By our own parsers; and it either becomes something, or a sentence says what to do."""
    options = {one.name for one in msgspec.structs.fields(VllmOptions)}
    parameters = {one.name for one in msgspec.structs.fields(ModelConfig)}
    for flag in FLAGS:
        assert flag.serve or flag.option or flag.parameter or flag.note, flag
        assert flag.note or not flag.lost, flag
        if flag.serve:
            said = flag.serve if "--gateway-port" in flag.serve else f"--gateway-port 8080 {flag.serve}"
            value = "https://example.org" if "origin" in flag.serve else "8123"
            _, passed = parse([part.format(value) for part in said.split()], "inflight serve", "")
            assert bool(passed) == flag.serve.startswith("-- "), flag
        assert flag.option in options | {""}, flag
        assert flag.parameter in parameters | {""}, flag


def test_what_has_no_counterpart_is_said_and_ends_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    words = "vllm serve m --trust-remote-code --something-new 3 --max-num-seqs 8 --quantization awq"
    assert main(words.split(" ")) == 1
    said = capsys.readouterr().out
    assert "--trust-remote-code: never done here" in said
    assert "--something-new: no counterpart is known" in said
    assert 'parameters { key: "max_running" value { string_value: "8" } }' in said
    assert r'parameters { key: "engine_options" value { string_value: "{\"quantization\": \"awq\"}" } }' in said
    assert main(["vllm", "serve", "m", "--port", "8000"]) == 0


def test_a_key_is_never_shown(capsys: pytest.CaptureFixture[str]) -> None:
    main(["vllm", "serve", "m", "--api-key", "sesame"])
    assert "sesame" not in capsys.readouterr().out


def test_a_flag_without_its_value_is_said() -> None:
    with pytest.raises(Failure, match="--port lacks its value"):
        main(["vllm", "serve", "m", "--port"])


def test_a_repository_goes_the_old_way(tmp_path: object) -> None:
    with pytest.raises(Failure, match="has no tensorrt_llm/config"):
        main([str(tmp_path), str(tmp_path)])
