#!/bin/bash
# sandbox.sh UID TMP WRITABLE... -- COMMAND...: run as UID with no privileges but to read, where all is read-only but
# what is named and /dev, and TMP is /tmp. To be started by `unshare -m`, as root.
set -e
user=$1 tmp=$2 writable=(/tmp)
shift 2
while [[ $1 != -- ]]; do writable+=("$1") && shift; done
shift
mount --make-rprivate /
mount --bind "$tmp" /tmp # Triton's Python backend makes folders there by that name
for each in "${writable[@]:1}"; do mount --bind "$each" "$each"; done
mount -o remount,ro,bind /
while read -r _ _ _ _ place _; do
  case $place in / | /proc* | /sys* | /dev*) continue ;; esac
  for each in "${writable[@]}"; do [[ $place != "$each" ]] || continue 2; done
  mount -o remount,ro,bind "$place" 2> /dev/null || true
done < /proc/self/mountinfo
exec setpriv --reuid "$user" --regid "$user" --clear-groups --no-new-privs \
  --bounding-set -all,+dac_read_search --inh-caps -all,+dac_read_search --ambient-caps -all,+dac_read_search -- "$@"
