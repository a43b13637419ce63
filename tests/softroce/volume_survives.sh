#!/usr/bin/env bash
# A block device whose target is killed, whose packets are lost and whose RDMA device is removed, under load that verifies: its users
# see latency and no error. And one that carries the pages of a machine without memory, and is idle after that.
#   ci/softroce run --topology veth tests/softroce/volume_survives.sh BUILD_DIR
# shellcheck source=tests/softroce/lib.sh
source "$(dirname "$0")/lib.sh"
# shellcheck source=ci/rig/network
source "$source_dir/ci/rig/network"

build=${1:?build directory}
nqn=nqn.2026-01.io.example:disk
near=nvme+rdma://$RBT_RIG_ADDR far=nvme+rdma://10.1.2.1 # within one device; from rx1 over the veth pair to rx2
back_within_ms=2000      # from "ready" of a target that was killed to the first I/O
outage=20                # seconds
idle=60                  # seconds: several keep-alives
limit_mib=64             # of the memory that has four times as many dirty pages to write
RANDOM=${RBT_SEED:=$RANDOM}
note "RBT_SEED=$RBT_SEED"
[[ $RBT_RIG_TOPOLOGY == veth ]] || bail "this test wants --topology veth"

serve() { # NAME URI IMAGE
	start_daemon --name "$1" "$build/tools/rbt-target" --listen "$2" --subsystem "$nqn" --store "file:$scratch/disk/$3"
}
a_moment() { sleep "0.$((RANDOM % 10))$((RANDOM % 10))"; } # the random moment of a kill
said() { grep -q -E "$2" "$RBT_RIG_OUTPUT/$1.log"; }      # NAME REGEX

dmesg_mark
mkdir "$scratch/disk" "$scratch/mounted"
mkfs.ext4 -q /dev/ram0 || bail "no file system for the files to serve"
mount /dev/ram0 "$scratch/disk" || bail "it does not mount"
truncate -s 32M "$scratch/disk/image" && truncate -s 340M "$scratch/disk/large"
claim "A target" serve target "$far" image || exit 1
claim "Its namespace is mapped" map_volume "$build" volume "$far/$nqn/1" || exit 1
volume=$device
claim "Another target" serve beside "$near" large || exit 1
claim "Its namespace is mapped, too" map_volume "$build" large "$near/$nqn/1" || exit 1
large=$device

# --- Without memory ---------------------------------------------------------------------------------------------------

group=/sys/fs/cgroup/rbt-test
limited() { # COMMAND...: in the group
	bash -c 'echo $$ >"$0/cgroup.procs" && exec "$@"' "$group" "$@"
}
file_system() {
	mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 "$large" && mount "$large" "$scratch/mounted"
}
# Dirty pages belong to who has written them.
written() {
	local number
	for number in 1 2 3 4; do
		limited timeout -k 5 100 dd if="$scratch/pages" of="$scratch/mounted/$number" bs=1M status=none || return 1
	done
	limited timeout -k 5 100 sync -f "$scratch/mounted"
}
there() {
	local number
	for number in 1 2 3 4; do cmp "$scratch/pages" "$scratch/mounted/$number" || return 1; done
}
idle_since() { # SECONDS, COMPLETED
	count_completed "$large"
	((completed == $2)) || { echo "$((completed - $2)) I/Os since"; return 1; }
	((SECONDS >= $1 + idle)) || sleep $(($1 + idle - SECONDS))
}
echo "+memory +io" >/sys/fs/cgroup/cgroup.subtree_control
mkdir "$group" || bail "no control group"
echo ${limit_mib}M >"$group/memory.max" || bail "no limit to its memory"
# What is dirty on the whole machine is held below the limit, and the rest of it is clean pages. Seen without that, twice in three runs: a
# group full of dirty pages of which none was being written yet, and its writer killed.
echo $((limit_mib / 2 << 20)) >/proc/sys/vm/dirty_bytes
echo $((limit_mib / 8 << 20)) >/proc/sys/vm/dirty_background_bytes
head -c ${limit_mib}M /dev/urandom >"$scratch/pages"
claim "ext4 on it" file_system
claim "Four times the memory that a group of processes has, through the page cache: it is written" written
reached=$(awk '$1 == "max" { print $2 }' "$group/memory.events")
note "the limit was reached $reached times"
echo 20 >/proc/sys/vm/dirty_ratio
echo 10 >/proc/sys/vm/dirty_background_ratio
claim "The memory was not enough" test "$reached" -gt 0
claim "Nobody was killed for it" grep -q -x 'oom_kill 0' "$group/memory.events"
echo 3 >/proc/sys/vm/drop_caches
sync -f "$scratch/mounted"
count_completed "$large"
large_idle_since=$SECONDS large_completed=$completed

