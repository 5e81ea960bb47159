# Sourced after common.sh: each function makes one thing that this repository needs, unless it is there already.
# shellcheck shell=bash disable=SC2034

VENV="$ROOT/.venv"
DEFAULT_MODEL="$ROOT/.cache/models/SmolLM2-135M-Instruct"
ENGINE="$ROOT/model_repository/llm/1/engine"

_version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2> /dev/null || true; }

_is_supported() { [[ $1 == 3.10 || $1 == 3.11 || $1 == 3.12 ]]; }

choose_python() { # choose_python [PROGRAM]: sets $PYTHON and $PYTHON_VERSION
  local candidate version others=()
  if [[ -n ${1:-} ]]; then
    PYTHON=$(command -v "$1" || true)
    [[ -n $PYTHON ]] || fail "there is no program $1: name a Python 3.10, 3.11 or 3.12 with --python."
    PYTHON_VERSION=$(_version_of "$PYTHON")
    [[ -n $PYTHON_VERSION ]] || fail "$1 is not a Python that runs: name a Python 3.10, 3.11 or 3.12 with --python."
    _is_supported "$PYTHON_VERSION" && return
    fail "$1 is Python $PYTHON_VERSION and this server's Python backend runs on 3.10, 3.11 and 3.12 (numpy < 2 exists for no later one): name one of these with --python."
  fi
  # An environment made earlier stays with its Python.
  for candidate in "$VENV/bin/python" python3 python3.12 python3.11 python3.10 /usr/bin/python3; do
    command -v "$candidate" > /dev/null 2>&1 || continue
    version=$(_version_of "$candidate")
    if _is_supported "$version"; then
      PYTHON=$(command -v "$candidate")
      PYTHON_VERSION=$version
      return
    fi
    [[ -z $version ]] || others+=("$version")
  done
  if ((${#others[@]})); then
    fail "the Python found here is ${others[0]} and this server's Python backend runs on 3.10, 3.11 and 3.12: install one of these (Debian, Ubuntu: apt-get install python3.11 python3.11-venv libpython3.11; with uv: uv python install 3.11) and name it with --python."
  fi
  fail "there is no Python here: install Python 3.10, 3.11 or 3.12 (Debian, Ubuntu: apt-get install python3 python3-venv)."
}

check_machine() { # before any work: everything that would fail later
  local needed_mb=500
  [[ -w $ROOT ]] || fail "$ROOT cannot be written by $(id -un): run as its owner, or clone the repository into a folder of your own."
  if [[ $PYTHON != "$VENV/bin/python" ]]; then
    "$PYTHON" -c 'import venv, ensurepip' 2> /dev/null ||
      fail "$PYTHON has no venv module: install it (Debian, Ubuntu: apt-get install python$PYTHON_VERSION-venv), or name another Python with --python."
  fi
  "$PYTHON" "$ROOT/scripts/fetch_triton.py" --check || exit 1
  [[ -x $VENV/bin/python ]] || needed_mb=4500
  require_disk "$needed_mb"
}

require_disk() { # require_disk MB
  local free_mb
  free_mb=$(df -Pm "$ROOT" 2> /dev/null | awk 'NR == 2 { print $4 }') || true
  [[ -z $free_mb ]] || ((free_mb >= $1)) ||
    fail "the disk of $ROOT has ${free_mb} MB left and about $1 MB are needed: free some, or clone the repository onto a larger disk."
}

_apt_install() { # _apt_install PACKAGE...
  echo "      apt-get install $*"
  run_logged "$ROOT/.cache/logs/apt.log" "apt-get install $*" \
    sh -c 'apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"' sh "$@"
}

install_mpirun() { # for the tests of several ranks, which are left out where there is none
  command -v mpirun > /dev/null && return
  if [[ $(id -u) == 0 ]] && command -v apt-get > /dev/null; then
    (_apt_install openmpi-bin) || true
  fi
  command -v mpirun > /dev/null || echo "      no mpirun: the test of four ranks is skipped (apt-get install openmpi-bin)"
}

install_haproxy() { # for the tests of two servers behind a balancer, which are left out where there is none
  PATH="$PATH:/usr/sbin" command -v haproxy > /dev/null && return
  if [[ $(id -u) == 0 ]] && command -v apt-get > /dev/null; then
    (_apt_install haproxy) || true
  fi
  PATH="$PATH:/usr/sbin" command -v haproxy > /dev/null ||
    echo "      no haproxy: the tests behind a balancer are skipped (apt-get install haproxy)"
}

install_system_packages() { # only where this may be done without asking: as root with apt-get, and something is missing
  local packages=()
  [[ $(id -u) == 0 ]] && command -v apt-get > /dev/null || return 0
  "$PYTHON" -c 'import venv, ensurepip' 2> /dev/null || packages+=("python$PYTHON_VERSION-venv")
  "$PYTHON" "$ROOT/scripts/fetch_triton.py" --check 2> /dev/null || packages+=("libpython$PYTHON_VERSION")
  command -v cmake > /dev/null || packages+=(cmake)
  command -v make > /dev/null || packages+=(make)
  ((${#packages[@]})) || return 0
  _apt_install "${packages[@]}"
}

make_environment() {
  local wanted
  wanted=$(fingerprint "$PYTHON_VERSION" "$("$PYTHON" -c 'import sys; print(sys.base_prefix)')" "$ROOT")
  # .incomplete: an installation into it was cut off, so that packages may lie there by half.
  if is_stamped environment "$wanted" && [[ -x $VENV/bin/python && ! -e $VENV/.incomplete ]] &&
    [[ $(_version_of "$VENV/bin/python") == "$PYTHON_VERSION" ]]; then
    STEP_NOTE="kept"
    return
  fi
  unstamp environment
  # Never the Python inside the environment that is about to be replaced.
  [[ $PYTHON != "$VENV"/* ]] || PYTHON=$("$PYTHON" -c 'import sys; print(sys._base_executable)')
  rm -rf "$VENV" "$STAMPS"/packages-* "$STAMPS"/project
  run_logged "$ROOT/.cache/logs/venv.log" "making the Python environment $VENV" "$PYTHON" -m venv "$VENV"
  stamp environment "$wanted"
}

# Everything below uses the environment's Python.
_python() { run env PYTHONNOUSERSITE=1 PYTHONPATH="$ROOT/scripts" "$VENV/bin/python" "$@"; }

_install() { # _install PIP-ARGUMENTS...: a cut-off or failed installation marks the environment as not to be trusted
  : > "$VENV/.incomplete"
  _python -m inflight_tools.common.pip install --no-deps "$@" || exit 1
  rm -f "$VENV/.incomplete"
}

_pin() { grep -h "^$1==" "$ROOT"/requirements/*.txt | head -n 1 | cut -d' ' -f1; } # _pin PACKAGE: "package==version"

install_packages() { # install_packages LOCK...: those of serve client gateway build test, and the project itself
  local name files=() missing=()
  for name in "$@"; do
    is_stamped "packages-$name" "$(fingerprint "$ROOT/requirements/$name.txt" "$PYTHON_VERSION")" || missing+=("$name")
  done
  if ((${#missing[@]} == 0)) && is_stamped project "$(_project_fingerprint)"; then
    STEP_NOTE="kept"
    return
  fi
  if ((${#missing[@]})); then
    for name in "${missing[@]}"; do files+=(-r "$ROOT/requirements/$name.txt"); done
    if [[ -n ${INFLIGHT_TORCH_INDEX:-} && " ${missing[*]} " == *" build "* ]]; then
      _install --only-binary :all: --index-url "$INFLIGHT_TORCH_INDEX" "$(_pin torch)"
    fi
    _install --only-binary :all: "${files[@]}"
    if [[ " ${missing[*]} " == *" build "* ]]; then complete_torch; fi
    for name in "${missing[@]}"; do
      stamp "packages-$name" "$(fingerprint "$ROOT/requirements/$name.txt" "$PYTHON_VERSION")"
    done
  fi
  install_project
}

complete_torch() { # the lock has what the CPU build of torch needs; an index that has only the CUDA build needs more
  # From another folder: a folder `triton` in the current one would be taken for a package.
  (cd / && "$VENV/bin/python" -c 'import torch' 2> /dev/null) && return
  echo "      this package index has torch for CUDA only, and its CUDA packages follow (several GB); to do without them"
  echo "      stop here and set INFLIGHT_TORCH_INDEX to the address of PyTorch's own index of CPU builds"
  require_disk 8000
  : > "$VENV/.incomplete"
  _python -m inflight_tools.common.pip install --only-binary :all: --constraint "$ROOT/requirements/build.txt" "$(_pin torch)" ||
    exit 1
  (cd / && "$VENV/bin/python" -c 'import torch') 2> /dev/null ||
    fail "torch does not import even with its CUDA packages: set INFLIGHT_TORCH_INDEX to an index of CPU builds, remove $VENV and run again."
  rm -f "$VENV/.incomplete"
}

_project_fingerprint() { fingerprint "$ROOT/pyproject.toml" "$ROOT" "$PYTHON_VERSION"; }

install_project() { # the packages inflight and build_engine, as they lie in this folder
  local wanted
  wanted=$(_project_fingerprint)
  is_stamped project "$wanted" && return
  # A new environment of Python 3.10 or 3.11 comes with one that is too old for pyproject.toml.
  "$VENV/bin/python" -c 'import setuptools; raise SystemExit(int(setuptools.__version__.split(".")[0]) < 77)' 2> /dev/null ||
    _install "$(_pin setuptools)"
  _install --quiet --no-build-isolation --editable "$ROOT"
  stamp project "$wanted"
}

fetch_triton() { # fetch_triton [--perf-analyzer]
  _python "$ROOT/scripts/fetch_triton.py" "$@" || exit 1
}

fetch_model() { # fetch_model [DIR-OR-NAME]: sets $CHECKPOINT
  if [[ -n ${1:-} ]]; then
    CHECKPOINT=$1
    STEP_NOTE="as given"
  else
    CHECKPOINT=$DEFAULT_MODEL
    _python "$ROOT/scripts/fetch_model.py" > /dev/null || exit 1
  fi
}

build_engine() { # build_engine QUANTIZATION: an engine of $CHECKPOINT where the ready models look for it
  local quantization=$1 wanted identity=$CHECKPOINT
  if [[ -d $CHECKPOINT ]]; then
    identity=$(cd "$CHECKPOINT" && pwd && find -L . -maxdepth 1 -type f -printf '%f %s %T@\n' | sort)
  fi
  wanted=$(fingerprint "$identity" "$quantization" "$ROOT/requirements/build.txt" "$ROOT"/build_engine/openvino/*.py)
  if [[ -f $ENGINE/engine.json ]] && is_stamped engine "$wanted"; then
    STEP_NOTE="kept"
    return
  fi
  unstamp engine
  _python -m build_engine build "$CHECKPOINT" --target openvino --quantization "$quantization" --output "$ENGINE" --force ||
    exit 1
  stamp engine "$wanted"
}
