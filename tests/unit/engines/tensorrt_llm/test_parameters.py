"""NVIDIA's own model parameters, and the import of a repository of its backend."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from inflight.engines.tensorrt_llm.options import TensorRtLlmOptions, read_options
from inflight.errors import LoadError
from inflight.model.parameters import parse_model_config
from inflight.model.trtllm_parameters import PARAMETERS
from inflight_tools.common.report import Failure
from inflight_tools.server import import_config
from tests.doubles.folders import write_engine
from tests.unit.machines.tokenizer_kinds import write_folder

pytestmark = pytest.mark.fast

ROOT = Path(__file__).resolve().parents[4]


def pbtxt(name: str, backend: str, parameters: dict[str, str], more: str = "") -> str:
    """A configuration in the form of NVIDIA's templates."""
    text = f'name: "{name}"\nbackend: "{backend}"\nmax_batch_size: 8\n{more}\n'
    for key, value in parameters.items():
        text += f'parameters: {{\n  key: "{key}"\n  value: {{\n    string_value: "{value}"\n  }}\n}}\n'
    return text


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The five models, filled as NVIDIA's documents do it, some placeholders left open."""
    folder = tmp_path / "triton_model_repo"
    tokenizer = write_folder(tmp_path / "tokenizer")
    (tokenizer / "generation_config.json").write_text('{"eos_token_id": 1}')
    engine = write_engine(tmp_path / "engines" / "1-gpu", tokenizer, with_manifest=False, vocab_size=20_000)
    (engine / "tokenizer.json").unlink()
    inputs = 'input [ { name: "input_ids" data_type: TYPE_INT32 dims: [ -1 ] allow_ragged_batch: true },\n'
    inputs += '{ name: "input_lengths" data_type: TYPE_INT32 dims: [ 1 ] reshape: { shape: [ ] } },\n'
    inputs += '{ name: "request_output_len" data_type: TYPE_INT32 dims: [ 1 ] } ]\n'
    batching = "dynamic_batching { preferred_batch_size: [ ${triton_max_batch_size} ] max_queue_delay_microseconds: 5 "
    batching += "default_queue_policy: { max_queue_size: 64 } }\n"
    models = {
        "tensorrt_llm": pbtxt(
            "tensorrt_llm",
            "tensorrtllm",
            {
                "FORCE_CPU_ONLY_INPUT_TENSORS": "no",
                "gpt_model_type": "inflight_fused_batching",
                "gpt_model_path": str(engine),
                "encoder_model_path": "${encoder_engine_dir}",
                "max_beam_width": "${max_beam_width}",
                "batch_scheduler_policy": "max_utilization",
                "kv_cache_free_gpu_mem_fraction": "0.8",
                "max_attention_window_size": "512,1024",
                "enable_kv_cache_reuse": "true",
                "cancellation_check_period_ms": "50",
                "decoding_mode": "",
            },
            inputs + batching + "model_transaction_policy { decoupled: ${decoupled_mode} }",
        ),
        "preprocessing": pbtxt(
            "preprocessing", "python", {"tokenizer_dir": str(tokenizer), "add_special_tokens": "False"}
        ),
        "postprocessing": pbtxt("postprocessing", "python", {"tokenizer_dir": str(tokenizer)}),
        "ensemble": 'name: "ensemble"\nplatform: "ensemble"\nmax_batch_size: 8\n'
        'input [ { name: "text_input" data_type: TYPE_STRING dims: [ 1 ] },\n'
        '{ name: "return_context_logits" data_type: TYPE_BOOL dims: [ 1 ] optional: true } ]\n',
        "tensorrt_llm_bls": pbtxt(
            "tensorrt_llm_bls", "python", {"accumulate_tokens": "true", "tensorrt_llm_model_name": "tensorrt_llm"}
        ),
    }
    for name, text in models.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.pbtxt").write_text(text)
    return folder


def test_every_parameter_of_nvidia_is_an_option_of_the_engine() -> None:
    options = {field.name for field in msgspec.structs.fields(TensorRtLlmOptions)}
    assert set(PARAMETERS) - {"gpt_model_path"} <= options


