#!/usr/bin/env bash
# rbt at both ends, over rxe: data, refusals, either side killed, stopped or cut off in the middle, a lossy wire.
#   ci/softroce run --topology veth tests/softroce/rbt_both.sh BUILD_DIR
# shellcheck source=tests/softroce/lib.sh
source "$(dirname "$0")/lib.sh"
# shellcheck source=ci/rig/network
source "$source_dir/ci/rig/network"

tools=${1:?build directory}/tools
nqn=nqn.2026-01.io.example:both
near=nvme+rdma://$RBT_RIG_ADDR far=nvme+rdma://10.1.2.1 # within one device; from rx1 over the veth pair to rx2
keep_alive=6                                            # KATO of those hosts that are to be given up, seconds
RANDOM=${RBT_SEED:=$RANDOM}
note "RBT_SEED=$RBT_SEED"
[[ $RBT_RIG_TOPOLOGY == veth ]] || bail "this test wants --topology veth"

serve() { # NAME: NSID 1 in memory, NSID 2 a file on ext4
	start_daemon --name "$1" "$tools/rbt-target" --log-level debug --reactors 2 --listen "$near" --listen "$far" \
		--listen nvme+rdma://0.0.0.0:4422 \
		--subsystem "$nqn" --store ram:size=64MiB --store "file:$scratch/disk/image" \
		--subsystem "$nqn-private" --allow-host nqn.2026-01.io.example:somebody --store ram:size=1MiB
	target=$daemon_pid
}
# What the kernel holds of RDMA for the target: the only thing that grows with a connection which nobody ended. It names
# threads, not processes.
count_of() { rdma resource show "$1" | grep 'comm rbt-target' | grep -c -E "^(dev|link) ${2:-}"; } # qp|cq|mr|srq|cm_id [DEVICE]
resources_of() { # PID
	local kind
	for kind in qp cq mr srq cm_id; do printf '%s %s ' "$kind" "$(count_of "$kind")"; done
	echo "fd $(fds_of "$1")"
}
connections() { (($(count_of qp "${2:-}") == $1)); } # COUNT [DEVICE]
back_to() { [[ $(resources_of "$target") == "$1" ]]; }
verified() { # URI RW BS [OPTION...]
	timeout -k 5 60 "$tools/rbt-perf" "$1" --rw "$2" --bs "$3" --verify --size 16MiB --runtime 1 "${@:4}" | tee "$scratch/perf"
	grep -q 'blocks read back and right' "$scratch/perf"
}
# Load in the background; returns when both its queues are connected.
start_load() { # URI [SECONDS]
	"$tools/rbt-perf" "$1" --rw randrw --bs 4k --iodepth 16 --size 16MiB --runtime "${2:-100}" >"$scratch/load" 2>&1 &
	load=$!
	within 20 connections 2
}
load_is_over() { ! running "$load"; }
# The exit status of the load, when it ends within that time.
load_ends() { # SECONDS STATUS...
	local status=0 wanted
	within "$1" load_is_over || { echo "still running after $1 s"; kill -KILL "$load"; wait "$load"; return 1; }
	wait "$load" || status=$?
	cat "$scratch/load"
	for wanted in "${@:2}"; do ((status == wanted)) && return 0; done
	echo "exit status $status"
	return 1
}
# A copy that waits for more than it gets, once it has got 8 MiB, which is what it keeps in flight; sets copy.
start_copy_of_a_pipe() { # URI OUTPUT
	rm -f "$scratch/pipe"
	mkfifo "$scratch/pipe"
	exec 9<>"$scratch/pipe"
	"$tools/rbt-connect" copy --on-loss fail - "$1" <"$scratch/pipe" >"$2" 2>&1 8>&- 9>&- &
	copy=$!
	cat "$scratch/there" >&9
}
arrived() { cmp -s -n $((1 << 20)) "$scratch/there" "$scratch/disk/$1"; } # FILE
a_moment() { sleep "0.$((RANDOM % 4))$((RANDOM % 10))"; } # the random moment of a kill

mkdir "$scratch/disk"
mkfs.ext4 -q /dev/ram0 || bail "no file system"
mount /dev/ram0 "$scratch/disk" || bail "the file system does not mount"
truncate -s 64M "$scratch/disk/image" "$scratch/disk/silent"
claim "rbt-target listens on two RDMA devices" serve target || exit 1

# --- Data -------------------------------------------------------------------------------------------------------------

