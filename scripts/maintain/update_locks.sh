#!/usr/bin/env bash
# Writes requirements/*.txt from the extras of pyproject.toml: every package and every package it needs, pinned, for
# CPython 3.10 to 3.12 on Linux x86_64 (environment markers tell the versions apart).
# Needs `uv` on PATH (pip install uv). Run it after changing a version in pyproject.toml, and commit what it writes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# Left out on purpose; every script installs the locks with --no-deps, so that pip does not fetch them after all.
left_out=(
  # optimum-intel asks for it, nothing here uses it.
  torchvision
  # Parts of tritonclient[all] for GPUs, and a perf_analyzer for a newer C library than many hosts have.
  cuda-python perf-analyzer
  # What a CUDA build of torch needs: the builder runs on the CPU build (see install_torch in scripts/lib/install.sh).
  triton cuda-toolkit cuda-bindings cuda-pathfinder nvidia-cudnn-cu13 nvidia-cusparselt-cu13 nvidia-nccl-cu13
  nvidia-nvshmem-cu13
)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
printf "%s ; sys_platform == 'left-out'\n" "${left_out[@]}" > "$work/left_out.txt"
# Without the project's own dependency, which extra `serve` pins as well: no lock has it twice.
sed 's/^dependencies = \[.*/dependencies = []/' pyproject.toml > "$work/pyproject.toml"

compile() { # compile OUTPUT EXTRA... [-- uv options]
  local output=$1 arguments=()
  shift
  while (($#)) && [[ $1 != -- ]]; do arguments+=(--extra "$1") && shift; done
  (($#)) && shift
  uv pip compile --quiet --universal --python-version 3.10 --override "$work/left_out.txt" --no-strip-extras \
    --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
    "${arguments[@]}" "$@" "$work/pyproject.toml" --output-file "$output" > /dev/null
  # The platform is said once, in the header.
  sed -i -E -e "s/ and platform_machine == 'x86_64' and sys_platform == 'linux'//" \
    -e "s/ and python_full_version < '3\.13'//; s/ ; python_full_version < '3\.13'$//" "$output"
}

# What is pinned stays as it is, unless pyproject.toml or its own line's absence says otherwise.
grep -hv '^#' requirements/{serve,client,gateway,build,test}.txt 2> /dev/null | sort -u > "$work/all.txt" || true
compile "$work/all.txt" serve client gateway build test dev
for name in serve client gateway build test; do
  extras=("$name")
  [[ $name == test ]] && extras+=(dev)
  # From the common solution, so that the files agree with one another.
  compile "$work/$name.txt" "${extras[@]}" -- --constraint "$work/all.txt"
  {
    echo "# Written by scripts/maintain/update_locks.sh from pyproject.toml (extras: ${extras[*]}) for CPython 3.10-3.12 on"
    echo "# Linux x86_64. Install with --no-deps."
    cat "$work/$name.txt"
  } > "requirements/$name.txt"
  echo "requirements/$name.txt: $(grep -c == "requirements/$name.txt") pins"
done