def test_values_and_unset_ones() -> None:
    config = parse_model_config(
        {
            "gpt_model_path": "/engines/1",
            "gpt_model_type": "inflight_batching",
            "max_beam_width": "2",
            "enable_chunked_context": "True",
            "kv_cache_free_gpu_mem_fraction": "0.5",
            "gpu_device_ids": "0, 1",
            "medusa_choices": "${medusa_choices}",
            "decoding_mode": "",
            "exclude_input_in_output": "${exclude_input_in_output}",
        }
    )
    assert (config.engine, config.engine_dir, config.exclude_input_in_output) == ("tensorrt_llm", "/engines/1", False)
    assert config.engine_options == {
        "gpt_model_type": "inflight_batching",
        "max_beam_width": 2,
        "enable_chunked_context": True,
        "kv_cache_free_gpu_mem_fraction": 0.5,
        "gpu_device_ids": [0, 1],
    }
    assert read_options(config.engine_options).gpu_device_ids == [0, 1]


def test_ours_keep_their_defaults_beside_one_of_theirs() -> None:
    config = parse_model_config({"max_beam_width": "2", "engine_options": '{"lora_dir": "/l"}'})
    assert (config.exclude_input_in_output, config.engine) == (True, "auto")
    assert config.engine_options == {"max_beam_width": 2, "lora_dir": "/l"}


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"max_beam_width": "two"}, "model parameter max_beam_width must be a whole number, but is 'two'."),
        ({"cuda_graph_mode": "yes"}, "model parameter cuda_graph_mode must be true or false, but is 'yes'."),
        ({"gpu_device_ids": "0,1;2,3"}, "names several instances"),
        ({"kv_cache_free_gpu_memory_fraction": "0.9"}, "did you mean kv_cache_free_gpu_mem_fraction?"),
        ({"max_beam_width": "2", "engine_options": '{"max_beam_width": 3}'}, "stands in engine_options as well"),
    ],
)
def test_values_that_cannot_be(parameters: dict[str, str], sentence: str) -> None:
    with pytest.raises(LoadError) as refusal:
        parse_model_config(parameters)
    assert sentence in str(refusal.value)


def test_an_imported_repository(repository: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "import_config.py"), str(repository), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for line in (
        "carried over: batch_scheduler_policy = max_utilization",
        "carried over: dynamic_batching max_queue_size 64 → max_queue_size",
        "carried over: cancellation_check_period_ms = 50 (no effect: a poller of its own)",
        "not carried over: parameter add_special_tokens of preprocessing",
        "not carried over: input request_output_len of tensorrt_llm (token level): max_tokens",
        "not carried over: input return_context_logits of ensemble",
        "not carried over: dynamic_batching max_queue_delay_microseconds",
    ):
        assert line in done.stdout
    model = tmp_path / "out" / "ensemble"
    engine = model / "1" / "engine"
    assert sorted(path.name for path in engine.iterdir()) == [
        "config.json",
        "generation_config.json",
        "rank0.engine",
        "tokenizer.json",
        *([] if not (engine / "tokenizer_config.json").exists() else ["tokenizer_config.json"]),
    ]
    config = import_config.read_config(model / "config.pbtxt")
    assert (config.backend, config.max_batch_size) == ("inflight", 1)
    parsed = parse_model_config(import_config.parameters_of(config))
    assert parsed.max_queue_size == 64
    assert parsed.exclude_input_in_output is False
    options = read_options(parsed.engine_options)
    assert (options.batch_scheduler_policy, options.max_attention_window_size) == ("max_utilization", [512, 1024])


def test_what_cannot_be_imported_says_why(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"has no tensorrt_llm/config.pbtxt"):
        import_config.plan(tmp_path, "x")
    made = import_config.plan(repository, "x")
    import_config.write(made, tmp_path / "out")
    with pytest.raises(Failure, match="exists: remove it"):
        import_config.write(made, tmp_path / "out")
    made.tokenizer = None
    made.name = "y"
    with pytest.raises(Failure, match=r"no tokenizer\.json"):
        import_config.write(made, tmp_path / "out")
    (repository / "tensorrt_llm" / "config.pbtxt").write_text("name: {")
    with pytest.raises(Failure, match="no valid model configuration"):
        import_config.plan(repository, "x")


def test_a_draft_model_becomes_a_pair(repository: Path) -> None:
    draft = repository / "tensorrt_llm_draft"
    draft.mkdir()
    (draft / "config.pbtxt").write_text(pbtxt("tensorrt_llm_draft", "python", {"gpt_model_path": "/engines/draft"}))
    bls = {"tensorrt_llm_draft_model_name": "tensorrt_llm_draft"}
    (repository / "tensorrt_llm_bls" / "config.pbtxt").write_text(pbtxt("tensorrt_llm_bls", "python", bls))
    assert import_config.plan(repository, "x").options == {"draft_engine_dir": "/engines/draft"}
    assert json.dumps(import_config.plan(repository, "x").options)
