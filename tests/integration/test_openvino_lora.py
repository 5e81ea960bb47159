"""Why the OpenVINO engine refuses adapters: what OpenVINO GenAI does with them in continuous batching, as it was found.

When one of these fails, the library has learnt something: then `lora_dir` can be had on OpenVINO as on other engines.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from build_engine import source
from build_engine.openvino import export
from inflight.engines.openvino.engine import read_options
from inflight.errors import LoadError
from inflight_tools.common.tiny_models import write_checkpoint

pytestmark = [pytest.mark.build, pytest.mark.full]

RANK, SCALE = 4, 2.0
MODULES = ("self_attn.q_proj", "mlp.down_proj")
DYNAMIC, FIXED = ("MODE_AUTO", "MODE_DYNAMIC", "MODE_STATIC_RANK"), ("MODE_STATIC", "MODE_FUSE")


class Made:
    """A tiny Llama as an IR (layers apart, and merged as the builder does), an adapter, and both references."""

    def __init__(self, root: Path) -> None:
        import torch
        from safetensors.torch import save_file

        from build_engine.loading import load_model

        shape = {"hidden_size": 128, "intermediate_size": 256, "tie_word_embeddings": False}
        origin = source.resolve(str(write_checkpoint(root / "model", "llama", **shape)))
        staged = source.stage(origin, root / "staged")
        report: Any = lambda _fraction, _note="": None  # noqa: E731
        self.apart = export.convert(staged, root / "apart", report).parent
        self.merged_graph = root / "engine"
        self.merged_graph.mkdir()
        export.compress(self.apart / export.MODEL_XML, self.merged_graph / export.MODEL_XML, None, report)
        for folder in (self.apart, self.merged_graph):
            source.copy_tokenizer(origin, folder, with_config=True)
            assert export.write_tokenizers(staged, folder) is None
        self.plain, self.merged = (load_model(staged, torch.float32) for _ in range(2))
        self.file = root / "adapter_model.safetensors"
        random = torch.Generator().manual_seed(5)
        tensors = {}
        for name, module in self.merged.named_modules():
            if name.endswith(MODULES):
                down = torch.randn(RANK, module.weight.shape[1], generator=random) * 0.3
                up = torch.randn(module.weight.shape[0], RANK, generator=random) * 0.3
                tensors[f"base_model.model.{name}.lora_A.weight"] = down
                tensors[f"base_model.model.{name}.lora_B.weight"] = up
                with torch.no_grad():
                    module.weight += SCALE * (up @ down)
        assert len(tensors) == 2 * 2 * len(MODULES)
        save_file(tensors, self.file)
        (root / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": 8}))

    def pipeline(self, folder: Path, mode: str) -> tuple[Any, Any]:
        """(a pipeline that knows the adapter, what a request names it by)."""
        import openvino_genai as genai

        scheduler = genai.SchedulerConfig()
        scheduler.num_kv_blocks, scheduler.max_num_batched_tokens, scheduler.max_num_seqs = 100, 64, 4
        scheduler.dynamic_split_fuse, scheduler.enable_prefix_caching = True, False
        adapter = genai.Adapter(str(self.file))
        wish = genai.AdapterConfig(adapter, alpha=SCALE, mode=getattr(genai.AdapterConfig.Mode, mode))
        exact = {"KV_CACHE_PRECISION": "f32", "INFERENCE_PRECISION_HINT": "f32", "adapters": wish}
        pipeline = genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", exact)
        return pipeline, genai.AdapterConfig(adapter, alpha=SCALE)

    def asked(self, pipeline: Any, wishes: list[Any]) -> list[str]:
        """What each request answered like, "plain" or "merged", when all of them ran in one batch."""
        import numpy as np
        import openvino
        import openvino_genai as genai
        import torch

        prompt = torch.randint(3, 300, (1, 50), generator=torch.Generator().manual_seed(1))
        handles = []
        for number, wish in enumerate(wishes):
            config = genai.GenerationConfig()
            config.max_new_tokens, config.ignore_eos, config.do_sample, config.logprobs = 12, True, False, 1
            config.adapters = wish
            handles.append(pipeline.add_request(number, openvino.Tensor(prompt.numpy().astype(np.int64)), config))
        for _ in range(200):
            if not pipeline.has_non_finished_requests():
                break
            pipeline.step()
        found = []
        for handle in handles:
            (answer,) = handle.read_all()
            whole = torch.cat([prompt, torch.tensor([answer.generated_ids])], dim=1)
            near = {}
            for name, model in (("plain", self.plain), ("merged", self.merged)):
                with torch.no_grad():
                    rows = model(whole).logits[0].log_softmax(-1)[49:-1]
                pairs = zip(rows, answer.generated_ids, answer.generated_log_probs, strict=True)
                near[name] = max(abs(float(row[token]) - value) for row, token, value in pairs)
            names = [name for name, distance in near.items() if distance < 1e-3]
            found.append(names[0] if names else "neither")
        return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("lora"))


@pytest.mark.parametrize("mode", DYNAMIC)
def test_a_requests_wish_is_lost(made: Made, mode: str) -> None:
    import openvino_genai

    pipeline, wish = made.pipeline(made.apart, mode)
    assert made.asked(pipeline, [wish, openvino_genai.AdapterConfig()]) == ["plain", "plain"]


@pytest.mark.parametrize("mode", FIXED)
def test_or_everybody_gets_the_adapter(made: Made, mode: str) -> None:
    import openvino_genai

    pipeline, wish = made.pipeline(made.apart, mode)
    assert made.asked(pipeline, [wish, openvino_genai.AdapterConfig()]) == ["merged", "merged"]


def test_merged_layers_no_longer_fit_an_adapter_of_one_of_them(made: Made) -> None:
    with pytest.raises(RuntimeError, match=r"q_proj\+k_proj\+v_proj(.|\n)*shapes are inconsistent"):
        made.pipeline(made.merged_graph, "MODE_FUSE")


def test_lora_dir_is_refused_with_what_to_do() -> None:
    with pytest.raises(LoadError, match=r"lora_dir is not for the openvino engine.*merge the adapter"):
        read_options({"lora_dir": "adapters"})
