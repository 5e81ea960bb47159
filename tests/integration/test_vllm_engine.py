"""vLLM itself behind the seam: tokens as of transformers, adapters, guides, drafts, and a pool that never runs dry.

The contract and the attacks are in tests/contract/on_vllm and tests/reliability/on_vllm.
"""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inflight_tools.common.layout import MODELS
from inflight_tools.selfcheck.known_vllm import ARGUMENTS
from inflight_tools.server.server import Server, ServerConfig
from tests.doubles.vllm import ALPHA, RANK, cycle, drive, vllm_python, write_adapter, write_chain
from tests.harness.grpc_client import GrpcClient, RequestFailed
from tests.harness.repository import write_model
from tests.reliability.rig import parse_samples
from tests.unit.machines.tokenizer_kinds import write_folder

pytestmark = [pytest.mark.server, pytest.mark.full, pytest.mark.timeout(600)]

MODEL = MODELS / "SmolLM2-135M-Instruct"
TOKENS = 48
PROMPTS = (
    "The capital of France is",
    "Once upon a time",
    "def fibonacci(n):\n    ",
    "Water boils at",
    "Q: What is 12 times 12?\nA:",
    "Die Hauptstadt von Deutschland ist",
    "List three fruits:\n1.",
    "one two three four five six seven eight nine ten " * 4,
)
# Logits of two tokens that far apart may change places: arithmetic in another order, and in 8 bits of mantissa.
MARGIN = {"float32": 0.01, "bfloat16": 0.5}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`ours` and `unfit`."""
    vllm_python()
    folder = tmp_path_factory.mktemp("adapters")
    write_adapter(folder / "ours")
    write_adapter(folder / "unfit", rank=2 * RANK)  # more than the model is told to hold
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, adapters: Path) -> Iterator[Server]:
    """SmolLM2 in two precisions, and once with drafts; `f32` has adapters, and is what `auto` finds."""
    root = tmp_path_factory.mktemp("vllm")
    common = {"kv_cache_gb": 0.5, "max_seq_len": 1024, "enforce_eager": True}
    for name, options, more in (
        ("f32", {"dtype": "float32", "lora_dir": str(adapters), "max_lora_rank": RANK}, {"engine": "auto"}),
        ("bf16", {"dtype": "bfloat16"}, {}),
        ("drafts", {"dtype": "float32", "speculative": "ngram"}, {}),
    ):
        parameters = {"engine": "vllm", "engine_python": str(vllm_python()), "engine_options": {**common, **options}}
        write_model(root / "models", name, {**parameters, **more}, engine_dir=MODEL)
    config = ServerConfig(
        repository=root / "models",
        models=("f32", "bf16", "drafts"),
        log=root / "tritonserver.log",
        drain_timeout_s=0.0,
    )
    with Server(config) as running:
        running.wait_ready(280.0)
        yield running
    assert running.processes() == []


def greedy(server: Server, model: str, **values: Any) -> list[list[int]]:
    """Token ids of all prompts, sent at the same time."""
    with GrpcClient(server.grpc_url, model) as client:
        asked = {"max_tokens": TOKENS, "return_token_ids": True, "temperature": 0.0, **values}
        pending = [client.send(client.build(text_input=prompt, stream=True, **asked)) for prompt in PROMPTS]
        return [one.result().output_ids for one in pending]


def disagreements(answers: list[list[int]], adapter: Path | None = None) -> list[tuple[int, int, float]]:
    """(prompt, place, gap): where transformers in float32 would choose another token after the same tokens before, and
    how far its logit for the token chosen lies below its best.
    """
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(MODEL, torch_dtype=torch.float32)
    if adapter is not None:
        tensors = load_file(adapter / "adapter_model.safetensors")
        for layer, block in enumerate(model.model.layers):
            name = f"base_model.model.model.layers.{layer}.self_attn.q_proj."
            added = tensors[name + "lora_B.weight"] @ tensors[name + "lora_A.weight"] * (ALPHA / RANK)
            block.self_attn.q_proj.weight.data += added
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    found = []
    for number, (prompt, answer) in enumerate(zip(PROMPTS, answers, strict=True)):
        prefix = tokenizer(prompt).input_ids
        with torch.no_grad():
            logits = model(torch.tensor([prefix + answer])).logits[0, len(prefix) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
        gaps = logits.max(dim=1).values - chosen
        found += [(number, place, float(gap)) for place, gap in enumerate(gaps) if gap > 0.0]
    return found


@pytest.mark.parametrize(("model", "dtype"), [("f32", "float32"), ("bf16", "bfloat16"), ("drafts", "float32")])
def test_greedy_tokens_are_those_of_transformers(model: str, dtype: str, server: Server) -> None:
    answers = greedy(server, model)
    assert all(len(answer) == TOKENS or answer[-1] == 2 for answer in answers)
    found = disagreements(answers)
    total = sum(len(answer) for answer in answers)
    print(f"{model} ({dtype}): {total - len(found)} of {total} tokens are transformers' first choice; others: {found}")
    assert max((gap for *_, gap in found), default=0.0) < MARGIN[dtype], found


def test_an_adapter_computes_what_merged_weights_do(server: Server, adapters: Path) -> None:
    answers = greedy(server, "f32", lora_name="ours")
    assert answers != greedy(server, "f32")
    found = disagreements(answers, adapters / "ours")
    assert max((gap for *_, gap in found), default=0.0) < MARGIN["float32"], found
    plain = disagreements(answers)
    assert max(gap for *_, gap in plain) > 10 * MARGIN["float32"], "the adapter changes too little to prove anything"


def test_a_value_that_vllm_does_not_take_is_refused_by_its_name(server: Server) -> None:
    """It is checked where vLLM's own parameters are made, and by its own kind of error."""
    says = "^temperature is 64, which the vllm engine does not take"
    with GrpcClient(server.grpc_url, "f32") as client, pytest.raises(RequestFailed, match=says):
        client.send(client.build(text_input="a", max_tokens=2, temperature=64.0)).result()


