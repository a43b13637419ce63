#!/usr/bin/env bash
# systemd has nothing to say against the unit that is installed, and would have.   system_files.sh FOLDER-OF-GENERATED-FILES RBT-CONNECT
set -u -o pipefail
generated=$1 program=$2
command -v systemd-analyze >/dev/null || { echo "skipped: no systemd-analyze"; exit 77; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
unit=$scratch/rbt-map@disk.service

# What it says of other units is theirs.
complaints() { systemd-analyze verify --man=no --recursive-errors=no "$unit" 2>&1 | grep -c -F "rbt-map@"; }
# The program is not installed yet.
sed "s|^ExecStart=[^ ]*|ExecStart=$program|" "$generated/rbt-map@.service" >"$unit"
grep -q '^ExecStart=/.*/rbt-connect map %i --foreground$' "$generated/rbt-map@.service" || { echo "ExecStart is wrong"; exit 1; }
if [[ $(complaints) != 0 ]]; then
	systemd-analyze verify --man=no "$unit"
	exit 1
fi
sed -i 's/^WatchdogSec=/WatchdogSeconds=/' "$unit"
[[ $(complaints) == 1 ]] || { echo "a wrong key is not noticed: this test shows nothing"; exit 1; }
grep -q "IMPORT{program}=\"/.*/rbt-connect udev-name %k\"" "$generated/60-rbt.rules" || { echo "the rule's program is wrong"; exit 1; }
