# shellcheck shell=bash
# For tests that run in the SoftRoCE rig (ci/softroce run tests/softroce/NAME.sh). Source it first:
#
#   source "$(dirname "$0")/lib.sh"
#   start_daemon build/tools/rbt-target/rbt-target --listen "nvme+rdma://$RBT_RIG_ADDR"
#   device=$(connect_kernel_host "$RBT_RIG_ADDR" "$nqn" -i 2) || bail "no connection"
#   claim "The disk is as large as it was made" test "$(blockdev --getsize64 "$device")" = 67108864
#   claim "An unknown subsystem is refused" fails connect_kernel_host "$RBT_RIG_ADDR" nqn.2014-08.org.example:none
#
# Output is TAP, with a summary line. The script fails if a claim failed, if it made none, or if it ended early.
set -u -o pipefail

test_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck disable=SC2034 # for tests
source_dir=$(cd "$test_dir/../.." && pwd)
scratch=$(mktemp -d "${TMPDIR:-/tmp}/rbt-test.XXXXXX")
RBT_RIG_ADDR=${RBT_RIG_ADDR:-10.99.0.1}
RBT_RIG_OUTPUT=${RBT_RIG_OUTPUT:-$scratch}
declare -i tap_passed=0 tap_failed=0
declare -A daemon_pids=() # name -> pid
daemon_pid=''             # of the last one started

# --- Claims -----------------------------------------------------------------------------------------------------------

# Runs a command in this shell; what it printed is shown if it fails.
claim() { # TEXT COMMAND...
	local text=$1 status=0
	shift
	"$@" >"$scratch/claim" 2>&1 || status=$?
	if ((status == 0)); then
		tap_passed+=1
		echo "ok $((tap_passed + tap_failed)) - $text"
		return 0
	fi
	tap_failed+=1
	echo "not ok $((tap_passed + tap_failed)) - $text"
	echo "# $(printf '%q ' "$@"): exit status $status"
	tail -n 40 "$scratch/claim" | sed 's/^/# /'
	return 1
}

skip() { # TEXT REASON
	tap_passed+=1
	echo "ok $((tap_passed + tap_failed)) - $1 # SKIP $2"
}

note() { printf '# %s\n' "$*"; }

# Ends the test: nothing that follows would mean anything.
bail() {
	tap_failed+=1
	echo "not ok $((tap_passed + tap_failed)) - $*"
	exit 1
}

# Succeeds if the command fails, but not if it was killed by a signal or timed out.
fails() {
	local status=0
	"$@" || status=$?
	((status != 0 && status < 124)) && return 0
	echo "expected a failure, got exit status $status"
	return 1
}

# Succeeds if the command ends with that exit status within that time and says what the extended regular expression wants.
ends() { # STATUS SECONDS REGEX COMMAND...
	local expected=$1 seconds=$2 regex=$3 status=0
	shift 3
	timeout -k 5 "$seconds" "$@" >"$scratch/ends" 2>&1 || status=$?
	cat "$scratch/ends"
	if ((status == 124 && expected != 124)); then echo "not over after $seconds s"; return 1; fi
	if ((status != expected)); then echo "exit status $status, expected $expected"; return 1; fi
	grep -q -E -e "$regex" "$scratch/ends" || { echo "nothing matches /$regex/"; return 1; }
}

# Tries again until it succeeds.
within() { # SECONDS COMMAND...
	local end=$((SECONDS + $1))
	shift
	until "$@"; do
		((SECONDS < end)) || return 1
		sleep 0.1
	done
}

# --- Daemons ----------------------------------------------------------------------------------------------------------

