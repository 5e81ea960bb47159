#!/usr/bin/env bash
# Runs the checks and tests, after installing whatever of their needs is missing.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/lib/common.sh
source "$ROOT/scripts/lib/common.sh"
# shellcheck source=scripts/lib/install.sh
source "$ROOT/scripts/lib/install.sh"
# shellcheck source=scripts/lib/beside.sh
source "$ROOT/scripts/lib/beside.sh"

usage() {
  cat << 'TEXT'
Usage: scripts/test.sh [fast|ci|full] [arguments of pytest]

  fast   no server, no model: some five minutes on two cores from nothing
  ci     the default: all but the long ones, against a real tritonserver and a real model; twenty to thirty-five
         minutes on two cores from nothing, of which installing takes two to four
  full   everything

Three files of tests run at a time. Up to five tests that fail then run once more by themselves, and the summary names
those that pass.

With arguments of pytest (a file, -k, -m …) the linters are left out. $INFLIGHT_PYTHON names the Python to use.
TEXT
}

tier=ci
case ${1:-} in
  fast | ci | full) tier=$1 && shift ;;
  -h | --help) usage && exit 0 ;;
esac

cd "$ROOT"
failed=()
summary=()

check() { # check NAME COMMAND...: run it and note how it went
  local name=$1 begin outcome=ok
  shift
  begin=$(now_ms)
  "$@" || { outcome=FAILED && failed+=("$name"); }
  summary+=("$(printf '%-12s %-7s %7s s' "$name" "$outcome" "$(seconds_since "$begin")")")
}


lint() {
  check ruff run "$VENV/bin/ruff" check .
  check format run "$VENV/bin/ruff" format --check .
  check mypy run "$VENV/bin/mypy" --strict python_backend/inflight build_engine scripts gateway/inflight_gateway
  check imports run "$VENV/bin/lint-imports"
}

began=$(now_ms)
choose_python "${INFLIGHT_PYTHON:-}"
install_system_packages
check_machine
lock_installation
STEPS=2
[[ $tier == fast ]] || STEPS=5
step "Python environment (.venv, Python $PYTHON_VERSION)" make_environment
step "Packages" install_packages serve client gateway build test
if [[ $tier != fast ]]; then
  install_mpirun
  install_haproxy
  step "Triton Inference Server and perf_analyzer" fetch_triton --perf-analyzer
  step "Model SmolLM2-135M-Instruct" fetch_model
  step "Engine (int8)" build_engine int8
fi
unlock_installation
summary+=("$(printf '%-12s %-7s %7s s' install ok "$(seconds_since "$began")")")

(($#)) || lint

tests() { # tests NAME HOW MARKS ARGUMENTS...: pytest on what is marked so, started by HOW; nothing found is no failure
  local name=$1 how=$2 marks=$3
  shift 3
  # PATH: what the tests start (cmake, perf_analyzer aside) finds the same Python as they have.
  # shellcheck disable=SC2086 # HOW is a command and its arguments
  check "$name" $how env PATH="$VENV/bin:$PATH" PYTHONNOUSERSITE=1 "$VENV/bin/python" -m pytest --durations=10 \
    -m "$marks" "$@"
}

case $tier in
  fast) marks='fast' ;;
  ci) marks='not full' ;;
  full) marks='' ;;
esac
if (($#)); then # what somebody asks for by hand runs in one process
  tests tests run "$marks" "$@"
else # most of the time is spent waiting for servers: three files at a time, in the order of their names, so that the
  # many short files of tests/unit come last
  tests tests "beside .pytest_cache/beside" "${marks:+$marks and }not alone"
  summary+=("${SECOND_CHANCE[@]/#/  by itself: }")
  [[ $tier == fast ]] || tests alone run "${marks:+$marks and }alone"
fi

printf '\n%s\n' "--- tier $tier ---"
printf '%s\n' "${summary[@]}"
printf '%-20s %7s s\n' total "$(seconds_since "$began")"
((${#failed[@]} == 0)) || fail "failed: ${failed[*]}."
