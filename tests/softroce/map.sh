#!/usr/bin/env bash
# rbt-connect map over rxe, as a user runs it: ublk, a process that is killed and recovered under load, a target that is, and the ends.
#   ci/softroce run tests/softroce/map.sh BUILD_DIR
# shellcheck source=tests/softroce/lib.sh
source "$(dirname "$0")/lib.sh"

build=$(realpath "${1:?build directory}")
connect=$build/tools/rbt-connect
nqn=nqn.2026-01.io.example:disk
uri=nvme+rdma://$RBT_RIG_ADDR/$nqn
run=/run/rbt
export RBT_TAB=$scratch/rbttab
RANDOM=${RBT_SEED:=$RANDOM}
note "RBT_SEED=$RBT_SEED"

# The volumes' processes are in sessions of their own: nobody else ends them.
cleanup() {
	local lock status=$?
	for lock in "$run"/*.lock; do
		[[ -e $lock ]] || continue
		lock=${lock##*/}
		"$connect" unmap --force "${lock%.lock}"
	done
	mountpoint -q "$scratch/disk" && umount "$scratch/disk"
	(exit "$status")
	test_end
}
trap cleanup EXIT

serve() { # NAME: NSID 1 in memory, NSID 2 a file
	start_daemon --name "$1" "$build/tools/rbt-target" --listen "nvme+rdma://$RBT_RIG_ADDR" --subsystem "$nqn" \
		--store ram:size=64MiB --store "file:$scratch/disk/image"
}
map() { # ARGUMENT...: sets device
	timeout -k 5 60 "$connect" map "$@" >"$scratch/device" || return 1
	device=$(<"$scratch/device")
	[[ -b $device ]] || { echo "'$device' is no block device"; return 1; }
}
field() { "$connect" ls -o json | python3 -c 'import json, sys; print(next((str(v[sys.argv[2]]) for v in json.load(sys.stdin)["volumes"] if v["name"] == sys.argv[1]), "none"))' "$1" "$2"; }
is() { local is; is=$(field "$1" "$2"); [[ $is == "$3" ]] || { echo "$2 of $1 is '$is', not '$3'"; return 1; }; }
pid_of() { field "$1" pid; }
kill_process() { # NAME
	local pid
	pid=$(pid_of "$1")
	kill -KILL "$pid" && within 10 ended "$pid"
}
ended() { [[ ! -e /proc/$1 ]]; }
nothing_left() {
	local left
	left=$(find /dev -name 'ublkb*' -o -name 'ublkc*'; ls /sys/class/ublk-char; "$connect" ls; find "$run" -mindepth 1)
	[[ -z $left ]] || { echo "left: $left"; return 1; }
}
a_moment() { sleep "0.$((RANDOM % 5))$((RANDOM % 10))"; }
in_seconds() { # SECONDS COMMAND...: no later, on a machine that is not emulated: three times as much here
	local begun=$EPOCHREALTIME status=0 took
	"${@:2}" || status=$?
	took=$(awk -v a="$begun" -v b="$EPOCHREALTIME" 'BEGIN { print int((b - a) * 1000) }')
	note "took $took ms" >&3
	((status == 0 && took <= $1 * 3000))
}

begin_load() {
	fio --output="$RBT_RIG_OUTPUT/load.txt" --name=load --filename="$device" --direct=1 --ioengine=libaio --rw=randwrite --bs=4k \
		--iodepth=16 --size=4M --numjobs=2 --offset_increment=4M --verify=crc32c --verify_fatal=1 --verify_backlog=64 --time_based \
		--runtime=200 --group_reporting </dev/null >/dev/null 2>&1 &
	load=$!
	goes_on
}
goes_on() { within 60 moved_on "$device" "$(sectors_of "$device")"; }
load_is_fine() {
	kill -TERM "$load"
	wait "$load"
	grep -q 'err= 0:' "$RBT_RIG_OUTPUT/load.txt" || { tail -n 30 "$RBT_RIG_OUTPUT/load.txt"; return 1; }
}

