#!/usr/bin/env bash
# The kernel's host on memory whose pages are exchanged under it, for each row of the table of stale cases: first without the
# loop (what the host writes goes where nobody looks, with success), then with it, COUNT changes of each of the eight under load (50).
#   ci/softroce run tests/softroce/coherence_storm.sh BUILD_DIR [COUNT [all]]
# Without the loop two kinds must do in CI (all: not there): coherence_table has all of them.
# shellcheck source=tests/softroce/lib.sh
source "$(dirname "$0")/lib.sh"

build=${1:?build directory} count=${2:-50} extent=${3:-two}
nqn=nqn.2026-01.io.example:changing
echo 8 >/proc/sys/vm/nr_hugepages

serve() { # NAME watched|unwatched
	name=$1
	start_ordered "$1" "$build/tests/softroce/changing_target" "nvme+rdma://$RBT_RIG_ADDR" "$nqn" "$2" || bail "no target"
	kinds=$(sed -n 's/^serves //p' "$RBT_RIG_OUTPUT/$name.log")
	connect_kernel_host "$RBT_RIG_ADDR" "$nqn" -i 2 >/dev/null 2>"$scratch/connect" || bail "nvme connect: $(<"$scratch/connect")"
}
leave() { disconnect_kernel_host "$nqn" 2>/dev/null && stop_daemon "$name" KILL; [[ $? == 137 ]]; }
fill() { head -c 16384 /dev/zero | tr '\0' "$1"; } # CHARACTER
write_block() { fill "$2" | dd of="$1" bs=16k seek=4 oflag=direct iflag=fullblock status=none; } # DEVICE CHARACTER: at 64 KiB
dump() { order "dump $1 $scratch/dump" "dumped $1"; }
owner_sees() { dump "$1" && cmp -n 16384 -i 65536:0 "$scratch/dump" <(fill "$2"); }              # NSID CHARACTER
host_sees() { cmp <(dd if="$1" bs=4k skip="$2" count=1 iflag=direct status=none) <(fill "$3" | head -c 4096); } # DEVICE 4K-BLOCK CHARACTER
same_on_both_sides() { dump "$1" && cmp "$scratch/dump" <(dd if="$2" bs=64k iflag=direct status=none); } # NSID DEVICE
write_both() { write_block "$2" b && order "mark $1" "marked $1"; }                               # NSID DEVICE
one_change() { order "change $1" "changed $1" && write_both "$1" "$2" && host_sees "$2" 16 b; }   # NSID DEVICE

took() { note "$1: ${SECONDS} s since the start"; }
serve without unwatched
unwatched=(1 6) # anonymous memory, a memfd
if [[ $extent == all ]]; then mapfile -t unwatched < <(seq "$kinds"); fi
for n in "${unwatched[@]}"; do
	device=$(within 20 kernel_device "$nqn" "$n") || bail "no namespace $n"
	claim "Kind $n without the loop: what the host writes and reads after the change succeeds" one_change "$n" "$device"
	claim "... but the owner does not see what the host wrote" fails owner_sees "$n" b
	claim "... nor the host what the owner wrote" fails host_sees "$device" 32 o
done
claim "Host and target leave" leave
took "without the loop"

serve with watched
jobs=()
for ((n = 1; n <= kinds; n++)); do
	device=$(within 20 kernel_device "$nqn" "$n") || bail "no namespace $n"
	jobs+=(--name="kind$n" --filename="$device")
done

# Larger than what travels inside of commands: the adapter moves it.
fio --output-format=json --output="$scratch/fio" --ioengine=libaio --direct=1 --rw=randrw --bs=16k --iodepth=2 --size=2M \
	--verify=crc32c --verify_fatal=1 --verify_backlog=16 --time_based --runtime=300 "${jobs[@]}" >"$scratch/fio.log" 2>&1 &
fio=$!
loaded() { (($(sectors_of "$(kernel_device "$nqn" "$kinds")") > 8192)); }
claim "Verified load on all of them" within 30 loaded
claim "$count changes of each kind under it" order "storm $count" calm 250 || bail "the target does not get through"
claim "The load is still there" running "$fio"
took "under load"
kill -INT "$fio"
wait "$fio"
grep '^#' "$RBT_RIG_OUTPUT/$name.log"
said() { sed -n -E 's/^# .*: ([0-9]+) events, ([0-9]+) overdue, the changer waited ([0-9]+) us at the most$/\1 \2 \3/p' "$RBT_RIG_OUTPUT/$name.log"; }
claim "No request was cut off" test "$(said | awk '$2 == 0' | wc -l)" = "$kinds"
claim "Each kind had its $count changes" test "$(said | awk -v want="$count" '$1 >= want' | wc -l)" = "$kinds"
note "$(said | awk '{ n += $1; if ($3 > longest) longest = $3 } END { print n " changes heard of; whoever changed a mapping waited " longest / 1000 " ms at the most" }')"
cat >"$scratch/judge.py" <<'PYTHON'
import json
import sys

text = open(sys.argv[1]).read()
jobs = json.loads(text[text.index("{"):])["jobs"]
stalls = [max(job[way]["clat_ns"]["max"] for way in ("read", "write")) for job in jobs]
print(f"# the longest stall of a host: {max(stalls) // 1000000} ms")
for job, longest in zip(jobs, stalls):
    print(f"# {job['jobname']}: {job['read']['total_ios']} reads, {job['write']['total_ios']} writes, the longest took {longest // 1000000} ms"
          + (f"; error {job['error']}" if job["error"] else ""))
assert len(jobs) == int(sys.argv[2])
assert all(job["error"] == 0 and job["read"]["total_ios"] > 100 and job["write"]["total_ios"] > 100 for job in jobs)
PYTHON
claim "No I/O error, and what was read back had its checksum" python3 "$scratch/judge.py" "$scratch/fio" "$kinds" ||
	{ cp "$scratch/fio" "$scratch/fio.log" "$RBT_RIG_OUTPUT"; sed 's/^/# /' "$scratch/fio.log"; dmesg | tail -n 20 | sed 's/^/# /'; }
cat "$scratch/claim"
for ((n = 1; n <= kinds; n++)); do
	device=$(kernel_device "$nqn" "$n")
	claim "Kind $n: each side writes" write_both "$n" "$device"
	claim "... and both see the same" same_on_both_sides "$n" "$device"
done
claim "Host and target leave" leave
took "with the loop"