@pytest.mark.parametrize(("name", "says"), [("unfit", "cannot be loaded"), ("none", "the adapters"), ("../x", "is ")])
def test_an_adapter_that_cannot_be_used_harms_nobody(name: str, says: str, server: Server) -> None:
    with GrpcClient(server.grpc_url, "f32") as client:
        with pytest.raises(RequestFailed, match=says) as caught:
            client.send(client.build(text_input="a", max_tokens=2, lora_name=name)).result()
        assert "lora_name" in str(caught.value)
        assert client.send(client.build(text_input="a", max_tokens=2)).result().text is not None
        assert client.send(client.build(text_input="a", max_tokens=2, lora_name="ours")).result().finals == 1


def test_drafts_are_counted_and_most_are_right_where_text_repeats(server: Server) -> None:
    with GrpcClient(server.grpc_url, "drafts") as client:
        text = "one two three four five six seven eight. " * 6
        client.send(client.build(text_input=text, max_tokens=100, temperature=0.0)).result()
        time.sleep(1.5)
        with urllib.request.urlopen(server.metrics_url, timeout=10) as answer:
            samples = parse_samples(answer.read().decode(), "drafts")
    drafted = samples["inflight_speculative_tokens_total", "draft"]
    accepted = samples["inflight_speculative_tokens_total", "accepted"]
    print(f"{accepted:.0f} of {drafted:.0f} drafted tokens were right")
    assert drafted >= accepted > 30


def test_guides_bad_words_and_likeliest_tokens(server: Server) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}, "people": {"type": "integer", "maximum": 9}},
        "required": ["city", "people"],
        "additionalProperties": False,
    }
    with GrpcClient(server.grpc_url, "bf16") as client:

        def ask(**values: Any) -> Any:
            return client.send(client.build(**{"text_input": PROMPTS[0], "max_tokens": 48, **values})).result()

        def guided(kind: str, guide: str) -> str:
            got = ask(guided_decoding_guide_type=kind, guided_decoding_guide=guide, return_finish_reason=True)
            assert got.finish_reason == "stop"
            return str(got.text)

        assert json.loads(guided("json_schema", json.dumps(schema)))["city"] in ("Paris", "Rome")
        assert guided("choice", '["yes", "no"]') in ("yes", "no")
        assert guided("regex", "[a-c]{5}x").endswith("x")
        assert guided("ebnf_grammar", 'root ::= "a" root | "b"').endswith("b")
        assert "Paris" in ask(max_tokens=4).text
        assert "Paris" not in ask(max_tokens=4, bad_words=["Paris"]).text
        (response,) = ask(max_tokens=4, logprobs=3, stream=False).responses
        entries = json.loads(response.outputs["logprobs"][0])
        assert all(len(entry) == 3 for entry in entries), "the greedy token is one of the three"
        with pytest.raises(RequestFailed, match="logprobs"):
            ask(max_tokens=4, logprobs=50)


def test_a_salt_keeps_prefixes_apart(server: Server) -> None:
    def reused(client: GrpcClient, **values: Any) -> float:
        client.send(client.build(text_input="The same long beginning. " * 60, max_tokens=2, **values)).result()
        time.sleep(1.5)
        with urllib.request.urlopen(server.metrics_url, timeout=10) as answer:
            return parse_samples(answer.read().decode(), "bf16")["inflight_prefix_cache_hit_tokens_total", ""]

    with GrpcClient(server.grpc_url, "bf16") as client:
        first = reused(client)
        second = reused(client)
        assert second - first >= 128, "the same prompt again finds its blocks"
        assert reused(client, cache_salt="another tenant") == second
        assert reused(client, cache_salt="another tenant") - second >= 128


# -- without a server ------------------------------------------------------------------------------------------------


def test_the_recorded_facts_are_those_of_the_installed_release() -> None:
    found = drive("facts")
    assert set(found["arguments"]) >= ARGUMENTS
    assert found["takes_bad_words"]
    assert found["takes_salts"]


def test_what_admission_reserves_is_enough_and_no_more_than_needed(tmp_path: Path) -> None:
    """NEVER_PREEMPTS, counted inside vLLM's scheduler; without reservations the same requests are preempted."""
    tokenizer = write_folder(tmp_path / "tokenizer", "byte_level")
    found = drive("reservations", str(write_chain(tmp_path / "engine", tokenizer, cycle(tokenizer))))
    print(found)
    assert found["reserved"] == 0
    assert found["unreserved"] > 0, "the pool is too large to prove anything"
    assert 0 < found["most_blocks"] <= found["blocks"]