exec 3>&1 # notes from within claims
dmesg_mark
mkdir "$scratch/disk" "$scratch/mounted"
mkfs.ext4 -q /dev/ram0 && mount /dev/ram0 "$scratch/disk" || bail "no file system"
truncate -s 64M "$scratch/disk/image"
claim "rbt-target serves" serve target-0 || exit 1

# --- As a user --------------------------------------------------------------------------------------------------------

claim "map prints a path" map "$uri/1" --via ublk --queues 2 --as memory || exit 1
claim "and nothing else" grep -q -x -E '/dev/ublkb[0-9]+' "$scratch/device"
claim "of a disk as large as the namespace" test "$(blockdev --getsize64 "$device")" = $((64 << 20))
claim "ls has it, live" is memory state live
claim "and its device" is memory device "$device"
claim "The name is in use" ends 6 30 "'memory' is the name of a mapped volume" "$connect" map "$uri/2" --as memory
claim "The disk is in use" ends 6 30 "is mapped as 'memory'" "$connect" map "$uri/1" --as other
claim "A process that lives needs no recovery" ends 6 30 "needs no recovery" "$connect" recover memory
claim "udev is told its name" ends 0 10 '^RBT_NAME=memory' "$connect" udev-name "${device#/dev/}"
links() { # what udev would make of it, with the rule that is installed
	mkdir -p /run/udev/rules.d
	sed "s|/[^ ]*/rbt-connect|$connect|" "$build/tools/system/60-rbt.rules" >/run/udev/rules.d/60-rbt.rules
	udevadm test --action=change "/sys/block/${device#/dev/}" 2>&1 | tee "$scratch/udev" | grep '^DEVLINKS='
}
links >"$scratch/links"
claim "udev's rule makes /dev/rbt/NAME" grep -q -w /dev/rbt/memory "$scratch/links" || tail -n 40 "$scratch/udev"
claim "and a link by the disk's UUID" grep -q -F "/dev/disk/by-id/rbt-$(field memory uuid)" "$scratch/links"
claim "and finds no mistake in it" fails grep -E '60-rbt.rules:.*(nvalid|nknown|gnoring|ailed)' "$scratch/udev"
claim "The process is in a mount namespace of its own" test \
	"$(readlink "/proc/$(pid_of memory)/ns/mnt")" != "$(readlink /proc/self/ns/mnt)"
