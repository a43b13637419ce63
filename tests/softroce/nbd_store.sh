#!/usr/bin/env bash
# The stock kernel host on a qcow2 image that rbt-target serves through qemu-nbd, which is killed and comes back.
#   ci/softroce run tests/softroce/nbd_store.sh BUILD_DIR
# shellcheck source=tests/softroce/lib.sh
source "$(dirname "$0")/lib.sh"

build=${1:?build directory}
nqn=nqn.2026-01.io.example:qcow2
image=$scratch/disk/image.qcow2 socket=$scratch/nbd.sock
kills=3

mkdir "$scratch/disk"
mkfs.ext4 -q /dev/ram0 && mount /dev/ram0 "$scratch/disk" || bail "no file system for the image"
qemu-img create -q -f qcow2 "$image" 64M || bail "no image"

serve_nbd() { # NAME
	rm -f "$socket"
	start_daemon --name "$1" --ready 'ready' bash -c 'echo ready; exec "$@"' - \
		qemu-nbd -t -e 4 -f qcow2 --discard=unmap -k "$socket" "$image"
	within 20 nbdinfo --size "nbd+unix:///?socket=$socket"
}
moves() { local now; now=$(sectors_of "$device"); within 30 moved_on "$device" $((now + 1000)); }
lost() { (($(grep -c 'is lost' "$RBT_RIG_OUTPUT/target.log") >= $1)); }
back() { (($(grep -c 'connected to the server again' "$RBT_RIG_OUTPUT/target.log") >= $1)); }
reads_as_zeroes() { # DEVICE MIB-OFFSET MIB
	cmp -n $(($3 << 20)) <(dd if="$1" bs=1M skip="$2" count="$3" iflag=direct status=none) /dev/zero
}

dmesg_mark
claim "qemu-nbd serves a new qcow2 image" serve_nbd qemu-nbd-0 || exit 1
claim "rbt-target says that it is ready" start_daemon --name target "$build/tools/rbt-target" --reactors 2 \
	--listen "nvme+rdma://$RBT_RIG_ADDR" --subsystem "$nqn" --store "nbd:nbd+unix:///?socket=$socket" || exit 1
connect_kernel_host "$RBT_RIG_ADDR" "$nqn" -i 2 >"$scratch/device" 2>"$scratch/connect" ||
	bail "nvme connect failed: $(<"$scratch/connect")"
device=$(<"$scratch/device")
claim "The disk is as large as the image, and has no write cache" test \
	"$(blockdev --getsize64 "$device") $(<"/sys/block/${device#/dev/}/queue/write_cache")" = "67108864 write through"

# Writes and reads back what it wrote some hundred writes earlier, until it is told to stop; then reads back the rest.
fio --name=load --ioengine=libaio --direct=1 --verify=crc32c --verify_fatal=1 --do_verify=1 --numjobs=2 --offset_increment=16M \
	--size=8M --rw=randwrite --bs=4k --iodepth=16 --verify_backlog=128 --time_based --runtime=240 --group_reporting \
	--filename="$device" --output="$RBT_RIG_OUTPUT/nbd-fio.txt" &
fio=$!
for ((number = 1; number <= kills; number++)); do
	moves || bail "no load to kill qemu-nbd under"
	stop_daemon "qemu-nbd-$((number - 1))" KILL
	claim "rbt-target notices that qemu-nbd was killed, number $number" within 10 lost "$number"
	claim "qemu-nbd comes back" serve_nbd "qemu-nbd-$number"
	claim "rbt-target finds it again" within 10 back "$number"
	claim "The load goes on" moves
done
kill -TERM "$fio" # fio takes it for Ctrl-C; a background job of a script ignores that
wait "$fio"
claim "fio saw no error and no wrong block" grep -q 'err= 0:' "$RBT_RIG_OUTPUT/nbd-fio.txt"
grep -h -E 'IOPS|clat.*max' "$RBT_RIG_OUTPUT/nbd-fio.txt" | sed 's/^/# /'

claim "A pass of writes reads back with its checksums" timeout -k 5 60 fio --name=pass --ioengine=libaio --direct=1 \
	--verify=crc32c --verify_fatal=1 --do_verify=1 --offset=32M --size=4M --rw=write --bs=128k --iodepth=4 --filename="$device"
claim "blkdiscard" timeout -k 5 30 blkdiscard -o 32M -l 4M "$device"
claim "blkdiscard -z: write zeroes" timeout -k 5 30 blkdiscard -z -o 40M -l 4M "$device"
claim "The zeroed range reads as zeroes" reads_as_zeroes "$device" 40 4
claim "disconnect" disconnect_kernel_host "$nqn"
claim "SIGTERM: exit status 0" stop_daemon target
stop_daemon "qemu-nbd-$kills"
claim "qemu-img finds nothing wrong with the image but what a killed qemu leaves behind (leaked clusters)" \
	ends 0 30 'No errors|leaked clusters' bash -c 'qemu-img check -f qcow2 "$1"; (($? == 0 || $? == 3))' - "$image"
umount "$scratch/disk"
claim "The kernel says what it says of clean runs" dmesg_clean '^EXT4-fs \(' '^dummy0 speed is unknown, defaulting to 1000$'
