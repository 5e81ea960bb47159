# shellcheck shell=bash
# Tests beside each other, and a second chance by themselves. Sourced after common.sh, which has run, now_ms and VENV.

MOST_AGAIN=5 # tests that may have a second chance: more have not failed for lack of a processor
SECOND_CHANCE=() # the tests that failed beside others and passed by themselves

# beside CACHE COMMAND...: pytest in three processes, three files at a time in the order of their names. Tests wait for
# servers and compare times, and the processors are shared: what fails there, if it is little, runs once more by itself.
# SECOND_CHANCE names what passed then; the status is that of the last run.
beside() {
  local cache=$1 status=0 names
  shift
  rm -rf "$cache"
  SECOND_CHANCE=()
  run "$@" -o "cache_dir=$cache" -n 3 --dist loadfile --no-loadscope-reorder || status=$?
  ((status == 1)) || return "$status" # others than 1: nothing that another run would change
  mapfile -t names < <(failed_tests "$cache")
  ((${#names[@]} > 0 && ${#names[@]} <= MOST_AGAIN)) || return "$status"
  printf '\n%s\n' "Failed beside others; once more, by themselves: ${names[*]}"
  run "$@" -o "cache_dir=$cache" --last-failed --last-failed-no-failures none || return
  SECOND_CHANCE=("${names[@]}")
}

failed_tests() { # failed_tests CACHE: one name a line
  "$VENV/bin/python" -c 'import json, sys; print(*json.load(open(sys.argv[1])), sep="\n")' "$1/v/cache/lastfailed"
}
