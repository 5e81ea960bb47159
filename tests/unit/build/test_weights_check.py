"""A checkpoint whose weights are not those that its config.json asks for is refused by name, from its headers."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from build_engine import hf_config, safetensors_header, source
from build_engine.errors import UserMistake
from build_engine.expected_weights import expected
from build_engine.weights_check import check_report, check_weights
from inflight_tools.common.tiny_models import LLAMA, write_config
from tests.tiny_weights import write_safetensors

pytestmark = pytest.mark.fast

Shapes = dict[str, tuple[int, ...]]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def shapes_of(**changes: Any) -> Shapes:
    raw = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **LLAMA, **changes}
    return dict(expected(hf_config.parse(raw)))


def checkpoint(directory: Path, shapes: Shapes, fill: Mapping[str, int] | None = None, **changes: Any) -> source.Source:
    write_config(directory, **changes)
    write_safetensors(directory / "model.safetensors", shapes, fill)
    return source.resolve(str(directory))


def renamed(prefix: str) -> Callable[[Shapes], Shapes]:
    return lambda shapes: {prefix + name: shape for name, shape in shapes.items()}


def without(*names: str) -> Callable[[Shapes], Shapes]:
    return lambda shapes: {name: shape for name, shape in shapes.items() if name not in names}


def with_more(**more: tuple[int, ...]) -> Callable[[Shapes], Shapes]:
    return lambda shapes: {**shapes, **{name.replace("__", "."): shape for name, shape in more.items()}}


UNTIED = {"tie_word_embeddings": False}
NORM = "model.layers.1.input_layernorm.weight"


@pytest.mark.parametrize(
    ("change", "settings", "says"),
    [
        (renamed("_orig_mod."), {}, r"begin with _orig_mod\. \(as torch\.compile saves them\)"),
        (renamed("_orig_mod."), UNTIED, r"begin with _orig_mod\. \(as torch\.compile saves them\)"),
        (renamed("module."), {}, r"begin with module\. \(as DistributedDataParallel"),
        (renamed("some.thing."), {}, r"begin with some\.thing\., as in some\.thing\.model\.embed_tokens\.weight"),
        (without(NORM), {}, "lack model.layers.1.input_layernorm.weight: fetch"),
        (without(HEAD), UNTIED, "lack lm_head.weight, and config.json says tie_word_embeddings false"),
        (without(EMBEDDING, NORM), {}, f"lack {EMBEDDING}, {NORM}: fetch"),
        (with_more(model__extra__weight=(4,)), {}, "hold model.extra.weight, which the model has no place for"),
        (with_more(**{f"model__layers__0__self_attn__{p}_proj__bias": (64,) for p in "qo"}), {}, "q_proj.bias"),
        (lambda s: {**s, NORM: (32,)}, {}, rf"{NORM} has the shape \[32\], and config.json asks for \[64\]"),
        (lambda s: s, {"num_hidden_layers": 1}, "hold 2 layers, and config.json says num_hidden_layers 1 .*layers.1."),
        (lambda s: s, {"num_hidden_layers": 3}, "hold 2 layers, and config.json says num_hidden_layers 3 .*layers.2."),
        (lambda s: s, {"vocab_size": 301}, r"embed_tokens.weight has the shape \[300, 64\]"),
        (lambda s: {"weights": (1,)}, {}, "lack model.embed_tokens.weight, .* and 17 more and hold weights"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, change: Callable[[Shapes], Shapes], settings: dict[str, Any], says: str
) -> None:
    kept = {name: value for name, value in settings.items() if name == "tie_word_embeddings"}
    origin = checkpoint(tmp_path / "m", change(without(HEAD)(shapes_of()) if not kept else shapes_of()), **settings)
    with pytest.raises(UserMistake, match=says) as caught:
        check_weights(origin)
    assert str(caught.value).startswith("m: ")
    assert "\n" not in str(caught.value)


def test_what_fits_is_let_through(tmp_path: Path) -> None:
    both = shapes_of()
    one = without(HEAD)(both)
    check_weights(checkpoint(tmp_path / "tied", one))
    check_weights(checkpoint(tmp_path / "stored twice", both))
    check_weights(checkpoint(tmp_path / "untied", both, {HEAD: 1}, **UNTIED))
    older = {**one, "model.layers.0.self_attn.rotary_emb.inv_freq": (8,), "model.rotary_emb.inv_freq": (8,)}
    check_weights(checkpoint(tmp_path / "buffers", older))
    check_weights(checkpoint(tmp_path / "bare", {name.removeprefix("model."): each for name, each in one.items()}))


def test_a_head_of_its_own_is_not_dropped(tmp_path: Path) -> None:
    with pytest.raises(UserMistake, match=r"lm_head.weight differs from model.embed_tokens.weight.*say false there"):
        check_weights(checkpoint(tmp_path / "m", shapes_of(), {HEAD: 1}))


def test_shards_are_read_by_their_index_and_what_lies_beside_them_is_not(tmp_path: Path) -> None:
    shapes = without(HEAD)(shapes_of())
    names = list(shapes)
    halves = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    write_config(tmp_path)
    for file, held in halves.items():
        write_safetensors(tmp_path / file, {name: shapes[name] for name in held})
    with pytest.raises(UserMistake, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        check_weights(source.resolve(str(tmp_path)))
    index = {"weight_map": {name: file for file, held in halves.items() for name in held}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    write_safetensors(tmp_path / "consolidated.safetensors", {"layers.0.attention.wq.weight": (64, 64)})
    check_weights(source.resolve(str(tmp_path)))


@pytest.mark.parametrize(
    "content",
    [b"", b"1234", struct.pack("<Q", 1 << 40), struct.pack("<Q", 4) + b"nope", struct.pack("<Q", 2) + b"[]"],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UserMistake, match=r"model\.safetensors is damaged or was cut short"):
        safetensors_header.read(tmp_path)


def test_a_file_that_was_cut_short_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"a": (100,)})
    assert safetensors_header.read(tmp_path)["a"].shape == (100,)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserMistake, match="cut short"):
        safetensors_header.read(tmp_path)


def test_the_loaders_own_report_is_believed() -> None:
    check_report({"missing_keys": [], "unexpected_keys": ["model.rotary_emb.inv_freq"], "mismatched_keys": []})
    for report, says in (
        ({"missing_keys": ["a.weight"]}, "lack a.weight"),
        ({"unexpected_keys": {"b.weight"}}, "hold b.weight"),
        ({"mismatched_keys": [("c.weight", (1,), (2,))]}, "shape of c.weight"),
        ({"mismatched_keys": ["d.weight"]}, "shape of d.weight"),
    ):
        with pytest.raises(UserMistake, match=says):
            check_report(report)
