#!/usr/bin/env bash
# Proves the rig with the kernel on both ends: whoever fails here, it is not rbt.
#   ci/softroce run tests/softroce/peers.sh
# shellcheck source=tests/softroce/lib.sh
source "$(dirname "$0")/lib.sh"

nqn=nqn.2014-08.org.example:peers
nvmet() { "$source_dir/ci/rig/nvmet" "$@"; }

load() { # DEVICE: two jobs on two cores, so that both queues work
	timeout -k 5 300 fio --name=peers --filename="$1" --rw=randwrite --bs=4k --ioengine=libaio --direct=1 --iodepth=32 \
		--numjobs=2 --offset_increment=16M --size=16M --cpus_allowed=0,1 --cpus_allowed_policy=split \
		--verify=crc32c --verify_fatal=1 --do_verify=1 --group_reporting --output="$RBT_RIG_OUTPUT/peers-fio.txt"
}
same_4k() { # DEVICE DEVICE
	cmp <(dd if="$1" bs=4k count=1 iflag=direct status=none) <(dd if="$2" bs=4k count=1 iflag=direct status=none)
}

dmesg_mark
head -c 4096 /dev/urandom >/dev/ram0 || bail "no RAM disk"
claim "The kernel's target starts on a RAM disk" nvmet start --nqn "$nqn" --size brd
device=$(connect_kernel_host "$RBT_RIG_ADDR" "$nqn" -i 2) || bail "The kernel's host does not connect"
claim "The namespace is as large as the RAM disk" \
	test "$(blockdev --getsize64 "$device")" = "$(blockdev --getsize64 /dev/ram0)"
controller=$(kernel_controllers "$nqn")
claim "The host has an admin queue and two I/O queues" test "$(<"/sys/class/nvme/$controller/queue_count")" = 3
claim "4 KiB read past the page cache are the RAM disk's" same_4k "$device" /dev/ram0
claim "4 KiB random writes at depth 32 on two queues read back with their checksums" load "$device"
grep -E 'IOPS|bw=' "$RBT_RIG_OUTPUT/peers-fio.txt" | sed 's/^/# /'
claim "What was written is on the RAM disk" cmp -n $((32 << 20)) "$device" /dev/ram0
fio --name=reset --filename="$device" --rw=randwrite --bs=4k --ioengine=libaio --direct=1 --iodepth=32 --size=16M \
	--time_based --runtime=120 --output="$RBT_RIG_OUTPUT/peers-reset.txt" &
fio=$!
sectors=$(sectors_of "$device")
within 30 moved_on "$device" $((sectors + 1000)) || bail "no load to reset under"
claim "A reset under load" timeout -k 5 60 nvme reset "/dev/$controller"
kill -TERM "$fio" # fio takes it for Ctrl-C
wait "$fio"
claim "The load saw no error" grep -q 'err= 0:' "$RBT_RIG_OUTPUT/peers-reset.txt"
claim "The host disconnects" disconnect_kernel_host "$nqn"
claim "The target is taken apart" nvmet stop
sleep 1 # its queues are freed by a work queue
claim "The kernel says what it says of clean runs" dmesg_clean
dmesg_since >"$RBT_RIG_OUTPUT/peers-dmesg.txt"