# --- The target is killed ---------------------------------------------------------------------------------------------

target=target
# How long the target takes to start says how busy the machine is.
killed_targets() {
	local kill begun ready
	for ((kill = 1; kill <= 10; kill++)); do
		a_moment
		stop_daemon "$target" KILL
		target=target-$kill begun=$EPOCHREALTIME
		serve "$target" "$far" image || return 1
		ready=$EPOCHREALTIME
		count_completed "$volume" # now: answers may have come as it died
		wait_completed "$volume" "$completed" "$ready" 60 || { echo "kill $kill"; return 1; }
		started_ms=$(((${ready/./} - ${begun/./}) / 1000))
		times+=" $started_ms+$waited_ms"
		((waited_ms <= back_within_ms || waited_ms <= 4 * started_ms)) || slow+=" $waited_ms"
	done
}
times='' slow=''
claim "Load runs" begin_load "$volume"
claim "Ten targets killed at any moment and started again: each time it goes on" killed_targets
note "to \"ready\", and from there to the first I/O:$times ms"
claim "each time within $back_within_ms ms of \"ready\", or what that is on a busy machine" test -z "$slow"

# --- Nothing comes through --------------------------------------------------------------------------------------------

# Dropped where it arrives, so that nobody is told, as by a real wire: the sender hears of what netem drops, and the connection manager
# of a neighbour whose address changes.
cut_wire() {
	local link
	for link in v1 v2; do
		tc qdisc add dev "$link" ingress || return 1
		tc filter add dev "$link" ingress protocol ip u32 match ip protocol 17 0xff match ip dport 4791 0xffff action drop || return 1
	done
}
join_wire() {
	local link
	for link in v1 v2; do tc qdisc del dev "$link" ingress || return 1; done
}
nothing_comes_through() {
	local before
	cut_wire || return 1
	sleep 2 # what was on its way
	count_completed "$volume"
	before=$completed
	sleep $((outage - 2))
	count_completed "$volume"
	((completed == before)) || { echo "$((completed - before)) I/Os while nothing came through"; return 1; }
	join_wire || return 1
	wait_completed "$volume" "$before" "$EPOCHREALTIME" 60
}
claim "Nothing comes through for $outage s, and then it goes on" nothing_comes_through
note "$waited_ms ms after the end of the outage"
claim "No request has failed, and everything is there" load_ends
note "$(<"$scratch/passes") passes"

# --- Idle -------------------------------------------------------------------------------------------------------------

claim "The other volume has been idle for $idle s" idle_since $large_idle_since "$large_completed"
claim "What was written is there" there
claim "umount" umount "$scratch/mounted"
claim "fsck finds nothing" timeout -k 5 60 e2fsck -fn "$large"
claim "It has never lost its target" fails said large ' lost'
claim "It goes" unmap_volume "$build" large
claim "Its target goes" stop_daemon beside

# --- The RDMA device is removed ---------------------------------------------------------------------------------------

# rdma_rxe lets a device go when no process has it open any more: not the volume's, and not the target's. Their successors find it
# made anew.
device_is_removed() {
	local link
	timeout -k 5 60 rdma link del rx1 &
	link=$!
	within 10 said volume 'removed' || return 1
	stop_daemon volume KILL
	stop_daemon "$target" KILL
	wait "$link" || { echo "the device is still there"; return 1; }
	count_completed "$volume"
	rxe_on rx1 v1 10.1.1.1
}
device=$volume
claim "Load runs" begin_load "$volume"
claim "The RDMA device is removed and made again" device_is_removed
removed_completed=$completed
claim "A target" serve last "$far" image
claim "The volume's successor has the device" recover_volume "$build" volume "$far/$nqn/1"
claim "It is the same one" test "$device" = "$volume"
claim "and it goes on" wait_completed "$volume" "$removed_completed" "$EPOCHREALTIME" 60
claim "No request has failed, and everything is there" load_ends
note "$(<"$scratch/passes") passes"
claim "It goes" unmap_volume "$build" volume
claim "Its target goes" stop_daemon last
claim "No I/O has failed" fails grep -E 'I/O error|Buffer I/O|EXT4-fs error|critical' <(dmesg_since)
claim "The kernel has not complained" fails grep -E 'Oops|BUG:|WARNING|INFO: task|general protection' <(dmesg_since)
umount "$scratch/disk"
