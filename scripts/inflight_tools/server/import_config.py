"""Turns a model repository of NVIDIA's TensorRT-LLM backend (inflight_batcher_llm) into one Inflight model.

    python scripts/import_config.py TRITON_MODEL_REPO OUTPUT_REPO [--name ensemble]

Reads the config.pbtxt of preprocessing, tensorrt_llm, postprocessing, ensemble and tensorrt_llm_bls, whichever are
there, and writes one model with the same parameters over the same engine (linked, not copied). What has no counterpart
is said. Exit status: 0 written, 1 not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import text_format  # type: ignore[import-untyped,unused-ignore]
from tritonclient.grpc import model_config_pb2

from build_engine.arguments import Parser
from inflight.errors import LoadError
from inflight.model.trtllm_parameters import PARAMETERS, is_unset, parse_parameter
from inflight_tools.common.report import Failure, run_main

MODELS = ("preprocessing", "tensorrt_llm", "postprocessing", "ensemble", "tensorrt_llm_bls")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "added_tokens.json",
)
HANDLED = {"FORCE_CPU_ONLY_INPUT_TENSORS", "exclude_input_in_output", "gpt_model_path", "tokenizer_dir"}

# Inputs of the ensemble and of the BLS model that Inflight does not have, and what to do instead.
TEXT_LEVEL = {
    "decoder_text_input": "encoder-decoder models are not served",
    "prompt_embedding_table": "prompt tuning is not supported",
    "prompt_table_extra_id": "prompt tuning is not supported",
    "prompt_vocab_size": "prompt tuning is not supported",
    "embedding_bias_words": "use bad_words or guided decoding",
    "embedding_bias_weights": "use bad_words or guided decoding",
    "return_context_logits": "logits are not returned; use logprobs",
    "return_generation_logits": "logits are not returned; use logprobs",
    "lora_task_id": "name the adapter with lora_name; set the model parameter lora_dir",
    "lora_weights": "name the adapter with lora_name; set the model parameter lora_dir",
    "lora_config": "name the adapter with lora_name; set the model parameter lora_dir",
    "num_draft_tokens": "a model parameter here (engine_options)",
    "use_draft_logits": "drafts travel as tokens",
    "image_input": "image inputs are not supported",
    "image_bytes_input": "image inputs are not supported",
    "image_url_input": "image inputs are not supported",
    "video_bytes_input": "video inputs are not supported",
}
# Inputs of the token-level model tensorrt_llm, for clients that speak to it directly, and what they become.
TOKEN_LEVEL = {
    "input_ids": "input_ids",
    "input_lengths": "not needed",
    "request_output_len": "max_tokens",
    "runtime_top_k": "top_k",
    "runtime_top_p": "top_p",
    "len_penalty": "length_penalty",
    "min_length": "min_tokens",
    "random_seed": "seed",
    "stop_words_list": "stop_words, as strings",
    "bad_words_list": "bad_words, as strings",
    "stop": "cancel the request",
}


@dataclass
class Import:
    """What is found and what becomes of it."""

    name: str
    parameters: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    batched: bool = False
    engine: Path | None = None
    tokenizer: Path | None = None
    carried: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def read_config(path: Path) -> Any:
    """A config.pbtxt as a message; placeholders that were never filled are taken as absent. Raises `Failure`."""
    text = re.sub(r"^\s*#.*$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    text = re.sub(r"\w+\s*:\s*\[\s*\$\{[^}]*\}\s*\]", "", text)
    text = re.sub(r"\w+\s*:\s*\$\{[^}]*\}", "", text)
    config = model_config_pb2.ModelConfig()
    try:
        text_format.Parse(text, config, allow_unknown_field=True)
    except text_format.ParseError as error:
        raise Failure(f"{path} is no valid model configuration ({error}): mend it first.") from None
    return config


def parameters_of(config: Any) -> dict[str, str]:
    """Parameters that are set."""
    return {name: value.string_value for name, value in config.parameters.items() if not is_unset(value.string_value)}


def plan(repository: Path, name: str) -> Import:
    """Read everything and decide. Raises `Failure` when there is no tensorrt_llm model with an engine."""
    found = {model: repository / model / "config.pbtxt" for model in MODELS}
    found = {model: path for model, path in found.items() if path.is_file()}
    if "tensorrt_llm" not in found:
        raise Failure(
            f"{repository} has no tensorrt_llm/config.pbtxt: give the repository that holds preprocessing, "
            "tensorrt_llm, postprocessing and ensemble."
        )
    configs = {model: read_config(path) for model, path in found.items()}
    made = Import(name)
    _engine(made, repository, configs["tensorrt_llm"])
    for model in ("preprocessing", "postprocessing"):
        if model in configs:
            _text_model(made, repository, model, parameters_of(configs[model]))
    if "tensorrt_llm_bls" in configs:
        _bls(made, repository, parameters_of(configs["tensorrt_llm_bls"]))
    for model in ("ensemble", "tensorrt_llm_bls"):
        if model in configs:
            names = {item.name for item in configs[model].input}
            made.lost += [f"input {item} of {model}: {TEXT_LEVEL[item]}" for item in sorted(names & set(TEXT_LEVEL))]
    return made


def _engine(made: Import, repository: Path, config: Any) -> None:
    """The model tensorrt_llm: its parameters go over under their own names."""
    parameters = parameters_of(config)
    made.batched = config.max_batch_size > 0
    if "gpt_model_path" not in parameters:
        raise Failure("tensorrt_llm/config.pbtxt names no engine (gpt_model_path): fill the template first.")
    made.engine = resolve(repository, parameters["gpt_model_path"])
    if not (made.engine / "config.json").is_file():
        raise Failure(f"there is no engine in {made.engine} (gpt_model_path): copy it there or change the parameter.")
    made.parameters["exclude_input_in_output"] = parameters.get("exclude_input_in_output", "false").lower()
    made.carried.append(f"exclude_input_in_output = {made.parameters['exclude_input_in_output']}")
    for name, text in sorted(parameters.items()):
        if name in HANDLED:
            continue
        if name not in PARAMETERS:
            made.lost.append(f"parameter {name} of tensorrt_llm: unknown here")
            continue
        try:
            parse_parameter(name, text)
        except LoadError as error:
            raise Failure(str(error)) from None
        effect = PARAMETERS[name].effect
        if effect.startswith("refused"):
            made.lost.append(f"parameter {name} of tensorrt_llm: {effect}")
        elif effect:
            made.carried.append(f"{name} = {text} ({effect})")
            made.parameters[name] = text
        else:
            made.carried.append(f"{name} = {text}")
            made.parameters[name] = text
    if made.parameters.get("gpt_model_type") == "V1":
        made.parameters["gpt_model_type"] = "inflight_fused_batching"
        made.lost.append("gpt_model_type V1: TensorRT-LLM has no static batching any more; set to in-flight batching")
    queue = config.dynamic_batching.default_queue_policy.max_queue_size
    if queue:
        made.parameters["max_queue_size"] = str(queue)
        made.carried.append(f"dynamic_batching max_queue_size {queue} → max_queue_size")
    if config.dynamic_batching.max_queue_delay_microseconds:
        made.lost.append("dynamic_batching max_queue_delay_microseconds: requests join a running batch at any step")
    if sum(max(group.count, 1) for group in config.instance_group) > 1:
        made.lost.append("instance_group of tensorrt_llm: one instance serves all requests of a model")
    names = {item.name for item in config.input}
    for item in sorted(names & set(TOKEN_LEVEL)):
        if TOKEN_LEVEL[item] != item:
            made.lost.append(f"input {item} of tensorrt_llm (token level): {TOKEN_LEVEL[item]}")


def _text_model(made: Import, repository: Path, model: str, parameters: dict[str, str]) -> None:
    """Preprocessing and postprocessing: the tokenizer; their switches are inputs here."""
    if "tokenizer_dir" in parameters and made.tokenizer is None:
        made.tokenizer = resolve(repository, parameters["tokenizer_dir"])
        made.carried.append(f"tokenizer_dir of {model} → the engine directory")
    for name, default in (("add_special_tokens", "true"), ("skip_special_tokens", "true")):
        if parameters.get(name, default).lower() not in (default, "1"):
            made.lost.append(f"parameter {name} of {model}: an input here; send {name}=false with each request")
    for name in ("multimodal_model_path", "max_num_images"):
        if name in parameters:
            made.lost.append(f"parameter {name} of {model}: image inputs are not supported")


def _bls(made: Import, repository: Path, parameters: dict[str, str]) -> None:
    """The BLS model: a draft model becomes a pair of engines."""
    if "accumulate_tokens" in parameters:
        made.carried.append("accumulate_tokens (always so here: streamed text is never broken between tokens)")
    draft = parameters.get("tensorrt_llm_draft_model_name", "")
    if draft:
        path = repository / draft / "config.pbtxt"
        folder = parameters_of(read_config(path)).get("gpt_model_path", "") if path.is_file() else ""
        if folder:
            made.options["draft_engine_dir"] = str(resolve(repository, folder))
            made.carried.append(f"tensorrt_llm_draft_model_name {draft} → draft_engine_dir")
        else:
            made.lost.append(f"tensorrt_llm_draft_model_name {draft}: that model names no engine")
    if parameters.get("multimodal_encoders_name"):
        made.lost.append("multimodal_encoders_name: image inputs are not supported")


def resolve(repository: Path, text: str) -> Path:
    """A path of a configuration; relative ones are tried from the repository and from here."""
    path = Path(text)
    if path.is_absolute():
        return path
    beside = repository / path
    return (beside if beside.exists() else path).resolve()


def write(made: Import, output: Path) -> Path:
    """Write the model; returns its folder. Raises `Failure` when it exists or the tokenizer cannot be found."""
    assert made.engine is not None
    folder = output / made.name
    if folder.exists():
        raise Failure(f"{folder} exists: remove it, or choose another --name.")
    tokenizer = next(
        (path for path in (made.tokenizer, made.engine) if path and (path / "tokenizer.json").is_file()), None
    )
    if tokenizer is None:
        raise Failure(
            f"no tokenizer.json in {made.tokenizer or made.engine}: a fast tokenizer is needed; save the model's with "
            "transformers' AutoTokenizer(...).save_pretrained into that folder."
        )
    engine = folder / "1" / "engine"
    engine.mkdir(parents=True)
    links = {path.name: path for path in made.engine.iterdir() if path.is_file()}
    links |= {name: tokenizer / name for name in TOKENIZER_FILES if (tokenizer / name).is_file()}
    for name, target in links.items():
        (engine / name).symlink_to(target.resolve())
    lines = [
        "# Written by scripts/import_config.py from a repository of NVIDIA's TensorRT-LLM backend.",
        'backend: "inflight"',
        f"max_batch_size: {int(made.batched)}",
        "model_transaction_policy { decoupled: true }",
        "instance_group [ { count: 1, kind: KIND_CPU } ]",
    ]
    parameters = {"engine": "tensorrt_llm", "engine_dir": "engine", **made.parameters}
    if made.options:
        parameters["engine_options"] = json.dumps(made.options)
    for name, value in parameters.items():
        lines.append(f"parameters {{ key: {json.dumps(name)} value {{ string_value: {json.dumps(value)} }} }}")
    (folder / "config.pbtxt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Print what was carried over and what was not."""
    parser = Parser(prog=program, description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("repository", type=Path, help="the repository with NVIDIA's models")
    parser.add_argument("output", type=Path, help="the model repository to write into")
    parser.add_argument("--name", default="ensemble", help="name of the model; clients keep theirs (default: ensemble)")
    options = parser.parse_args(arguments)
    made = plan(options.repository, options.name)
    folder = write(made, options.output)
    print(f"written: {folder}")
    for item in made.carried:
        print(f"  carried over: {item}")
    for item in made.lost:
        print(f"  not carried over: {item}")
    return 0


if __name__ == "__main__":
    run_main(main)
