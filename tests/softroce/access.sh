#!/usr/bin/env bash
# The stock kernel host with two paths to one disk, of which the target says what can be done by them: it goes where it can.
#   ci/softroce run tests/softroce/access.sh BUILD_DIR
# shellcheck source=tests/softroce/lib.sh
source "$(dirname "$0")/lib.sh"

build=${1:?build directory}
nqn=nqn.2026-01.io.example:disk
one=4420 two=4421

start_serving() {
	start_ordered target "$build/tests/softroce/namespaces_target" \
		"nvme+rdma://$RBT_RIG_ADDR:$one,nvme+rdma://$RBT_RIG_ADDR:$two" "$nqn" ram:size=64MiB
}
set_access() { order "access $1 $2" "access $1 $2"; } # PORT STATE
path() { # PORT: where sysfs has the namespace as it is by way of that port
	local controller
	for controller in $(kernel_controllers "$nqn"); do
		grep -q "trsvcid=$1" "/sys/class/nvme/$controller/address" || continue
		echo "/sys/class/nvme/$controller/nvme"*c*n1
		return
	done
}
access_is() { [[ $(<"$(path "$1")/ana_state") == "$2" ]]; } # PORT STATE
done_by() { awk '{ print $3 + $7 }' "$(path "$1")/stat"; }   # PORT: sectors
done_more() { (($(done_by "$1") > $2)); }
works() { local now; now=$(done_by "$1"); within 20 done_more "$1" $((now + 200)); } # PORT

claim "The target serves one disk at two ports" start_serving || exit 1
dmesg_mark
connect_kernel_host "$RBT_RIG_ADDR" "$nqn" -i 2 >"$scratch/device" 2>"$scratch/connect" ||
	bail "nvme connect failed: $(<"$scratch/connect")"
device=$(<"$scratch/device")
claim "The host connects to the other port, too" timeout -k 5 90 nvme connect -t rdma -a "$RBT_RIG_ADDR" -s "$two" -n "$nqn" -i 2
two_paths() { [[ -e $(path $one)/ana_state && -e $(path $two)/ana_state ]]; }
claim "It has two paths to one disk" within 20 two_paths
claim "Both are optimized" access_is $one optimized
claim "Both are optimized: the other" within 5 access_is $two optimized

fio --name=load --filename="$device" --ioengine=libaio --direct=1 --rw=randwrite --bs=4k --iodepth=16 --verify=crc32c \
	--verify_fatal=1 --verify_backlog=128 --time_based --runtime=240 --output="$RBT_RIG_OUTPUT/load.txt" &
fio=$!
moves() { local now; now=$(sectors_of "$device"); within 20 moved_on "$device" $((now + 500)); }
moves || bail "no load"

claim "The first path becomes inaccessible under load" set_access $one inaccessible
claim "The host hears of it" within 10 access_is $one inaccessible
claim "The load goes on by the other one" works $two
claim "The first becomes non-optimized, the other inaccessible" set_access $one non-optimized
claim "and then inaccessible" set_access $two inaccessible
claim "The host hears of both" within 10 access_is $two inaccessible
claim "The load goes on by the first" works $one
claim "The other is optimized again" set_access $two optimized
claim "The host hears of that" within 10 access_is $two optimized
claim "The host prefers it" works $two
claim "For a while there is no way at all" set_access $two change
claim "nor by the first" set_access $one inaccessible
sleep 2 # the while
claim "The first is optimized again" set_access $one optimized
claim "The load goes on" works $one

kill -TERM "$fio" # fio takes it for Ctrl-C
wait "$fio"
claim "fio saw no error and no wrong block" grep -q 'err= 0:' "$RBT_RIG_OUTPUT/load.txt"
claim "The kernel says what it says of clean runs, and what it hears" dmesg_clean ': ANA group 1: ' \
	': no usable path - requeuing I/O$' '^dummy0 speed is unknown, defaulting to 1000$'
claim "disconnect" disconnect_kernel_host "$nqn"
exec {orders}>&-
ended() { ! running "$daemon_pid"; }
claim "The target ends with its input" within 20 ended
wait "$daemon_pid"
claim "and well" test $? = 0