claim "discover" ends 0 10 "^$nqn +rdma +$RBT_RIG_ADDR +4420 " "$tools/rbt-connect" discover "$near"
for address in "$RBT_RIG_ADDR" 10.1.2.1; do
	claim "discover through $address at a target that listens everywhere gives that address" ends 0 10 \
		"^$nqn +rdma +${address//./\\.} +4422 " "$tools/rbt-connect" discover "nvme+rdma://$address:4422"
done
claim "info" ends 0 10 '^2 +64 MiB ' "$tools/rbt-connect" info "$near/$nqn"
claim "4 KiB random writes verify" verified "$near/$nqn/1" randwrite 4k
claim "4 KiB random reads and writes on two queues verify, to a file" verified "$near/$nqn/2" randrw 4k --numjobs 2
claim "128 KiB random reads and writes on two queues verify" verified "$near/$nqn/1" randrw 128k --iodepth 8 --numjobs 2
claim "1 MiB random writes verify, to a file" verified "$near/$nqn/2" randwrite 1M --iodepth 4
head -c 8M /dev/urandom >"$scratch/there"
claim "A disk image is copied in and read back" ends 0 60 '8 MiB read back and right' \
	"$tools/rbt-connect" copy --verify "$scratch/there" "$near/$nqn/2"
claim "The served file has it" cmp -n $((8 << 20)) "$scratch/there" "$scratch/disk/image"
claim "From one disk of the target to the other" ends 0 60 ' copied in ' \
	"$tools/rbt-connect" copy "$near/$nqn/2" "$near/$nqn/1"
claim "A disk is copied out" ends 0 60 ' copied in ' "$tools/rbt-connect" copy "$near/$nqn/1" "$scratch/back"
claim "What comes out is what went in" cmp -n $((8 << 20)) "$scratch/there" "$scratch/back"

# --- Refusals ---------------------------------------------------------------------------------------------------------

refused() { # STATUS REGEX LISTEN-URI
	ends "$1" 10 "$2" "$tools/rbt-target" --listen "$3" --subsystem "$nqn" --store ram:size=1MiB
}
claim "A second target on the same address says that it is taken" refused 6 'EADDRINUSE.*another listener' "$near"
claim "An address that no RDMA device has" refused 3 '192\.0\.2\.1.*not on an RDMA device.*rxe1' nvme+rdma://192.0.2.1
claim "A loopback address" refused 3 'loopback addresses' nvme+rdma://127.0.0.1
claim "An unknown subsystem" ends 3 10 'example:nobody' "$tools/rbt-connect" info "$near/nqn.2026-01.io.example:nobody"
claim "An unknown namespace" ends 3 10 'there are: 1, 2' "$tools/rbt-perf" "$near/$nqn/7" --rw read --runtime 1
claim "A host that is not on the list" ends 5 10 'host' "$tools/rbt-connect" info "$near/$nqn-private"
claim "A port where nobody listens" ends 3 10 'nobody listens there' "$tools/rbt-connect" info "$near:4421/$nqn"

# --- Killed -----------------------------------------------------------------------------------------------------------

killed_hosts() {
	local number
	for ((number = 1; number <= 8; number++)); do
		start_load "$near/$nqn/$((number % 2 + 1))" || { echo "kill $number: no load"; return 1; }
		a_moment
		kill -KILL "$load"
		wait "$load" 2>/dev/null
		within 6 back_to "$idle" || { echo "kill $number: $(resources_of "$target"), not $idle"; return 1; }
	done
}
idle=$(resources_of "$target") rss=$(rss_of "$target")
note "the target holds $idle, $rss KiB"
claim "Eight hosts killed in the middle of I/O: each time the target holds what it held, within 6 s" killed_hosts
claim "It serves the next one" verified "$near/$nqn/1" randrw 4k
claim "It has not grown by more than 1 MiB ($rss KiB)" test $(($(rss_of "$target") - rss)) -le 1024

killed_targets() {
	local number
	for ((number = 1; number <= 4; number++)); do
		start_load "$near/$nqn/1" || { echo "kill $number: no load"; return 1; }
		a_moment
		stop_daemon "$name" KILL
		load_ends 5 1 3 || { echo "kill $number"; return 1; }
		grep -q 'rbt-perf: ' "$scratch/load" || { echo "kill $number: no message"; return 1; }
		name=target-$number
		serve "$name" || return 1
	done
}
name=target
claim "Four targets killed in the middle of I/O: each time the host says so and ends within 5 s" killed_targets
claim "The next target serves" verified "$near/$nqn/2" randrw 4k

start_load "$near/$nqn/1"
claim "SIGTERM in the middle of I/O: the target leaves with exit status 0" stop_daemon "$name"
claim "The host says so and ends" load_ends 10 1 3
name=last
claim "The target starts again" serve "$name"

