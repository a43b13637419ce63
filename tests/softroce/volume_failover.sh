#!/usr/bin/env bash
# Two paths to one disk, of which now this and now that is lost with its listener, under load that verifies.
#   ci/softroce run --topology veth tests/softroce/volume_failover.sh BUILD_DIR
# shellcheck source=tests/softroce/lib.sh
source "$(dirname "$0")/lib.sh"
# shellcheck source=ci/rig/network
source "$source_dir/ci/rig/network"

build=${1:?build directory}
nqn=nqn.2026-01.io.example:disk
near=nvme+rdma://$RBT_RIG_ADDR far=nvme+rdma://10.1.2.1 # within one device; from rx1 over the veth pair to rx2
failovers=20
[[ $RBT_RIG_TOPOLOGY == veth ]] || bail "this test wants --topology veth"

count_of() { grep -c -E "$2" "$RBT_RIG_OUTPUT/$1.log"; } # NAME REGEX
counts() { (($(count_of "$1" "$2") >= $3)); }             # NAME REGEX COUNT
open_again() { echo "listener nvme.rdma://$1[:/].*hosts can connect there again"; }
lost() { echo "nvme.rdma://$1/.*the path is lost"; }

# An address of the target's goes: its listener, and the connections. Over the wire the host would hear of it only when its retries
# have run out: its own goes, too.
take() {
	case $1 in
	"$RBT_RIG_ADDR") ip address del "$1/24" dev dummy0 ;;
	10.1.2.1) ip address del "$1/32" dev v2 && ip address del 10.1.1.1/32 dev v1 ;;
	esac
}
give() {
	case $1 in
	"$RBT_RIG_ADDR") ip address add "$1/24" dev dummy0 ;;
	10.1.2.1) ip address add "$1/32" dev v2 && ip address add 10.1.1.1/32 dev v1 && veth_routes ;;
	esac
}
alternating() {
	local number path=$RBT_RIG_ADDR other=10.1.2.1 began
	for ((number = 1; number <= failovers; number++)); do
		began=$EPOCHREALTIME
		take "$path" || return 1
		within 30 counts volume "$(lost "$path")" $(((number + 1) / 2)) || { echo "failover $number: $path is not lost"; return 1; }
		count_completed "$device"
		wait_completed "$device" "$completed" "$began" 60 || { echo "failover $number: nothing goes over $other"; return 1; }
		times+=" $waited_ms"
		give "$path" || return 1
		within 30 counts target "$(open_again "$path")" $(((number + 1) / 2)) || { echo "failover $number: nobody listens at $path"; return 1; }
		read -r path other <<<"$other $path"
	done
}

dmesg_mark
mkdir "$scratch/disk"
mkfs.ext4 -q /dev/ram0 || bail "no file system for the file to serve"
mount /dev/ram0 "$scratch/disk" || bail "it does not mount"
truncate -s 32M "$scratch/disk/image"
claim "A target with two listeners" start_daemon --name target "$build/tools/rbt-target" --listen "$near" --listen "$far" \
	--subsystem "$nqn" --store "file:$scratch/disk/image" || exit 1
claim "One disk, two paths" map_volume "$build" volume "$near/$nqn/1" "$far/$nqn/1" || exit 1
times=''
claim "Load runs" begin_load "$device"
claim "$failovers times the path that is used is lost with its listener: each time it goes on over the other one" alternating
note "from the loss to the first I/O:$times ms"
claim "No request has failed, and everything is there" load_ends
note "$(<"$scratch/passes") passes"
claim "It goes" unmap_volume "$build" volume
claim "Every loss was one failover" test "$(count_of volume 'the path is lost') $(count_of volume 'live again')" = "$failovers $failovers"
claim "No I/O has failed" fails grep -E 'I/O error|Buffer I/O|critical' <(dmesg_since)
claim "The kernel has not complained" fails grep -E 'Oops|BUG:|WARNING|INFO: task|general protection' <(dmesg_since)
claim "The target goes" stop_daemon target
umount "$scratch/disk"
