#!/usr/bin/env bash
# The stock kernel host with two paths to one disk, of which the target says what can be done by them: it goes where it can.
# Then the same kernel as two hosts that reserve the disk.
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

# --- Two hosts that share the disk ------------------------------------------------------------------------------------

dmesg_mark
uuid_of() { echo "11111111-2222-3333-4444-55555555555$1"; } # HOST
connect_as() { # HOST PORT
	timeout -k 5 90 nvme connect -t rdma -a "$RBT_RIG_ADDR" -s "$2" -n "$nqn" -i 1 \
		--hostnqn "nqn.2014-08.org.nvmexpress:uuid:$(uuid_of "$1")" --hostid "$(uuid_of "$1")"
}
has_namespace() { compgen -G "/sys/class/nvme/$1/nvme*n1" >/dev/null; } # CONTROLLER
controller_of() { # HOST
	local controller
	for controller in $(kernel_controllers "$nqn"); do
		[[ $(<"/sys/class/nvme/$controller/hostid") == "$(uuid_of "$1")" ]] && echo "$controller"
	done
}
# By the controller's own device: the disk's would go by either host.
reserve() { # HOST VERB OPTION...
	timeout -k 5 20 nvme "resv-$2" "/dev/$(controller_of "$1")" -n 1 "${@:3}"
}
writes() { # HOST
	timeout -k 5 20 nvme io-passthru "/dev/$(controller_of "$1")" --opcode=1 --namespace-id=1 --data-len=512 --write \
		--input-file=/dev/zero
}
conflicts() { ! "$@" >"$scratch/conflict" 2>&1 && grep -q -i 'reservation.conflict' "$scratch/conflict"; }
reports() { [[ $(reserve "$1" report -e | tr -s ' \t' ' ' | grep -E "^ *($2) ?:" | tr -d ' ' | xargs) == "$3" ]]; } # HOST FIELDS TEXT

claim "Both ports are optimized" set_access $two optimized
claim "Host 1 connects" connect_as 1 $one
claim "Host 2 connects" connect_as 2 $two
first=$(controller_of 1) second=$(controller_of 2)
claim "Host 1 has the disk" within 20 has_namespace "$first"
claim "Host 2 has the disk" within 20 has_namespace "$second"
claim "nvme resv-register" reserve 1 register --nrkey=0x11 --rrega=0
claim "nvme resv-register: the other host" reserve 2 register --nrkey=0x22 --rrega=0
claim "nvme resv-acquire" reserve 1 acquire --crkey=0x11 --rtype=1 --racqa=0
claim "nvme resv-report" reports 2 'gen|rtype|regctl' 'gen:2 rtype:1 regctl:2'
claim "The host that holds it writes" writes 1
claim "The other one does not" conflicts writes 2
claim "nor does it get it" conflicts reserve 2 acquire --crkey=0x22 --rtype=1 --racqa=0
claim "It preempts and aborts" reserve 2 acquire --crkey=0x22 --prkey=0x11 --rtype=1 --racqa=2
claim "Now it writes" writes 2
claim "and the first one does not" conflicts writes 1
claim "nor is it registered any more" conflicts reserve 1 release --crkey=0x11 --rtype=1 --rrela=0
claim "nvme resv-release" reserve 2 release --crkey=0x22 --rtype=1 --rrela=0
claim "Whoever wants to, writes" writes 1
claim "Who has registered clears" reserve 2 release --crkey=0x22 --rrela=1
claim "and nothing is left" reports 1 'rtype|regctl' 'rtype:0 regctl:0'
claim "nvme format" timeout -k 5 60 nvme format "/dev/$(controller_of 1)" --namespace-id=1 --lbaf=0 --ses=1 --force
is_zero() { timeout -k 5 60 cmp -n $((64 << 20)) "$(kernel_device "$nqn" 1)" /dev/zero; }
claim "Nothing is left of what was written" within 20 is_zero
claim "The kernel says what it says of clean runs, and of commands by this way" dmesg_clean ': using deprecated NVME_IOCTL_IO_CMD ioctl' \
	': rescanning namespaces\.$' \
	'^dummy0 speed is unknown, defaulting to 1000$'
claim "Both disconnect" disconnect_kernel_host "$nqn"
exec {orders}>&-
ended() { ! running "$daemon_pid"; }
claim "The target ends with its input" within 20 ended
wait "$daemon_pid"
claim "and well" test $? = 0
