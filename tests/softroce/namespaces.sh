#!/usr/bin/env bash
# The stock kernel host while namespaces come, go and grow at the target: it hears of it by events, and sees it without
# reconnecting. COUNT namespaces (default 100) come all at once at the end.
#   ci/softroce run tests/softroce/namespaces.sh BUILD_DIR [COUNT]
# shellcheck source=tests/softroce/lib.sh
source "$(dirname "$0")/lib.sh"

build=${1:?build directory} count=${2:-100}
nqn=nqn.2026-01.io.example:disks
passes() { timeout -k 5 60 "$@"; }
truncate -s 16M "$scratch/growing"

start_serving() {
	start_ordered target "$build/tests/softroce/namespaces_target" "nvme+rdma://$RBT_RIG_ADDR" "$nqn" ram:size=64MiB "file:$scratch/growing"
}
said() { grep -q -x -e "$1" "$RBT_RIG_OUTPUT/target.log"; }
there() { kernel_device "$nqn" "$1" >/dev/null; }
missing() { ! there "$1"; }
size_is() { [[ $(blockdev --getsize64 "$1") == "$2" ]]; }

claim "The target serves two namespaces" start_serving || exit 1
dmesg_mark
connect_kernel_host "$RBT_RIG_ADDR" "$nqn" -i 2 >"$scratch/device" 2>"$scratch/connect" ||
	bail "nvme connect failed: $(<"$scratch/connect")"
main=$(within 20 kernel_device "$nqn" 1)
growing=$(within 20 kernel_device "$nqn" 2)
controller=$(kernel_controllers "$nqn")
connected_at=$(stat -c %Z "/sys/class/nvme/$controller")

# --- Under load -------------------------------------------------------------------------------------------------------

fio --name=load --filename="$main" --ioengine=libaio --direct=1 --rw=randwrite --bs=4k --iodepth=16 --verify=crc32c \
	--verify_fatal=1 --verify_backlog=128 --time_based --runtime=240 --output="$RBT_RIG_OUTPUT/load.txt" &
fio=$!
moves() { local now; now=$(sectors_of "$main"); within 20 moved_on "$main" $((now + 500)); }
moves || bail "no load"

claim "A namespace is added" order 'add ram:size=32MiB' 'added 3'
claim "The host has a block device for it" within 20 there 3
added=$(kernel_device "$nqn" 3)
claim "It has its size" within 5 size_is "$added" $((32 << 20))
claim "It can be written" passes dd if=/dev/urandom of="$added" bs=1M count=8 oflag=direct status=none
claim "It is removed while the other one is under load" order 'remove 3' 'removed 3'
claim "The target is rid of it" within 20 said 'gone 3'
claim "The block device has gone" within 20 missing 3

claim "A disk grows" passes truncate -s 48M "$scratch/growing"
claim "The target looks" order 'refresh 2' 'refreshed 2'
claim "The host's block device has grown" within 20 size_is "$growing" $((48 << 20))
claim "What is new can be written" passes dd if=/dev/urandom of="$growing" bs=1M seek=40 count=8 oflag=direct status=none

claim "The same number is another disk the next time" order 'add ram:size=24MiB' 'added 3'
claim "The host has it" within 20 there 3
claim "It has its own size" within 5 size_is "$(kernel_device "$nqn" 3)" $((24 << 20))
zeroes() { timeout -k 5 60 cmp -n $((24 << 20)) "$(kernel_device "$nqn" 3)" /dev/zero; }
claim "and nothing of its predecessor's" zeroes

moves || bail "the load has stopped"
kill -TERM "$fio" # fio takes it for Ctrl-C
wait "$fio"
claim "fio saw no error and no wrong block" grep -q 'err= 0:' "$RBT_RIG_OUTPUT/load.txt"

# --- Many -------------------------------------------------------------------------------------------------------------

started=$EPOCHREALTIME
for ((number = 0; number < count; number++)); do echo 'add ram:size=1MiB'; done >&"$orders"
claim "$count more are added" within $((60 + count / 5)) said "added $((count + 3))"
note "$count added: $(bc <<<"$EPOCHREALTIME - $started") s"
claim "The host has block devices for all of them" within $((120 + count / 5)) there $((count + 3))
note "the last one is there: $(bc <<<"$EPOCHREALTIME - $started") s; the target: $(rss_of "$daemon_pid") KiB"
claim "nvme list-ns lists them" ends 0 20 "^\[ *$((count + 2))\]:0x$(printf %x $((count + 3)))" nvme list-ns "/dev/$controller"
claim "It was one connection all the time" test "$connected_at" = "$(stat -c %Z "/sys/class/nvme/$controller")"
claim "The kernel says what it says of clean runs" dmesg_clean ': rescanning namespaces\.$' \
	': detected capacity change from ' '^dummy0 speed is unknown, defaulting to 1000$'
claim "disconnect" disconnect_kernel_host "$nqn"
started=$EPOCHREALTIME
claim "A host that connects now finds all of them" connect_kernel_host "$RBT_RIG_ADDR" "$nqn" -i 2
claim "up to the last" within 120 there $((count + 3))
note "connect with $((count + 3)) namespaces: $(bc <<<"$EPOCHREALTIME - $started") s"
claim "disconnect again" disconnect_kernel_host "$nqn"
exec {orders}>&-
ended() { ! running "$daemon_pid"; }
claim "The target ends with its input" within 20 ended
wait "$daemon_pid"
claim "and well" test $? = 0
