"""Put a plan together and show it as text, JSON or a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from build_engine import svg
from build_engine.architectures import TARGETS, planned
from build_engine.console import format_bytes
from build_engine.errors import UserMistake
from build_engine.hf_config import ModelConfig, switching_length
from build_engine.planning import model_size, roofline
from build_engine.planning.gpus import Gpu
from build_engine.planning.model_size import Parameters
from build_engine.planning.roofline import Decode, Fit, Parallel
from build_engine.quantization import RECIPES

KV_BITS = {"fp8": 8, "int8": 8, "none": 16}
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True, slots=True)
class RecipePlan:
    """One recipe on one GPU. ``weight_bytes`` are those on a GPU, ``stored_bytes`` those in each target's engine.

    ``fit`` is None where no GPU was named or it lacks the arithmetic; ``decode`` has the batches that fit.
    """

    recipe: str
    weight_bytes: int
    stored_bytes: dict[str, int]
    weight_bytes_read: int
    fit: Fit | None
    decode: list[Decode]
    compute_bound_batch: int | None


@dataclass(frozen=True, slots=True)
class Plan:
    name: str
    config: ModelConfig
    parameters: Parameters
    kv_cache: str
    length: int
    gpu: Gpu | None
    parallel: Parallel
    recipes: list[RecipePlan]
    targets: tuple[str, ...]
    """Those that build this architecture."""


def make_plan(
    name: str,
    config: ModelConfig,
    *,
    recipes: Sequence[str] = tuple(RECIPES),
    kv_cache: str = "none",
    length: int,
    gpu: Gpu | None = None,
    parallel: Parallel | None = None,
    max_num_tokens: int = 8192,
) -> Plan:
    """Plan ``config`` under each recipe. `UserMistake` for an architecture that cannot be counted, and when the
    parallelism does not divide the model.
    """
    parallel = parallel or Parallel()
    support = planned(config)
    check_parallel(config, parallel)
    bits = KV_BITS[kv_cache]
    plans = []
    for recipe in (RECIPES[each] for each in recipes):
        usable = gpu is not None and gpu.flops(recipe) is not None
        fit = steps = bound = None
        if gpu is not None and usable:
            fit = roofline.fit(config, recipe, bits, gpu, parallel, length, max_num_tokens)
            batches = [batch for batch in BATCHES if batch <= fit.sequences]
            steps = [roofline.decode(config, recipe, bits, gpu, parallel, length, batch) for batch in batches]
            bound = roofline.compute_bound_batch(config, recipe, bits, gpu, parallel, length)
        plans.append(
            RecipePlan(
                recipe=recipe.name,
                weight_bytes=model_size.weight_bytes(config, recipe),
                stored_bytes={
                    target: size
                    for target, size in model_size.stored_bytes(config, recipe).items()
                    if target in support.targets or not support.targets
                },
                weight_bytes_read=model_size.bytes_read_per_step(config, recipe),
                fit=fit,
                decode=[step for step in steps or () if step is not None],
                compute_bound_batch=bound,
            )
        )
    parameters = model_size.count_parameters(config)
    targets = tuple(target for target in TARGETS if target in support.targets)
    return Plan(name, config, parameters, kv_cache, length, gpu, parallel, plans, targets)


def check_parallel(config: ModelConfig, parallel: Parallel) -> None:
    """Refuse splits that no engine can have: query heads must divide over tensor ranks, layers over stages.

    Key/value heads must divide, or be divided by, the tensor ranks (then each is stored more than once).
    """
    if config.num_heads % parallel.tensor:
        able = [size for size in range(1, config.num_heads + 1) if config.num_heads % size == 0]
        raise UserMistake(
            f"--tensor-parallel {parallel.tensor} does not divide the model's {config.num_heads} query heads: "
            f"it can be {', '.join(str(size) for size in able)}"
        )
    heads, ranks = config.num_kv_heads, parallel.tensor
    if config.latent is None and heads % ranks and ranks % heads:
        raise UserMistake(
            f"--tensor-parallel {ranks} and the model's {heads} key/value heads divide neither way: choose another size"
        )
    if not 1 <= parallel.pipeline <= config.num_layers:
        raise UserMistake(
            f"--pipeline-parallel {parallel.pipeline} is more than the model's {config.num_layers} layers"
        )


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain data; bytes, tokens and seconds are numbers."""
    config = plan.config
    longest = config.max_position_embeddings
    bits = KV_BITS[plan.kv_cache]
    return {
        "model": {
            "name": plan.name,
            "architecture": config.architecture,
            "built_for": list(plan.targets),
            "layers": config.num_layers,
            "hidden_size": config.hidden_size,
            "query_heads": config.num_heads,
            "kv_heads": config.num_kv_heads,
            "head_dim": config.head_dim,
            "max_position_embeddings": config.max_position_embeddings,
            "rope_base": config.rope_base,
            "rope_scaling": dict(config.rope_scaling) if config.rope_scaling else None,
            "openvino_max_seq_len": min(switching_length(config) or longest, longest),
        },
        "parameters": {**asdict(plan.parameters), "total": plan.parameters.total, "active": plan.parameters.active},
        "kv_cache": {
            "precision": plan.kv_cache,
            "bytes_per_token": model_size.kv_bytes_per_token(config, bits),
            "bytes_per_token_full_multi_head": model_size.kv_bytes_per_token(config, bits, heads=config.num_heads),
            "bytes_per_token_multi_query": model_size.kv_bytes_per_token(config, bits, heads=1),
            "bytes_per_sequence": model_size.kv_bytes_per_sequence(config, bits, plan.length),
        },
        "sequence_length": plan.length,
        "gpu": None if plan.gpu is None else asdict(plan.gpu),
        "parallelism": asdict(plan.parallel),
        "recipes": [
            {
                **asdict(each),
                "decode": [
                    {**asdict(step), "seconds": step.seconds, "tokens_per_second": step.tokens_per_second}
                    for step in each.decode
                ],
            }
            for each in plan.recipes
        ],
    }