# Starts a daemon and waits for a line of its output; sets daemon_pid. Its output goes to $RBT_RIG_OUTPUT/NAME.log.
start_daemon() { # [--name NAME] [--ready REGEX] [--deadline SECONDS] COMMAND...
	local name='' ready=ready deadline=30 log end
	while [[ ${1:-} == --name || ${1:-} == --ready || ${1:-} == --deadline ]]; do
		printf -v "${1#--}" %s "$2"
		shift 2
	done
	name=${name:-${1##*/}}
	log=$RBT_RIG_OUTPUT/$name.log
	"$@" </dev/null >"$log" 2>&1 &
	daemon_pid=$!
	daemon_pids[$name]=$daemon_pid
	end=$((SECONDS + deadline))
	until grep -q -E -e "$ready" "$log"; do
		if ! kill -0 "$daemon_pid" 2>/dev/null; then
			echo "$name ended before it was ready:" >&2
			tail -n 20 "$log" >&2
			return 1
		fi
		if ((SECONDS >= end)); then
			echo "$name was not ready (/$ready/) within $deadline s:" >&2
			tail -n 20 "$log" >&2
			return 1
		fi
		sleep 0.05
	done
}

# Sends a signal (default TERM), waits, and returns the daemon's exit status; kills it after 20 s and returns 124.
stop_daemon() { # NAME [SIGNAL]
	local name=$1 pid=${daemon_pids[$1]:-} end=$((SECONDS + 20)) status=0
	[[ -n $pid ]] || { echo "no daemon '$name'" >&2; return 1; }
	unset "daemon_pids[$name]"
	kill -"${2:-TERM}" "$pid" 2>/dev/null
	while running "$pid"; do
		if ((SECONDS >= end)); then
			echo "$name did not end within 20 s of SIG${2:-TERM}" >&2
			kill -KILL "$pid"
			wait "$pid" 2>/dev/null
			return 124
		fi
		sleep 0.05
	done
	wait "$pid" 2>/dev/null || status=$?
	return "$status"
}

# A zombie has ended.
running() { [[ -e /proc/$1/stat && $(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null) != Z* ]]; }

fds_of() { find "/proc/$1/fd" -mindepth 1 2>/dev/null | wc -l; }        # open descriptors
rss_of() { awk '/^VmRSS:/ { print $2 }' "/proc/$1/status" 2>/dev/null; } # KiB

# --- Daemons that take orders -----------------------------------------------------------------------------------------

# As start_daemon does, with a standard input that order() writes to. One at a time.
start_ordered() { # NAME COMMAND...
	ordered=$1
	if [[ -z ${orders:-} ]]; then
		mkfifo "$scratch/orders" || return 1
		exec {orders}<>"$scratch/orders"
	fi
	start_daemon --name "$1" --ready '^ready$' bash -c "exec \"\$@\" <\"\$0\" $orders>&-" "$scratch/orders" "${@:2}"
}
times_said() { grep -c -x -e "$1" "$RBT_RIG_OUTPUT/$ordered.log"; }
said_again() { (($(times_said "$1") > $2)); }
# Succeeds when the daemon has given that answer to it.
order() { # ORDER ANSWER [SECONDS]
	local before
	before=$(times_said "$2")
	echo "$1" >&"$orders"
	within "${3:-20}" said_again "$2" "$before" || { tail -n 5 "$RBT_RIG_OUTPUT/$ordered.log"; return 1; }
}

# --- The kernel's log -------------------------------------------------------------------------------------------------

dmesg_mark() {
	dmesg_last_mark="rbt-test mark $$ $RANDOM$RANDOM"
	echo "$dmesg_last_mark" >/dev/kmsg
}
dmesg_since() { # without time stamps
	dmesg | awk -v mark="${dmesg_last_mark:-no mark}" 'index($0, mark) { seen = ""; next } { seen = seen $0 "\n" } END { printf "%s", seen }' |
		sed 's/^\[[^]]*\] //'
}
# Succeeds if the kernel said nothing since the mark but what it says of clean runs of its own target and host.
dmesg_clean() { # [FURTHER-ALLOWED-REGEX...]
	local unexpected extra=() regex
	for regex in "$@"; do extra+=(-e "$regex"); done
	unexpected=$(dmesg_since | grep -v -E -f <(grep -v -e '^#' -e '^$' "$test_dir/dmesg-baseline.txt") "${extra[@]}") || return 0
	echo "the kernel said:"
	echo "$unexpected"
	return 1
}

# --- The kernel's host ------------------------------------------------------------------------------------------------

# Connects and prints the block device of the first namespace. Everything has a deadline: `nvme connect` can hang.
connect_kernel_host() { # ADDR NQN [NVME-CONNECT-OPTION...]
	local addr=$1 nqn=$2 end
	shift 2
	timeout -k 5 90 nvme connect -t rdma -a "$addr" -s 4420 -n "$nqn" "$@" >&2 || return 1
	end=$((SECONDS + 20))
	until kernel_device "$nqn"; do
		((SECONDS < end)) || { echo "connected to $nqn, but no block device appeared" >&2; return 1; }
		sleep 0.05
	done
}

# With multipath a namespace belongs to the subsystem and is visible there; without, to the controller.
kernel_device() { # NQN [NSID]
	local subsystem path
	for subsystem in /sys/class/nvme-subsystem/*; do
		[[ -e $subsystem/subsysnqn && $(<"$subsystem/subsysnqn") == "$1" ]] || continue
		for path in "$subsystem"/nvme*n* "$subsystem"/nvme*/nvme*n*; do
			[[ ${path##*/} =~ ^nvme[0-9]+n[0-9]+$ && -b /dev/${path##*/} ]] || continue
			[[ -z ${2:-} || $(<"$path/nsid") == "$2" ]] || continue
			echo "/dev/${path##*/}"
			return 0
		done
	done
	return 1
}

# The controllers (nvme0, ...) of a subsystem.
kernel_controllers() { # NQN
	local path
	for path in /sys/class/nvme/*; do
		if [[ -e $path/subsysnqn && $(<"$path/subsysnqn") == "$1" ]]; then echo "${path##*/}"; fi
	done
}

# Sectors that have been read and written; and whether they are more by now.
sectors_of() { awk '{ print $3 + $7 }' "/sys/block/${1#/dev/}/stat"; } # DEVICE
moved_on() { (($(sectors_of "$1") > $2)); }                             # DEVICE SECTORS

disconnect_kernel_host() { # NQN
	timeout -k 5 60 nvme disconnect -n "$1" >&2 && [[ -z $(kernel_controllers "$1") ]]
}

# --- Volumes as block devices, under load -----------------------------------------------------------------------------

# Only these three know which program maps volumes: rbt-connect where it can, else a test's own. The daemon NAME serves the volume, its log
# says how it fares. Set device.
volume_daemon() { # NAME COMMAND...
	start_daemon --name "$1" --ready '^/dev/' --deadline 60 "${@:2}" || return 1
	device=$(grep -o -m1 -E '^/dev/[a-z0-9]+' "$RBT_RIG_OUTPUT/$1.log")
}
can_map() { "$1/tools/rbt-connect" map --help >/dev/null 2>&1; } # BUILD_DIR
map_volume() {                                                   # BUILD_DIR NAME URI...
	export RBT_RUN_DIR=$scratch/run
	if can_map "$1"; then
		volume_daemon "$2" "$1/tools/rbt-connect" map "${@:3}" --as "$2" --via ublk --queues 2 --depth 32 --io-max 64k --log-level info \
			--foreground
	else
		volume_daemon "$2" "$1/tests/softroce/ublk_volume" "${@:3}" 2 32 $((64 << 10))
	fi
}
# The one whose process has been killed.
recover_volume() { # BUILD_DIR NAME URI...
	mv "$RBT_RIG_OUTPUT/$2.log" "$RBT_RIG_OUTPUT/$2-before.log"
	if can_map "$1"; then
		volume_daemon "$2" "$1/tools/rbt-connect" recover "$2" --log-level info --foreground
	else
		volume_daemon "$2" "$1/tests/softroce/ublk_volume" "${@:3}" --recover "${device#/dev/ublkb}"
	fi
}
unmap_volume() { # BUILD_DIR NAME
	if can_map "$1"; then timeout -k 5 30 "$1/tools/rbt-connect" unmap "$2" || return 1; fi
	stop_daemon "$2"
}

# I/O that the device has done; sets completed. Without another process: it is asked often.
count_completed() { # DEVICE
	local -a stat
	read -ra stat <"/sys/block/${1#/dev/}/stat" && completed=$((stat[0] + stat[4] + stat[11] + stat[15]))
}
# Waits for the first I/O beyond COUNT to be done; sets waited_ms, from SINCE ($EPOCHREALTIME) on.
wait_completed() { # DEVICE COUNT SINCE SECONDS
	local end=$((SECONDS + $4)) now
	while count_completed "$1" && ((completed <= $2)); do
		((SECONDS < end)) || { echo "nothing was done for $4 s"; return 1; }
		sleep 0.01
	done
	now=$EPOCHREALTIME
	waited_ms=$(((${now/./} - ${3/./}) / 1000))
}

# Passes of random writes and then reads that verify all of them, two jobs in the background until load_ends; not so fast that a
# pass is over before anything happens. A pass that fails ends them. How many there were is then in $scratch/passes.
begin_load() { # DEVICE [FIO-OPTION...]
	rm -f "$scratch/enough"
	(
		passes=0
		until [[ -e $scratch/enough ]]; do
			timeout -k 5 200 fio --output="$scratch/load" --name=load --filename="$1" --direct=1 --ioengine=libaio --rw=randwrite --bs=4k \
				--iodepth=8 --size=2M --numjobs=2 --offset_increment=2M --rate_iops=200 --verify=crc32c --verify_fatal=1 --group_reporting \
				--randseed=$((RANDOM + passes)) "${@:2}" || exit 1
			passes=$((passes + 1))
		done
		echo "$passes" >"$scratch/passes"
	) &
	load=$!
	within 30 moved_on "$1" "$(sectors_of "$1")"
}
load_ends() {
	local status=0
	touch "$scratch/enough"
	wait "$load" || status=$?
	((status == 0)) || { tail -n 20 "$scratch/load"; return 1; }
}

# --- The end ----------------------------------------------------------------------------------------------------------

# shellcheck disable=SC2317 # the trap below calls it
test_end() {
	local status=$? name
	for name in "${!daemon_pids[@]}"; do
		kill -KILL "${daemon_pids[$name]}" 2>/dev/null
		wait "${daemon_pids[$name]}" 2>/dev/null
	done
	rm -rf "$scratch"
	echo "1..$((tap_passed + tap_failed))"
	echo "$tap_passed passed, $tap_failed failed"
	if ((tap_failed > 0 || tap_passed == 0)); then exit 1; fi
	exit "$status"
}
trap test_end EXIT
