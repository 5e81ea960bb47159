# Sourced by the scripts of this repository (bash): what they say, how they run things, and how they end.
# Needs `set -euo pipefail` and $ROOT, the repository.
# shellcheck shell=bash

fail() { # fail SENTENCE: end with one sentence
  printf 'error: %s\n' "$*" >&2
  exit 1
}

now_ms() { date +%s%3N; }

seconds_since() { # seconds_since MS: "12.3"
  local passed=$(($(now_ms) - $1))
  printf '%d.%d' $((passed / 1000)) $((passed % 1000 / 100))
}

# --- Steps: a heading, and below it how long the step took. -----------------------------------------------------------

STEP=0
STEPS=0

step() { # step HEADING FUNCTION [ARGUMENT...]
  local heading=$1 begin
  shift
  STEP=$((STEP + 1))
  begin=$(now_ms)
  printf '[%d/%d] %s\n' "$STEP" "$STEPS" "$heading"
  STEP_NOTE=""
  "$@"
  printf '      %s s%s\n' "$(seconds_since "$begin")" "${STEP_NOTE:+ ($STEP_NOTE)}"
}

# --- Children: in the background and waited for, because bash answers a signal only between foreground commands. ------

CHILD=""

run() { # run COMMAND...: like the command alone, but a signal to this script ends it at once
  local status=0
  set -m # a process group of its own, so that what it starts can be ended with it
  "$@" < /dev/null &
  CHILD=$!
  set +m
  wait "$CHILD" || status=$?
  CHILD=""
  return "$status"
}

run_logged() { # run_logged LOG WHAT COMMAND...: its output goes to LOG; on failure its last error line is the sentence
  local log=$1 what=$2 reason
  shift 2
  mkdir -p "$(dirname "$log")"
  run "$@" > "$log" 2>&1 && return
  reason=$(grep -v '^\s*$' "$log" | tail -n 1)
  fail "$what failed: ${reason#[Ee]rror: } (whole output: $log)"
}

on_exit() { :; } # a script that starts something that outlives a step says here how to stop it

_end() {
  local status=$? tries
  trap '' INT TERM HUP
  if [[ -n $CHILD ]]; then
    kill -TERM "$CHILD" 2> /dev/null || true # first the command alone, which may want to tidy up
    for ((tries = 0; tries < 150; tries++)); do
      kill -0 "$CHILD" 2> /dev/null || break
      sleep 0.1
    done
    kill -KILL -- "-$CHILD" 2> /dev/null || true # then whatever it left
    wait "$CHILD" 2> /dev/null || true
  fi
  on_exit
  exit "$status"
}

trap _end EXIT
trap 'echo; exit 130' INT
trap 'exit 143' TERM HUP

# --- Stamps: what a finished step was made from. ----------------------------------------------------------------------

STAMPS="$ROOT/.cache/stamps"

fingerprint() { # fingerprint WORD-OR-FILE...: a hash over the words and the contents of the files
  local item
  for item in "$@"; do
    if [[ -f $item ]]; then cat "$item"; else printf '%s\n' "$item"; fi
  done | sha256sum | cut -d' ' -f1
}

is_stamped() { [[ -f $STAMPS/$1 && $(cat "$STAMPS/$1") == "$2" ]]; } # is_stamped NAME FINGERPRINT

stamp() { # stamp NAME FINGERPRINT
  mkdir -p "$STAMPS"
  printf '%s\n' "$2" > "$STAMPS/.$1.part"
  mv "$STAMPS/.$1.part" "$STAMPS/$1"
}

unstamp() { rm -f "$STAMPS/$1"; }

lock_installation() { # one installation at a time in this folder; the lock goes with `unlock_installation` or this process
  mkdir -p "$ROOT/.cache"
  exec 9>> "$ROOT/.cache/lock"
  if ! flock -n 9; then
    echo "      waiting for another installation in this folder to end"
    flock -w 1800 9 || fail "another installation in this folder has not ended for half an hour: look for it (fuser $ROOT/.cache/lock) and end it."
  fi
  rm -rf "$ROOT"/.cache/.tmp-* "$ROOT"/.cache/models/.tmp-* "$ROOT"/.cache/bin/.tmp-*
}

unlock_installation() { exec 9>&-; }