# --- Silent -----------------------------------------------------------------------------------------------------------

# Stopped processes: their devices go on acknowledging, so only the keep-alive notices: either side after twice KATO at the
# latest. Meanwhile the test goes on below.
start_load "$near/$nqn/1?keep-alive=$keep_alive"
silent_host=$load
a_moment
kill -STOP "$silent_host"

start_daemon --name silent "$tools/rbt-target" --listen "$near:4421" --subsystem "$nqn" --store "file:$scratch/disk/silent"
silent_target=$daemon_pid
start_copy_of_a_pipe "$near:4421/$nqn/1?keep-alive=$keep_alive" "$scratch/idle"
idle_host=$copy
claim "A host copies what comes through a pipe, and then nothing comes any more" within 20 arrived silent
kill -STOP "$silent_target"
silent_since=$SECONDS
exec 8>&9 # the copy over the wire below has a pipe of its own

# --- The wire ---------------------------------------------------------------------------------------------------------

claim "Between two devices over a wire" verified "$far/$nqn/1" randrw 4k --numjobs 2
for link in v1 v2; do tc qdisc add dev "$link" root netem loss 1%; done
claim "1 % of packets lost either way: 4 KiB verify" verified "$far/$nqn/1" randrw 4k
claim "1 % of packets lost either way: 128 KiB verify" verified "$far/$nqn/2" randwrite 128k --iodepth 4
note "$(rdma statistic show link rx1/1 | grep -o -E '(rcvd_seq_err|completer_retry_err) [0-9]+' | xargs)"
claim "Packets were lost" fails grep -q -w 'dropped 0,' <(tc -s qdisc show dev v1)
for link in v1 v2; do tc qdisc del dev "$link" root; done

# Without traffic: rxe that sends while the link has taken its routes along can never send to a listener again, see
# ci/rig/README.md.
start_copy_of_a_pipe "$far/$nqn/2" "$scratch/idle-far"
claim "A host copies what comes through a pipe, over the wire" within 20 arrived image
ip link set v2 down
sleep 0.2 # the length of the outage
ip link set v2 up
veth_routes
exec 9>&-
load=$copy
ln -sf idle-far "$scratch/load"
claim "The port goes down and comes back under an idle connection, which goes on and ends well" load_ends 30 0
claim "The target's log has the port" grep -q 'rx2 port 1: port active' "$RBT_RIG_OUTPUT/$name.log"
rm "$scratch/load"

ip address del 10.1.2.1/32 dev v2
claim "The address goes: the target says so" within 10 grep -q 'listener nvme+rdma://10\.1\.2\.1.*tried again' "$RBT_RIG_OUTPUT/$name.log"
ip address add 10.1.2.1/32 dev v2
veth_routes
claim "The address is back: hosts can connect there again" within 10 grep -q 'listener nvme+rdma://10\.1\.2\.1.*hosts can connect there again' \
	"$RBT_RIG_OUTPUT/$name.log"
claim "and do" verified "$far/$nqn/1" randrw 4k

start_load "$far/$nqn/1?keep-alive=$keep_alive"
a_moment
for link in v1 v2; do tc qdisc add dev "$link" root netem loss 100%; done
claim "The wire is cut: the host says so and ends within 20 s" load_ends 20 1 3
for link in v1 v2; do tc qdisc del dev "$link" root; done
claim "The wire is whole again: the next one is served" verified "$far/$nqn/1" randrw 4k

# --- What became of the silent ----------------------------------------------------------------------------------------

lost() { grep -q "Keep Alive was not answered within $keep_alive s" "$scratch/idle"; }
patience=$((2 * keep_alive + 5 + silent_since - SECONDS)) # for what began before
claim "A target that has stopped: an idle host says so within twice its keep-alive" within $((patience > 0 ? patience : 0)) lost
load=$idle_host
ln -sf idle "$scratch/load"
claim "and ends, although its pipe says nothing" load_ends 10 3
kill -CONT "$silent_target"
claim "The target that had stopped goes on, and leaves when it is told to" stop_daemon silent
claim "A host that has stopped: the target closes its connections within twice its keep-alive" \
	within $((patience > 0 ? patience : 0)) connections 0 rxe1
claim "and says why" grep -q '10\.99\.0\.1:.*keep alive: the host was silent' "$RBT_RIG_OUTPUT/$name.log"
kill -KILL "$silent_host"
wait "$silent_host" 2>/dev/null
claim "The connections that the cut wire left behind are gone within twice their keep-alive" \
	within $((2 * keep_alive + 5)) connections 0
claim "SIGTERM: exit status 0" stop_daemon "$name"
umount "$scratch/disk"