claim "The last to be killed" test "$(<"/proc/$(pid_of memory)/oom_score_adj")" = -1000
flushers() { # whether no thread does I/O in order to have memory: PF_MEMALLOC_NOIO in the ninth field of its stat
	local thread
	for thread in "/proc/$1/task"/*; do
		(($(awk '{ sub(/.*\) /, ""); print $7 }' "$thread/stat") & 0x00080000)) || { echo "$(<"$thread/comm")"; return 1; }
	done
}
claim "Its threads do no I/O in order to have memory" flushers "$(pid_of memory)"
claim "Its memory is locked" test "$(awk '/^VmLck:/ { print $2 }' "/proc/$(pid_of memory)/status")" -gt 10000

# --- Busy -------------------------------------------------------------------------------------------------------------

mkfs.ext4 -q "$device" && mount "$device" "$scratch/mounted" || bail "no file system on $device"
claim "unmap refuses a mounted disk, and says where" ends 6 30 "is mounted on $scratch/mounted" "$connect" unmap memory
umount "$scratch/mounted"
(exec 4<"$device" && exec sleep 60) &
opener=$!
claim "and an open one, and says who has it" ends 6 30 "process $opener \(sleep\)" "$connect" unmap "$device"
kill "$opener"
wait "$opener" 2>/dev/null

# --- The process is killed under load ---------------------------------------------------------------------------------

claim "Load runs" begin_load
killed_and_recovered() {
	local number before=$device begun sectors
	for ((number = 1; number <= 10; number++)); do
		a_moment
		kill_process memory || return 1
		is memory state dead || return 1
		sectors=$(sectors_of "$device") begun=$EPOCHREALTIME
		[[ $(timeout -k 5 60 "$connect" recover memory) == "$before" ]] || { echo "kill $number: not $before"; return 1; }
		until moved_on "$before" "$sectors"; do sleep 0.002; done
		awk -v a="$begun" -v b="$EPOCHREALTIME" 'BEGIN { printf "%d ", (b - a) * 1000 }' >>"$scratch/times"
	done
}
claim "Ten times killed and recovered: the same node, and it goes on" killed_and_recovered
note "from the start of recover to the first completion: $(<"$scratch/times")ms"
supervise() { # as systemd does: until it ends by itself
	local status=1
	until ((status == 0)); do
		"$connect" map memory --foreground >/dev/null 2>>"$RBT_RIG_OUTPUT/supervised.log"
		status=$?
	done
}
echo "memory $uri/1 via=ublk,queues=2" >"$RBT_TAB"
kill_process memory
supervise &
supervisor=$!
claim "A supervisor that maps it by its name in rbttab recovers it" within 20 is memory state live
claim "and it goes on" goes_on
claim "It is killed once more" kill_process memory
claim "and goes on by itself" goes_on
claim "No request has failed, no block is wrong" load_is_fine
note "of which the processes took: $(grep -o 'there after .*' "$run/memory.log" | cut -d' ' -f3- | xargs)"
claim "unmap takes it away" "$connect" unmap memory
claim "which ends the supervisor" wait "$supervisor"
claim "Nothing is left" nothing_left

# --- The target is killed ---------------------------------------------------------------------------------------------

claim "A file is mapped" map "$uri/2" || exit 1
claim "by ublk, which is what auto comes to" is disk-2 via ublk
name=$(basename "$(ls "$run"/*.json)" .json)
claim "under a name made from its URI" test "$name" = disk-2
claim "Load runs" begin_load
killed_targets() {
	local number
	for ((number = 1; number <= 2; number++)); do
		a_moment
		stop_daemon "target-$((number - 1))" KILL
		serve "target-$number" || return 1
		goes_on || { echo "kill $number: nothing moves"; return 1; }
	done
}
claim "Two targets killed and restarted: it goes on" killed_targets
claim "No request has failed, no block is wrong" load_is_fine
losses() { "$connect" stats "$name" -o json | python3 -c 'import json, sys; s = json.load(sys.stdin)["volume"]["status"]; print(s["losses"], s["requests"]["write"]["requests"] > 0)'; }
claim "stats has seen it" test "$(losses)" = "2 True"
"$connect" stats "$name" | sed 's/^/# /'

# --- By force ---------------------------------------------------------------------------------------------------------

claim "Load runs" begin_load
claim "--force: within two seconds, whoever uses it" in_seconds 2 "$connect" unmap --force "$name"
claim "whose requests fail" fails wait "$load"
claim "Nothing is left" nothing_left
claim "Mapped again" map "$uri/2" --via ublk --as file || exit 1
claim "Load runs" begin_load
kill_process file
stop_daemon target-2 KILL
claim "--force: the process dead, the target dead" in_seconds 2 "$connect" unmap --force "$device"
claim "The load's requests fail" fails wait "$load"
claim "Nothing is left" nothing_left
claim "A target again" serve target-3 || exit 1
claim "Mapped again" map "$uri/2" --via ublk --as file || exit 1
claim "Load runs" begin_load
stop_daemon target-3 KILL
claim "--force: the process connecting, the target dead" in_seconds 2 "$connect" unmap --force file
claim "The load's requests fail" fails wait "$load"
claim "Nothing is left" nothing_left

# --- Patience ---------------------------------------------------------------------------------------------------------

claim "A target again" serve target-4 || exit 1
claim "A volume that fails after two seconds without its target" map "$uri/1" --via ublk --as impatient --on-loss 2 || exit 1
claim "Load runs" begin_load
stop_daemon target-4 KILL
claim "Its requests fail, not much later" in_seconds 4 fails wait "$load"
claim "ls says so" is impatient state failed
claim "It can be unmapped" "$connect" unmap impatient
claim "Nothing is left" nothing_left

# --- NBD --------------------------------------------------------------------------------------------------------------

claim "A target again" serve target-5 || exit 1
claim "map by NBD" map "$uri/1" --via nbd --as nbd || exit 1
claim "Load runs" begin_load
kill_process nbd
claim "A killed process is recovered" test "$(timeout -k 5 60 "$connect" recover nbd)" = "$device"
claim "and it goes on" goes_on
claim "No request has failed, no block is wrong" load_is_fine
claim "Load runs" begin_load
claim "unmap refuses" ends 6 30 "\(fio\) has it open" "$connect" unmap nbd
claim "--force: within two seconds" in_seconds 2 "$connect" unmap --force nbd
claim "The load's requests fail" fails wait "$load"
claim "Nothing is left" nothing_left
claim "Mapped again" map "$uri/1" --via nbd --as nbd || exit 1
kill_process nbd
claim "gc takes away what nobody uses" ends 0 30 "nbd: $device is removed" "$connect" gc
claim "Nothing is left" nothing_left

# --- What is left over ------------------------------------------------------------------------------------------------

claim "Mapped" map "$uri/1" --via ublk --as orphan || exit 1
kill_process orphan
claim "The name of a dead volume is not given away" ends 6 30 "rbt-connect recover orphan" "$connect" map "$uri/1" --as orphan
claim "gc takes away what nobody uses" ends 0 30 "orphan: $device is removed" "$connect" gc
claim "Nothing is left" nothing_left
# A device is made, its node is kept from appearing, and so its process waits, until it is killed.
killed_early() { # NAME EXISTS-WHEN-MADE MAP-ARGUMENT...
	local starter pid
	"$connect" map "${@:3}" --as "$1" >/dev/null 2>&1 &
	starter=$!
	within 30 test -e "$2" && pid=$(<"$run/$1.lock") && kill -KILL "$pid" && within 10 ended "$pid" || return 1
	fails wait "$starter" && is "$1" device ''
}
claim "A device that map has not made" start_daemon --name other --ready '^/dev/ublkb0' "$build/tests/softroce/ublk_volume" "$uri/2" 1 8
stop_daemon other KILL
ln -s nowhere /dev/ublkc1
claim "A process is killed before it has said which device it made" killed_early early /sys/class/ublk-char/ublkc1 "$uri/1" --via ublk
claim "gc finds that device" ends 0 30 "early: /dev/ublkb1 is removed" "$connect" gc
claim "and takes nothing else away" test -e /sys/class/ublk-char/ublkc0 -a ! -e /sys/class/ublk-char/ublkc1
claim "Once more" killed_early early /sys/class/ublk-char/ublkc1 "$uri/1" --via ublk
rm /dev/ublkc1
claim "map of that name makes a new one in its place" map "$uri/1" --via ublk --as early
claim "which is all there is of it" test "$device $(ls /sys/class/ublk-char | xargs)" = "/dev/ublkb1 ublkc0 ublkc1"
claim "unmap" "$connect" unmap early
claim "The other is removed by whoever made it" ends 0 20 "^removed in" "$build/tests/softroce/ublk_volume" --remove 0
claim "By NBD, too: a disk that is mapped" map "$uri/1" --via nbd --read-only --as reader
mv /dev/nbd1 /dev/was-nbd1
claim "and mapped once more, by a process that is killed early" killed_early early /sys/block/nbd1/pid "$uri/1" --via nbd --read-only
mv /dev/was-nbd1 /dev/nbd1
claim "gc finds that device" ends 0 30 "early: /dev/nbd1 is removed" "$connect" gc
claim "and not the other one of the same disk" is reader state live
claim "unmap" "$connect" unmap reader
claim "Nothing is left" nothing_left
claim "Mapped" map "$uri/1" --via ublk --as stopped || exit 1
pid=$(pid_of stopped)
kill -TERM "$pid"
claim "SIGTERM unmaps what nobody uses" within 10 ended "$pid"
claim "Nothing is left" nothing_left
claim "SIGTERM ends the target" stop_daemon target-5
claim "The kernel has not complained" fails grep -E 'Oops|BUG:|WARNING|INFO: task|general protection' <(dmesg_since)
