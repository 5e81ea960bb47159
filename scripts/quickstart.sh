#!/usr/bin/env bash
# From nothing to a language model that answers through Triton, on a plain Linux machine without a GPU.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/lib/common.sh
source "$ROOT/scripts/lib/common.sh"
# shellcheck source=scripts/lib/install.sh
source "$ROOT/scripts/lib/install.sh"

usage() {
  cat << 'TEXT'
Usage: scripts/quickstart.sh [options]

Makes a Python environment, fetches Triton and a small model, builds an INT8 engine, starts the server and streams an
answer. Everything lands in this folder (.venv, .cache, model_repository/llm/1/engine); a second run reuses it.

  --serve                 keep the server running afterwards, until Ctrl-C or SIGTERM
  --prompt TEXT           what to ask
  --max-tokens N          how long the answer may get (default: 96)
  --model DIR_OR_NAME     another Hugging Face checkpoint: a folder, or a name on the hub
  --quantization Q        int8, int8-sq, int4 or none (default: int8)
  --python PROGRAM        the Python to use (3.10, 3.11 or 3.12)
  --http-port N           default: $INFLIGHT_HTTP_PORT or 8000
  --grpc-port N           default: $INFLIGHT_GRPC_PORT or 8001
  --metrics-port N        default: $INFLIGHT_METRICS_PORT or 8002
  --gateway-port N        of OpenAI's API, with --serve; 0: none (default: $INFLIGHT_GATEWAY_PORT or 8080)
  --help

INFLIGHT_TORCH_INDEX: address of a package index to take torch from (see docs/operating.md).
TEXT
}

prompt="Why is the sky blue? Answer in three sentences."
max_tokens=96
model=""
quantization=int8
python=""
serve=no
http_port=${INFLIGHT_HTTP_PORT:-8000}
grpc_port=${INFLIGHT_GRPC_PORT:-8001}
metrics_port=${INFLIGHT_METRICS_PORT:-8002}
gateway_port=${INFLIGHT_GATEWAY_PORT:-8080}

while (($#)); do
  option=$1
  shift
  case $option in
    --serve) serve=yes && continue ;;
    -h | --help) usage && exit 0 ;;
    --*=*) set -- "${option#*=}" "$@" && option=${option%%=*} ;;
  esac
  (($#)) || fail "$option needs a value, or is no option of this script: see --help."
  case $option in
    --prompt) prompt=$1 ;;
    --max-tokens) max_tokens=$1 ;;
    --model) model=$1 ;;
    --quantization) quantization=$1 ;;
    --python) python=$1 ;;
    --http-port) http_port=$1 ;;
    --grpc-port) grpc_port=$1 ;;
    --metrics-port) metrics_port=$1 ;;
    --gateway-port) gateway_port=$1 ;;
    *) fail "$option is no option of this script: see --help." ;;
  esac
  shift
done

if [[ $ROOT == *[!A-Za-z0-9_@%+=:,./-]* ]]; then # as inflight_tools/server/paths.py
  fail "Triton cannot start a Python backend from $ROOT: move the checkout to a path of plain ASCII letters, without blanks."
fi

[[ $serve == yes ]] || gateway_port=0
ports=("$http_port" "$grpc_port" "$metrics_port")
[[ $gateway_port == 0 ]] || ports+=("$gateway_port")
for port in "${ports[@]}"; do
  [[ $port =~ ^[0-9]{1,5}$ ]] && ((10#$port >= 1 && 10#$port <= 65535)) ||
    fail "'$port' is not a port: it has to be a number from 1 to 65535."
done
[[ $max_tokens =~ ^[1-9][0-9]*$ ]] || fail "--max-tokens is '$max_tokens' and has to be a number of at least 1."

SERVER=""
on_exit() { # the server ends with this script, however the script ends; a second Ctrl-C makes it end at once
  if [[ -n $SERVER ]] && kill -0 "$SERVER" 2> /dev/null; then
    trap 'kill -TERM "$SERVER" 2> /dev/null || true' INT TERM
    kill -TERM "$SERVER" 2> /dev/null || true
    while kill -0 "$SERVER" 2> /dev/null; do wait "$SERVER" 2> /dev/null || true; done
  fi
  [[ -z ${ready_file:-} ]] || rm -f "$ready_file"
}

start_server() {
  local log
  mkdir -p "$ROOT/.cache/logs"
  log="$ROOT/.cache/logs/tritonserver-$(date +%Y%m%d-%H%M%S)-$$.log"
  ready_file="$ROOT/.cache/ready-$$.json"
  "$VENV/bin/python" "$ROOT/scripts/serve.py" --end-with-parent --ready-file "$ready_file" --log "$log" \
    --http-port "$http_port" --grpc-port "$grpc_port" --metrics-port "$metrics_port" --health-port 0 \
    --gateway-port "$gateway_port" --drain-notice 0 > /dev/null &
  SERVER=$!
  until [[ -s $ready_file ]]; do
    kill -0 "$SERVER" 2> /dev/null || exit 1 # it has said why
    run sleep 0.1
  done
  STEP_NOTE="log: ${log#"$ROOT/"}"
}

ask() {
  echo
  run "$VENV/bin/inflight" chat --url "localhost:$grpc_port" --model llm --max-tokens "$max_tokens" -- "$prompt" ||
    fail "the request failed: the server's log is in $ROOT/.cache/logs."
  echo
}

began=$(now_ms)
STEPS=7
choose_python "$python"
check_machine
"$PYTHON" "$ROOT/scripts/serve.py" --check --http-port "$http_port" --grpc-port "$grpc_port" \
  --metrics-port "$metrics_port" --health-port 0 --gateway-port "$gateway_port" || exit 1
if [[ $model == */* && -e $model || -d $model ]]; then
  [[ -f $model/config.json ]] || fail "$model is not a Hugging Face checkpoint: it has no config.json."
fi

lock_installation
step "Python environment (.venv, Python $PYTHON_VERSION)" make_environment
step "Packages" install_packages serve client gateway build
step "Triton Inference Server" fetch_triton
step "Model ${model:-SmolLM2-135M-Instruct}" fetch_model "$model"
step "Engine ($quantization)" build_engine "$quantization"
unlock_installation
step "Server" start_server
step "A streamed answer to: $prompt" ask

flags=""
[[ $grpc_port == 8001 ]] || flags=" --url localhost:$grpc_port"
cat << TEXT
Done in $(seconds_since "$began") s. More, while the server runs$([[ $serve == yes ]] || echo " (scripts/quickstart.sh --serve, or .venv/bin/inflight serve)"):
  .venv/bin/inflight chat$flags "Tell me a joke."
  curl -s localhost:$http_port/v2/models/llm/generate -d '{"text_input": "The capital of France is", "max_tokens": 16}'
  curl -s localhost:$metrics_port/metrics | grep -E '^(nv_trt_llm|inflight)_'
TEXT

if [[ $serve == yes ]]; then
  echo
  [[ $gateway_port == 0 ]] || echo "OpenAI's API: http://localhost:$gateway_port/v1"
  echo "Serving: gRPC localhost:$grpc_port, HTTP localhost:$http_port, metrics localhost:$metrics_port. Ctrl-C stops it."
  trap 'kill -TERM "$SERVER" 2> /dev/null || true' INT TERM HUP
  while :; do
    status=0
    wait "$SERVER" || status=$?
    # Above 128 with the server still there: the wait ended, because of a signal that has been passed on.
    ((status > 128)) && kill -0 "$SERVER" 2> /dev/null || break
  done
  SERVER=""
  exit "$status"
fi
