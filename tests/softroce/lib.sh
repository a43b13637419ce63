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
