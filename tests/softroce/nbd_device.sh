#!/usr/bin/env bash
# A volume as /dev/nbdN, over rdma_rxe: load, discard, a file system; then the target dies, the path is away for longer than the
# kernel waits for a request, and the process behind the device is killed. Nobody who uses it may see an error.
#   ci/softroce run tests/softroce/nbd_device.sh BUILD_DIR
# shellcheck source=tests/softroce/lib.sh
source "$(dirname "$0")/lib.sh"
# shellcheck source=tests/softroce/device_steps.sh
source "$(dirname "$0")/device_steps.sh"

build=${1:?build directory}
nqn=nqn.2026-01.io.example:nbd
uri=nvme+rdma://$RBT_RIG_ADDR/$nqn/1
image=$scratch/disk/image
presenter=present
away=8 # seconds without a target: more than the kernel's time-outs (2 and 5 s)

mkdir "$scratch/disk"
mkfs.ext4 -q /dev/ram0 && mount /dev/ram0 "$scratch/disk" || bail "no file system for the image"
truncate -s 64M "$image"

serve() { # NAME
	start_daemon --name "$1" "$build/tools/rbt-target" --reactors 1 --listen "nvme+rdma://$RBT_RIG_ADDR" --subsystem "$nqn" \
		--store "file:$image"
}
present() { # NAME [WORD...]
	start_daemon --name "$1" "$build/tests/shm/present" "$uri" nbd queues=1 "${@:2}"
}
said() { grep -q -E -e "$2" "$RBT_RIG_OUTPUT/$1.log"; } # NAME REGEX
attribute() { cat "/sys/block/$nbd/$1" 2>/dev/null; }
is() { [[ $(attribute "$1") == "$2" ]] || { echo "$1 is '$(attribute "$1")', not '$2'"; return 1; }; } # ATTRIBUTE VALUE
# Writes and reads back what it wrote some writes earlier, until it is told to stop; then reads back the rest.
start_load() { # NAME
	fio --name=load --ioengine=libaio --direct=1 --verify=crc32c --verify_fatal=1 --do_verify=1 --numjobs=2 --offset_increment=16M \
		--size=8M --rw=randwrite --bs=4k --iodepth=8 --verify_backlog=64 --time_based --runtime=240 --group_reporting \
		--filename="$device" --output="$RBT_RIG_OUTPUT/nbd-$1.txt" &
	fio=$!
	within 20 moves || bail "no load"
}
moves() { local now; now=$(sectors_of "$device"); within 40 moved_on "$device" $((now + 200)); }
stop_load() { # NAME: succeeds if fio saw no error and no wrong block
	kill -TERM "$fio" # fio takes it for Ctrl-C; a background job of a script ignores that
	wait "$fio"
	grep -h -E 'IOPS|clat.*max' "$RBT_RIG_OUTPUT/nbd-$1.txt" | sed 's/^/# /' >&3
	grep -q 'err= 0:' "$RBT_RIG_OUTPUT/nbd-$1.txt"
}
exec 3>&1

