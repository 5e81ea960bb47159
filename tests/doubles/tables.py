"""The tables of docs/engines.md and docs/engines/tensorrt_llm.md that follow from the code and the stand-in.

`python -m tests.doubles.tables --write` brings them up to date.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from inflight.engines.base import Capability
from inflight.engines.openvino import engine as openvino
from inflight.engines.simulated.cost import SimulatedOptions
from inflight.engines.simulated.cost import capabilities as simulated_capabilities
from inflight.engines.vllm import options as vllm_options
from inflight.model.trtllm_parameters import PARAMETERS
from inflight_tools.selfcheck.known_vllm import GPU
from inflight_tools.selfcheck.probes import ASKED_ELSEWHERE, PROBES, Probe
from tests.doubles.folders import environment, write_checkpoint, write_engine

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = {
    "capabilities": ROOT / "docs" / "engines.md",
    "parameters": ROOT / "docs" / "engines" / "tensorrt_llm.md",
    "running": ROOT / "docs" / "engines" / "tensorrt_llm.md",
}
ENGINES = ("0.21", "1.0", "1.1", "1.2")
CHECKPOINTS = ("1.0", "1.1", "1.2", "1.3")
PROPERTIES = {  # of an engine, that no request asks for
    Capability.SPECULATIVE,
    Capability.PREFIX_CACHE,
    Capability.BATCH_INVARIANT,
    Capability.NEVER_PREEMPTS,
}
HARDWARE = {"openvino": "CPUs", "vllm": "CPUs", "simulated": "has none"}
ASKED: dict[str, Any] = {"max_beam_width": 2}  # with every option that gives a capability
PROGRAM = """
import json, sys
from pathlib import Path
from inflight.engines.tensorrt_llm.create import create
engine = create(Path(sys.argv[1]), json.loads(sys.argv[2]), 0)
print(json.dumps(sorted(capability.value for capability in engine.info.capabilities)))
engine.close()
"""


def capabilities(root: Path, profile: str, folder: Path, options: dict[str, Any]) -> set[str]:
    """What an engine says it can do, in a process with that release."""
    given = environment(root / f"site-{profile}", profile)
    given["PYTHONPATH"] += f":{ROOT / 'python_backend'}"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), json.dumps(options)],
        env={**os.environ, **given},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def vllm_capabilities(**options: Any) -> set[str]:
    """What the vLLM engine can do with these options; the facts of an installation are recorded ones."""
    able = vllm_options.capabilities(vllm_options.read_options(options), GPU)
    return {capability.value for capability in able}


def openvino_capabilities(**options: Any) -> set[str]:
    """The same of the openvino engine."""
    return {capability.value for capability in openvino.capabilities(openvino.read_options(options), guided=True)}


def simulated(**options: Any) -> set[str]:
    """The same of the simulated engine."""
    return {capability.value for capability in simulated_capabilities(SimulatedOptions(**options))}


def capability_table(root: Path, tokenizer: Path) -> str:
    """A row for each capability, a column for each release and flow."""
    columns: dict[str, tuple[set[str], set[str]]] = {
        "openvino": (openvino_capabilities(), openvino_capabilities(speculative="ngram")),
        "vllm": (vllm_capabilities(), vllm_capabilities(lora_dir=str(root), speculative="ngram")),
        "simulated": (simulated(), simulated(draft_tokens=4)),
    }
    for profile in ENGINES:
        plain = write_engine(root / f"plain-{profile}", tokenizer, profile, with_manifest=False)
        rich = write_engine(
            root / f"rich-{profile}", tokenizer, profile, with_manifest=False, max_beam_width=2,
            plugin_config={"lora_plugin": "auto"},
        )  # fmt: skip
        drafted = write_engine(
            root / f"spec-{profile}",
            tokenizer,
            profile,
            with_manifest=False,
            speculative_decoding_mode=8,
            max_draft_len=15,
        )
        asked = capabilities(root, profile, rich, {**ASKED, "lora_dir": str(root)}) | capabilities(
            root, profile, drafted, {}
        )
        columns[f"engine {profile}"] = (capabilities(root, profile, plain, {}), asked)
    checkpoint = write_checkpoint(root / "checkpoint", tokenizer)
    for profile in CHECKPOINTS:
        asked = capabilities(root, profile, checkpoint, {**ASKED, "lora_dir": str(root), "speculative": "ngram"})
        columns[f"checkpoint {profile}"] = (capabilities(root, profile, checkpoint, {}), asked)
    names = [*columns]
    lines = ["| capability | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for capability in Capability:
        cells = []
        for name in names:
            plain_set, asked = columns[name]
            cell = "yes" if capability.value in plain_set else "config" if capability.value in asked else "refused"
            cells.append("no" if cell == "refused" and capability in PROPERTIES else cell)
        lines.append(f"| {capability.value} | " + " | ".join(cells) + " |")
    lines.append("| run on real hardware | " + " | ".join(HARDWARE.get(name, "never") for name in names) + " |")
    return "\n".join(lines)


def parameter_table() -> str:
    """NVIDIA's parameters and what becomes of them."""
    lines = ["| parameter | meaning; default | effect here |", "|---|---|---|"]
    lines += [f"| {name} | {item.note} | {item.effect or 'yes'} |" for name, item in PARAMETERS.items()]
    return "\n".join(lines)


def running_table() -> str:
    """What only a running library shows, and what `gpu_selfcheck.py` asks to find out."""
    lines = ["| behaviour: what is assumed | read in | the self-check asks |", "|---|---|---|"]
    lines += [f"| {each.assumed} | {each.source} | {_asked(each)} |" for each in PROBES]
    lines += [f"| {assumed} | {source} | {part} |" for assumed, source, part in ASKED_ELSEWHERE]
    return "\n".join(lines)


def _asked(probe: Probe) -> str:
    return f"probes: {probe.name}" + (", of an engine" if probe.of_engine else "")


def between(text: str, mark: str) -> tuple[int, int]:
    """Where the generated part of that name begins and ends."""
    begin = text.index("-->", text.index(f"<!-- {mark}:")) + len("-->\n")
    return begin, text.index(f"<!-- /{mark} -->")


def tables(tokenizer: Path) -> dict[str, str]:
    """Everything that is generated."""
    with tempfile.TemporaryDirectory() as folder:
        return {
            "capabilities": capability_table(Path(folder), tokenizer),
            "parameters": parameter_table(),
            "running": running_table(),
        }


def main() -> int:
    """Bring the documents up to date."""
    from tests.unit.machines.tokenizer_kinds import write_folder

    with tempfile.TemporaryDirectory() as folder:
        tokenizer = write_folder(Path(folder) / "tokenizer")
        (tokenizer / "generation_config.json").write_text('{"eos_token_id": 1}')
        made = tables(tokenizer)
    for mark, table in made.items():
        text = DOCUMENTS[mark].read_text(encoding="utf-8")
        begin, end = between(text, mark)
        DOCUMENTS[mark].write_text(text[:begin] + table + "\n" + text[end:], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
