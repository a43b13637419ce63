#!/usr/bin/env bash
# A volume as a ublk device, over rxe, on rbt-target and on the kernel's own target: data, file systems, partitions, what the kernel
# believes about it; its process killed and succeeded, its target killed and restarted, under load that verifies; and its end.
#   ci/softroce run tests/softroce/ublk_device.sh BUILD_DIR
# shellcheck source=tests/softroce/lib.sh
source "$(dirname "$0")/lib.sh"
# shellcheck source=tests/softroce/device_steps.sh
source "$(dirname "$0")/device_steps.sh"

tools=${1:?build directory}/tools program=$1/tests/softroce/ublk_volume
nqn=nqn.2026-01.io.example:memory
memory=nvme+rdma://$RBT_RIG_ADDR/$nqn/1 file=nvme+rdma://$RBT_RIG_ADDR/nqn.2026-01.io.example:file/1
RANDOM=${RBT_SEED:=$RANDOM}
note "RBT_SEED=$RBT_SEED"
exec 3>&1 # from within claims, too

serve() { # NAME: one subsystem in memory, one in a file on ext4
	start_daemon --name "$1" "$tools/rbt-target" --listen "nvme+rdma://$RBT_RIG_ADDR" \
		--subsystem "$nqn" --store ram:size=96MiB --subsystem nqn.2026-01.io.example:file --store "file:$scratch/disk/image"
}
# Presents it; sets device and number. The program's output is NAME.log.
present() { # NAME ARGUMENT...
	start_daemon --name "$1" --ready '^/dev/ublkb' --deadline 60 "$program" "${@:2}" || return 1
	device=$(grep -o -E '^/dev/ublkb[0-9]+' "$RBT_RIG_OUTPUT/$1.log")
	number=${device#/dev/ublkb}
	note "$(grep '^/dev/ublkb' "$RBT_RIG_OUTPUT/$1.log")" >&3
}
value() { cat "/sys/block/${device#/dev/}/queue/$1"; }
is() { [[ $(value "$1") == "$2" ]] || { echo "$1 is '$(value "$1")', not '$2'"; return 1; }; }
state() { "$program" --list | awk -v number="$number" '$1 == number { print $2 }'; }
is_in_state() { [[ $(state) == "$1" ]]; }
# Of the volume's process: its io_urings (each has a task of its own that keeps it open), and its threads beside the first.
rings_and_threads() { echo "$(pgrep -c -P "$daemon_pid" rbt-ublk-ring) $(cat /proc/"$daemon_pid"/task/*/comm | grep -c '^rbt-lane-')"; }
connections() { # NUMBER
	kill -USR1 "${daemon_pids[target]}"
	grep -q "; $1 connections;" "$RBT_RIG_OUTPUT/target.log"
}
nothing_left() {
	local left
	left=$(find /dev /sys/block /sys/class/ublk-char/ -name 'ublk[bc]*'; "$program" --list)
	[[ -z $left ]] || { echo "left: $left"; return 1; }
}
a_moment() { sleep "0.$((RANDOM % 9))$((RANDOM % 10))"; } # the random moment of a kill

# Passes of verified random writes in the background until load_ends; a pass that fails ends them.
begin_load() {
	rm -f "$scratch/enough"
	(
		passes=0
		until [[ -e $scratch/enough ]]; do
			timeout -k 5 200 fio --output="$scratch/load" --name=load --filename="$device" --direct=1 --ioengine=libaio --rw=randwrite \
				--bs=4k --iodepth=16 --size=4M --numjobs=2 --offset_increment=4M --verify=crc32c --verify_fatal=1 --randseed="$RANDOM" || exit 1
			passes=$((passes + 1))
		done
		echo "# $passes passes"
	) &
	load=$!
	within 30 moved_on "$device" "$(sectors_of "$device")"
}
load_ends() {
	local status=0
	touch "$scratch/enough"
	wait "$load" || status=$?
	((status == 0)) || { tail -n 20 "$scratch/load"; return 1; }
}
goes_on() { within 60 moved_on "$device" "$(sectors_of "$device")"; }

dmesg_mark
mkdir "$scratch/disk"
mkfs.ext4 -q /dev/ram0 || bail "no file system"
mount /dev/ram0 "$scratch/disk" || bail "the file system does not mount"
truncate -s 64M "$scratch/disk/image"
claim "rbt-target serves" serve target || exit 1

# --- What the kernel believes -----------------------------------------------------------------------------------------

claim "A namespace in memory becomes a block device" present memory "$memory" 2 64 131072 || exit 1
claim "It is as large as the namespace" test "$(blockdev --getsize64 "$device")" = $((96 << 20))
claim "Logical blocks of 512 bytes" is logical_block_size 512
claim "No write cache, no FUA" is write_cache "write through"
claim "Requests of 128 KiB" is max_sectors_kb 128
claim "64 requests at a time" is nr_requests 64
claim "Two hardware queues" test "$(find "/sys/block/${device#/dev/}/mq" -mindepth 1 -maxdepth 1 -type d | wc -l)" = 2
claim "A thread with an io_uring for each of them" test "$(rings_and_threads)" = "2 1"
claim "and an NVMe queue: the target has three connections" within 10 connections 3
claim "Discards of single blocks" is discard_granularity 512
claim "Discards of a gigabyte" is discard_max_bytes $((1 << 30))
claim "Zeroes are written by the target" is write_zeroes_max_bytes $((32 << 20))
claim "ublk's list has it, live, and its process" test "$("$program" --list)" = "$number live $daemon_pid 2 64 131072 $((96 << 20)) rbt"
claim "A second process does not get it" ends 1 60 "has not ended|serves it" "$program" "$memory" --recover "$number"

# --- Data -------------------------------------------------------------------------------------------------------------

device_claims "In memory, two queues"
claim "Random reads and writes of all sizes verify" verified randrw 512:64k 4 --bsrange=512-64k --ba=512
claim "ext4 on all of it" file_system "$device"

# --- Its process dies -------------------------------------------------------------------------------------------------

name=memory
killed_and_succeeded() {
	local kill before
	for ((kill = 1; kill <= 4; kill++)); do
		a_moment
		stop_daemon "$name" KILL
		[[ -b $device ]] || { echo "kill $kill: $device is gone"; return 1; }
		within 10 is_in_state quiesced || { echo "kill $kill: $(state)"; return 1; }
		before=$device name=successor-$kill
		present "$name" "$memory" --recover "$number" || return 1
		[[ $device == "$before" ]] || { echo "kill $kill: $device, not $before"; return 1; }
		goes_on || { echo "kill $kill: nothing moves"; return 1; }
	done
}
claim "Load runs" begin_load
claim "Four times killed under load, and succeeded: the same node, and it goes on" killed_and_succeeded
killed_while_taking_over() {
	local try
	stop_daemon "$name" KILL
	for ((try = 1; try <= 6; try++)); do
		"$program" "$memory" --recover "$number" >"$RBT_RIG_OUTPUT/short-$try.log" 2>&1 &
		daemon_pids[short]=$!
		sleep "$((RANDOM % 2)).$((RANDOM % 10))$((RANDOM % 10))"
		stop_daemon short KILL
	done
	name=patient
	present "$name" "$memory" --recover "$number" && goes_on
}
claim "Successors are killed while they take over, and succeeded" killed_while_taking_over
claim "The last one has as many threads and io_urings" test "$(rings_and_threads)" = "2 1"
claim "No request has failed, and everything was there" load_ends
claim "A device is not taken over for a smaller disk" ends 1 60 "made for another disk" "$program" "$file" --recover "$number"
claim "A process that leaves without removing it" stop_daemon "$name" INT
claim "leaves it to a successor, too" present last "$memory" --recover "$number"
claim "which has it" verified randwrite 4k 2
claim "SIGTERM removes it" stop_daemon last
claim "Nothing is left" nothing_left

# --- Its target dies --------------------------------------------------------------------------------------------------

claim "A file becomes a block device" present file "$file" || exit 1
claim "Its write cache and FUA are known" is write_cache "write back"
claim "FUA" is fua 1
claim "ext4 on it" file_system "$device"
killed_targets() {
	local kill target=target
	for ((kill = 1; kill <= 3; kill++)); do
		a_moment
		stop_daemon "$target" KILL
		target=target-$kill
		serve "$target" || return 1
		goes_on || { echo "kill $kill: nothing moves"; return 1; }
	done
}
claim "Load runs" begin_load
claim "Three targets killed under load and restarted: each time it goes on" killed_targets
claim "No request has failed, and everything was there" load_ends

# --- It ends otherwise ------------------------------------------------------------------------------------------------

claim "Somebody else stops and deletes it" ends 0 20 "^removed in" "$program" --remove "$number"
over() { ! running "${daemon_pids[file]}"; }
claim "Its process notices" within 10 over
claim "and says so" grep -q "was stopped by somebody else" "$RBT_RIG_OUTPUT/file.log"
claim "Nothing is left" nothing_left
claim "Once more" present dead "$file" || exit 1
claim "Load runs" begin_load
stop_daemon dead KILL
claim "A dead process's device is removed" ends 0 20 "^removed in" "$program" --remove "$number"
touch "$scratch/enough"
claim "Its users are told" fails wait "$load"
claim "Nothing is left" nothing_left

# A stopped process does not do what it was given, so STOP_DEV does not return; who wants the device gone is told in time.
told_in_time() {
	"$program" --remove "$number" 2 >"$scratch/remove" 2>&1 &
	daemon_pids[remove]=$!
	within 20 grep -q 'STOP_DEV.*has not answered within' "$scratch/remove" || { cat "$scratch/remove"; return 1; }
}
claim "Once more" present stopped "$file" || exit 1
claim "Load runs" begin_load
kill -STOP "$daemon_pid"
sleep 0.5 # until the load's requests are with it
claim "A control command that does not return is left behind, and said" told_in_time
kill -CONT "$daemon_pid"
touch "$scratch/enough"
wait "$load"
stopped_over() { ! running "${daemon_pids[stopped]}" && ! running "${daemon_pids[remove]}"; }
claim "When it goes on, both processes end" within 20 stopped_over
claim "and the device is removed" ends 0 20 "^removed in" "$program" --remove "$number"
claim "Nothing is left" nothing_left
claim "No such device" ends 1 20 "no such device" "$program" --remove "$number"

# --- On the kernel's target, and beside the kernel's host -----------------------------------------------------------------

claim "The kernel's target starts" "$source_dir/ci/rig/nvmet" start --nqn nqn.2014-08.org.example:nvmet --port 4421 --size 64M
claim "Its namespace becomes a block device" present foreign "nvme+rdma://$RBT_RIG_ADDR:4421/nqn.2014-08.org.example:nvmet/1" || exit 1
claim "Random writes of 4 KiB verify" verified randwrite 4k
claim "Sequential writes of 128 KiB verify" verified write 128k
claim "ext4 on it" file_system "$device"
claim "SIGTERM removes it" stop_daemon foreign
claim "The kernel's target stops" "$source_dir/ci/rig/nvmet" stop

iops() { # DEVICE DEPTH
	fio --name=speed --filename="$1" --direct=1 --ioengine=libaio --rw=randread --bs=4k --iodepth="$2" --time_based --runtime=1 \
		--ramp_time=0.5 --output-format=terse --terse-version=3 2>/dev/null | cut -d';' -f8
}
claim "For comparison: the kernel's host" connect_kernel_host "$RBT_RIG_ADDR" "$nqn" -i 2
kernel=$(kernel_device "$nqn" 1)
claim "and ublk on the same namespace" present beside "$memory"
for depth in 1 32; do
	note "4 KiB random reads, depth $depth, three times: kernel host, ublk: $(for _ in 1 2 3; do echo "$(iops "$kernel" $depth) $(iops "$device" $depth)"; done | xargs) IOPS"
done
claim "The kernel's host leaves" disconnect_kernel_host "$nqn"
claim "SIGTERM removes it" stop_daemon beside
claim "Nothing is left" nothing_left
claim "SIGTERM ends the target" stop_daemon target-3
umount "$scratch/disk"
claim "The kernel has not complained" fails grep -E 'Oops|BUG:|WARNING|INFO: task|general protection' <(dmesg_since)