dmesg_mark
claim "rbt-target says that it is ready" serve target || exit 1
claim "A device is made" present "$presenter" || exit 1
presenter_pid=$daemon_pid
device=$(grep -m 1 '^/dev/nbd' "$RBT_RIG_OUTPUT/$presenter.log")
nbd=${device#/dev/}
note "$device: $(grep queues "$RBT_RIG_OUTPUT/$presenter.log")"
uuid=$(attribute backend)
claim "It is known by a UUID" test "${uuid//[^-]/}" = ---- -a "$("$build/tests/shm/present" - list)" = \
	"$nbd pid $presenter_pid identifier $uuid size 67108864"
for expected in "size 131072" "ro 0" "queue/logical_block_size 512" "queue/write_cache write back" "queue/fua 1" \
	"queue/max_sectors_kb 256" "queue/io_timeout 2000" "pid $presenter_pid" "queue/rotational 0"; do
	claim "/sys/block: $expected" is "${expected%% *}" "${expected#* }"
done
claim "/sys/block: one hardware queue" test "$(ls "/sys/block/$nbd/mq" | wc -l)" = 1
claim "/sys/block: discard and write zeroes" test "$(attribute queue/discard_max_bytes)" -gt 0 -a \
	"$(attribute queue/write_zeroes_max_bytes)" -gt 0
claim "A second process that would recover it while the first lives is refused" \
	ends 1 30 'live connections' "$build/tests/shm/present" "$uri" nbd "recover=${nbd#nbd}"

# --- Data -------------------------------------------------------------------------------------------------------------

device_claims NBD 2
claim "1 MiB sequential writes verify, beside discards" verified write 1M 4

# --- The target dies, and the process ---------------------------------------------------------------------------------

survive() { # CONNECTIONS: with $device made by the daemon named $presenter
	local name=$1-connections began replaced
	replaced=$(dmesg_since | grep -c 'reconnected socket')
	start_load "$name"
	stop_daemon target KILL
	claim "$name: the process notices that the target was killed" within 10 said "$presenter" 'volume: lost'
	sleep "$away"
	replaced=$(($(dmesg_since | grep -c 'reconnected socket') - replaced))
	if (($1 == 1)); then
		claim "$name: the kernel has given up nothing" test "$replaced" = 0
	else
		claim "$name: the kernel has given up connections, and has been given others" test "$replaced" -ge 1
	fi
	claim "$name: the target is back after $away s" serve target
	began=$(date +%s%N)
	claim "$name: the load goes on" moves
	note "$name: first requests $((($(date +%s%N) - began) / 1000000)) ms after that; connections replaced: $replaced"
	claim "$name: fio saw no error and no wrong block" stop_load "$name"

	start_load "$name-killed"
	stop_daemon "$presenter" KILL
	began=$(date +%s%N)
	claim "$name: a successor of the killed process recovers the device" present "$presenter" "recover=${nbd#nbd}"
	note "$name: recovered after $((($(date +%s%N) - began) / 1000000)) ms"
	claim "$name: it is the same node" grep -q -x "$device" "$RBT_RIG_OUTPUT/$presenter.log"
	claim "$name: the load goes on" moves
	note "$name: load again after $((($(date +%s%N) - began) / 1000000)) ms"
	claim "$name: fio saw no error and no wrong block" stop_load "$name-killed"
	presenter_pid=$daemon_pid
}
survive 1
stop_daemon target
truncate -s 72M "$image"
claim "The image is larger" serve target
claim "The volume knows it" within 20 bash -c "until kill -USR1 $presenter_pid; [[ \$(<'/sys/block/$nbd/size') == $((72 * 2048)) ]]; do sleep 0.5; done"
claim "The device got it" is size $((72 * 2048))
claim "SIGTERM: everything is taken away, exit status 0" stop_daemon "$presenter"
claim "Nothing is left in the kernel" test "$(attribute size)" = 0 -a ! -e "/sys/block/$nbd/pid" -a -z "$("$build/tests/shm/present" - list)"
claim "The next user of the number gets the kernel's own limits" test "$(attribute queue/max_sectors_kb) $(attribute queue/io_timeout)" = \
	"1280 30000"

claim "A device with two connections is made" present "$presenter" queues=2
claim "It has the number that was free" grep -q -x "$device" "$RBT_RIG_OUTPUT/$presenter.log"
claim "/sys/block: two hardware queues" test "$(ls "/sys/block/$nbd/mq" | wc -l)" = 2
survive 2

# --- The end ----------------------------------------------------------------------------------------------------------

stop_daemon "$presenter" KILL
dd if="$device" of=/dev/null bs=4k count=1 iflag=direct status=none 2>/dev/null &
waiting=$!
sleep 1
claim "A device whose process is dead is removed, with what waits for it" ends 0 10 . "$build/tests/shm/present" - "remove=${nbd#nbd}"
claim "What waited has ended with an error" fails wait "$waiting"
claim "Nothing is left in the kernel" test "$(attribute size)" = 0 -a ! -e "/sys/block/$nbd/pid"
claim "A device is made once more" present "$presenter"
claim "Somebody disconnects it" ends 0 10 . "$build/tests/shm/present" - "remove=${nbd#nbd}"
claim "Its process says so, and ends" within 10 said "$presenter" "somebody has disconnected $device"

# --- FUSE and a loop device -------------------------------------------------------------------------------------------

modprobe -a fuse loop || bail "no fuse, or no loop"
mkdir "$scratch/run"
claim "A file by FUSE becomes a loop device" start_daemon --name fuse "$build/tests/shm/present" "$uri" fuse "directory=$scratch/run" || exit 1
device=$(grep -m 1 '^/dev/loop' "$RBT_RIG_OUTPUT/fuse.log")
nbd=${device#/dev/} # for attribute()
for expected in "size 147456" "ro 0" "queue/logical_block_size 512" "queue/write_cache write back" "loop/dio 1"; do
	claim "/sys/block: $expected" is "${expected%% *}" "${expected#* }"
done
claim "/sys/block: discard and write zeroes" test "$(attribute queue/discard_max_bytes)" -gt 0 -a \
	"$(attribute queue/write_zeroes_max_bytes)" -gt 0
device_claims FUSE 1
claim "SIGTERM: everything is taken away, exit status 0" stop_daemon fuse
claim "Nothing is left" test ! -e "/sys/block/$nbd/loop" -a -z "$(ls "$scratch/run")"
claim "SIGTERM: exit status 0" stop_daemon target
umount "$scratch/disk"
claim "The kernel says nothing but what NBD says of its connections" dmesg_clean '^EXT4-fs \(' '^dummy0 speed is unknown' \
	'^block nbd[0-9]+: ' '^ (nbd|loop)[0-9]+:( p[12])*$' '^device-mapper: ' '^(nbd|loop)[0-9]+: detected capacity change' '^I/O error, dev nbd[0-9]+' '^Buffer I/O error on dev nbd[0-9]+' \
	'^nbd_xmit_timeout: [0-9]+ callbacks' 'Dev nbd[0-9]+: unable to read RDB' 'nbd[0-9]+: unable to read partition' '^ldm_validate_partition_table\(\): Disk read failed'