def as_text(plan: Plan) -> str:
    """The plan as a page of text."""
    config, parameters = plan.config, plan.parameters
    bits = KV_BITS[plan.kv_cache]
    per_token = model_size.kv_bytes_per_token(config, bits)
    full = model_size.kv_bytes_per_token(config, bits, heads=config.num_heads)
    one = model_size.kv_bytes_per_token(config, bits, heads=1)
    kind = "multi-head" if config.num_kv_heads == config.num_heads else "grouped-query"
    kind = "multi-query" if config.num_kv_heads == 1 and config.num_heads > 1 else kind
    shape = f"{kind}, {config.num_heads} query and {config.num_kv_heads} key/value heads of {config.head_dim}"
    if config.latent is not None:
        shape = f"latent, {config.num_heads} heads over one vector of {config.latent.rank} and {config.latent.rope_dim}"
    active = f", {parameters.active / 1e6:,.1f} M active" if config.experts else ""
    lines = [
        f"{plan.name}: {config.architecture}, {parameters.total / 1e6:,.1f} M parameters{active} "
        f"({config.num_layers} layers, hidden {config.hidden_size}, vocabulary {config.vocab_size})",
        f"built for: {', '.join(plan.targets) or 'no target here; the figures are those of the model alone'}",
        *_quantized_already(config),
        f"attention: {shape}",
        f"KV cache ({plan.kv_cache}): {format_bytes(per_token)} a token, "
        f"{format_bytes(model_size.kv_bytes_per_sequence(config, bits, plan.length))} for {plan.length} tokens "
        f"(full multi-head would take {format_bytes(full)} a token, multi-query {format_bytes(one)})",
        "",
    ]
    border = switching_length(config)
    if border is not None and border < config.max_position_embeddings:
        lines[-1:] = [
            f"LongRoPE: engines for OpenVINO end sequences at {border} tokens instead of "
            f"{config.max_position_embeddings}",
            "",
        ]
    if plan.gpu is None:
        lines.append("recipe     " + "".join(f"{target:>14}" for target in TARGETS) + f"{'read a step':>14}")
        for each in plan.recipes:
            stored = (format_bytes(each.stored_bytes[name]) if name in each.stored_bytes else "–" for name in TARGETS)
            cells = [*stored, format_bytes(each.weight_bytes_read)]
            lines.append(f"{each.recipe:<11}" + "".join(f"{cell:>14}" for cell in cells))
        lines.append("\nwith --gpu NAME: what fits and how fast it can decode")
        return "\n".join(lines)
    split = f" x {plan.parallel.gpus}" if plan.parallel.gpus > 1 else ""
    lines.append(
        f"{plan.gpu.name}{split} ({format_bytes(plan.gpu.memory_bytes)}, {plan.gpu.bandwidth / 1e9:,.0f} GB/s; "
        f"{plan.gpu.source}); sequences of {plan.length} tokens; tokens/s are roofline bounds, not predictions"
    )
    lines.append(
        f"{'recipe':<10} {'weights':>9} {'KV tokens':>11} {'sequences':>10} {'tok/s at 1':>11} "
        f"{'tok/s at 64':>12} {'compute-bound from':>19}"
    )
    for each in plan.recipes:
        if each.fit is None:
            lines.append(
                f"{each.recipe:<10} {format_bytes(each.weight_bytes):>9}   {plan.gpu.name} has no such arithmetic"
            )
            continue
        rates = {step.batch: f"{step.tokens_per_second:,.0f}" for step in each.decode}
        bound = f"batch {each.compute_bound_batch}" if each.compute_bound_batch else "never (KV)"
        if each.compute_bound_batch and each.compute_bound_batch > each.fit.sequences:
            bound = "never (memory)"
        fits = f"{each.fit.tokens:>11,} {each.fit.sequences:>10,}" if each.fit.tokens else f"{'does not fit':>22}"
        lines.append(
            f"{each.recipe:<10} {format_bytes(each.weight_bytes):>9} {fits} {rates.get(1, '–'):>11} "
            f"{rates.get(64, '–'):>12} {bound:>19}"
        )
    return "\n".join(lines)


def _quantized_already(config: ModelConfig) -> list[str]:
    if config.prequantized is None:
        return []
    method = str(config.prequantized.get("quant_method", "by a method without a name"))
    return [f"the checkpoint is quantized already ({method}): the figures are those of its weights before that"]


def as_svg(plan: Plan) -> str:
    """Decode bound over batch size, one line a recipe; `UserMistake` without a GPU."""
    if plan.gpu is None:
        raise UserMistake("--plot shows the decode roofline, which needs --gpu")
    series = [
        svg.Series(each.recipe, [(step.batch, step.tokens_per_second) for step in each.decode])
        for each in plan.recipes
        if each.decode
    ]
    if not series:
        raise UserMistake(f"{plan.gpu.name} has the arithmetic, or the memory, for none of these recipes")
    title = f"{plan.name} on {plan.gpu.name}: decode roofline, {plan.length} tokens a sequence"
    return svg.chart(title, svg.Axis("batch size", True), svg.Axis("tokens/s (upper bound)", True), series)


def recipe_names(text: str | None) -> list[str]:
    """Split ``--quantization a,b``; `UserMistake` for an unknown name."""
    names = list(RECIPES) if not text or text == "all" else text.split(",")
    for name in names:
        if name not in RECIPES:
            raise UserMistake(f"--quantization {name} is unknown: it can be {', '.join(RECIPES)}")
    return names
