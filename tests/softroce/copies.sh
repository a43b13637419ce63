#!/usr/bin/env bash
# How often rbt's own code copies what it moves over verbs, at either end: not at all, but for data that comes in a capsule, which
# the target copies once. Counts of every byte.
#   ci/softroce run tests/softroce/copies.sh BUILD_DIR
# shellcheck source=tests/softroce/lib.sh
source "$(dirname "$0")/lib.sh"

tools=${1:?build directory}/tools
nqn=nqn.2026-01.io.example:copies
uri=nvme+rdma://$RBT_RIG_ADDR/$nqn

make_disk() { mkdir "$scratch/tmpfs" && mount -t tmpfs -o size=64m tmpfs "$scratch/tmpfs" && truncate -s 16M "$scratch/tmpfs/disk"; }
make_disk || bail "no tmpfs"
# A memfd that it inherits.
with_memfd() { # COMMAND...
	exec python3 -c 'import os, sys
fd = os.memfd_create("disk", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
os.truncate(fd, 16 << 20)
os.dup2(fd, 9)
os.execv(sys.argv[1], sys.argv[1:])' "$@"
}
start_daemon --name target with_memfd "$tools/rbt-target" --listen "nvme+rdma://$RBT_RIG_ADDR" --subsystem "$nqn" \
	--store ram:size=16MiB,block=4096 --store "map:$scratch/tmpfs/disk,block=4096" --store map:/proc/self/fd/9,block=4096 ||
	bail "rbt-target does not serve"

# What the target has counted so far; sets served, copied (by commands and stores) and fabric.
totals='([0-9]+) bytes served; copied: ([0-9]+) by commands and stores, ([0-9]+) by rdma; .*'
said_totals() { (($(grep -c -E "$totals" "$RBT_RIG_OUTPUT/target.log") > $1)); }
count() {
	local before
	before=$(grep -c -E "$totals" "$RBT_RIG_OUTPUT/target.log")
	kill -USR1 "$daemon_pid"
	within 20 said_totals "$before" || bail "SIGUSR1 shows nothing"
	read -r served copied fabric < <(sed -n -E "s/.* $totals/\1 \2 \3/p" "$RBT_RIG_OUTPUT/target.log" | tail -n 1)
}
of_host() { sed -n "s/^ *\"$1\": *\([0-9]*\),*\$/\1/p" "$scratch/perf"; } # KEY of rbt-perf's JSON

# Runs rbt-perf on a namespace; sets host and target: bytes read, written, and copied by the host; served and copied by the target.
move() { # NSID BLOCK-SIZE
	local served_before copied_before
	count
	served_before=$served copied_before=$copied
	timeout -k 5 60 "$tools/rbt-perf" "$uri/$1" --rw randrw --bs "$2" --iodepth 8 --size 8MiB --runtime 1 -o json >"$scratch/perf" ||
		bail "rbt-perf failed"
	count
	read=$(of_host bytes_read) written=$(of_host bytes_written)
	host="$((read > 0 && written > 0)) $(of_host bytes_copied)"
	target="$((served - served_before)) $((copied - copied_before)) $fabric"
	note "$2: $read bytes read, $written written; the host copied $(of_host bytes_copied), the target $((copied - copied_before))"
}

nsid=0
for name in ram 'a file on tmpfs' 'a memfd'; do
	nsid=$((nsid + 1))
	move $nsid 128k
	claim "$name, 128 KiB: the host copies nothing" test "$host" = "1 0"
	claim "$name, 128 KiB: the target serves every byte and copies none" test "$target" = "$((read + written)) 0 0"
	move $nsid 4k
	claim "$name, 4 KiB: the host copies nothing" test "$host" = "1 0"
	claim "$name, 4 KiB: the target copies what is written, which comes in capsules, once" test "$target" = "$((read + written)) $written 0"
done
claim "SIGTERM: exit status 0" stop_daemon target
umount "$scratch/tmpfs"
