"""Every architecture for OpenVINO as it is served: prompts in chunks, past sliding windows, against transformers.

The weights are random (tiny models of the real classes), far from uniform; nothing is quantized, and both sides compute
in 32 bits, so what differs is a fault of the graph or of how it is run.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from build_engine import source
from build_engine.architectures import OPENVINO, SUPPORTED
from build_engine.openvino import export
from build_engine.weights_check import check_weights
from inflight_tools.common.tiny_models import write_checkpoint

pytestmark = [pytest.mark.build, pytest.mark.full]

WINDOW = 64
SHAPE = {"hidden_size": 128, "intermediate_size": 256, "dtype": "bfloat16", "tie_word_embeddings": False}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
SLIDING: dict[str, Any] = {"sliding_window": WINDOW}
GEMMA: dict[str, Any] = {"head_dim": 32, "tie_word_embeddings": True}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True},
    "mistral": {"head_dim": 64, **SLIDING},
    "qwen2": {"rope_theta": 1e6},
    "qwen3": {"head_dim": 48},
    "mixtral": {"num_local_experts": 4, "sliding_window": None},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 128},
    "qwen3_moe": {**EXPERTS, "head_dim": 32},
    "gemma": GEMMA,
    "gemma2": {**GEMMA, **SLIDING, "query_pre_attn_scalar": 32},
    "gemma3_text": {**GEMMA, **SLIDING, "query_pre_attn_scalar": 32, "num_hidden_layers": 6},
    "phi3": {"pad_token_id": 0},
    "smollm3": {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0]},
    "granite": {"embedding_multiplier": 12.0, "logits_scaling": 8.0, "residual_multiplier": 0.22},
    "olmo2": {},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 32, **SLIDING},
}


def test_every_architecture_for_openvino_is_here() -> None:
    assert {each.model_type for each in SUPPORTED.values() if OPENVINO in each.targets} == set(MODELS)


@pytest.fixture(scope="module", params=sorted(MODELS))
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(the staged checkpoint, the engine directory)."""
    root = tmp_path_factory.mktemp(request.param)
    model = write_checkpoint(root / "model", request.param, **{**SHAPE, **MODELS[request.param]})
    origin = source.resolve(str(model))
    check_weights(origin)
    staged = source.stage(origin, root / "staged")
    report: Any = lambda _fraction, _note="": None  # noqa: E731
    exported = export.convert(staged, root / "exported", report)
    engine = root / "engine"
    engine.mkdir()
    export.compress(exported, engine / export.MODEL_XML, None, report)
    source.copy_tokenizer(origin, engine, with_config=True)
    assert export.write_tokenizers(staged, engine) is None
    return staged, engine


@pytest.mark.parametrize("budget", [4096, 64])
def test_chunks_and_windows_change_nothing(built: tuple[Path, Path], budget: int) -> None:
    """`budget`: tokens in a step. With 64 a prompt of 200 comes in four chunks, the last three past the window."""
    import numpy as np
    import openvino
    import openvino_genai
    import torch

    from build_engine.loading import load_model

    staged, engine = built
    reference = load_model(staged, torch.float32)
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.num_kv_blocks, scheduler.max_num_batched_tokens, scheduler.max_num_seqs = 100, budget, 4
    scheduler.dynamic_split_fuse, scheduler.enable_prefix_caching = True, False
    exact = {"KV_CACHE_PRECISION": "f32", "INFERENCE_PRECISION_HINT": "f32"}
    pipeline = openvino_genai.ContinuousBatchingPipeline(str(engine), scheduler, "CPU", exact)
    for seed, length in enumerate((200, 100, 40)):
        prompt = torch.randint(3, 300, (1, length), generator=torch.Generator().manual_seed(seed))
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample, config.logprobs = 24, True, False, 1
        handle = pipeline.add_request(seed, openvino.Tensor(prompt.numpy().astype(np.int64)), config)
        for _ in range(200):
            if not pipeline.has_non_finished_requests():
                break
            pipeline.step()
        (answer,) = handle.read_all()
        whole = torch.cat([prompt, torch.tensor([answer.generated_ids])], dim=1)
        with torch.no_grad():
            expected = reference(whole).logits[0].log_softmax(-1)
        for place, (token, found) in enumerate(zip(answer.generated_ids, answer.generated_log_probs, strict=True)):
            row = expected[length - 1 + place]
            assert abs(float(row[token]) - found) < 1e-2, (length, place)
            assert float(row.max()) - float(row[token]) < 1e-2, (length, place)


def test_an_architecture_that_the_exporter_lacks_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from build_engine import cli

    model = write_checkpoint(tmp_path / "model", "ministral", **{**SHAPE, "head_dim": 32})
    assert cli.main(["build", str(model), "--target", "openvino", "--output", str(tmp_path / "out")]) == 2
    assert "MinistralForCausalLM is not supported for openvino, which builds: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    shutil.rmtree(model)
