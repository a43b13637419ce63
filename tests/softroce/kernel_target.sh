#!/usr/bin/env bash
# rbt-connect and rbt-perf against the kernel's own NVMe/RDMA target: what they do there, and what they say when it fails.
#   ci/softroce run tests/softroce/kernel_target.sh BUILD_DIR
# shellcheck source=tests/softroce/lib.sh
source "$(dirname "$0")/lib.sh"

tools=${1:?build directory}/tools
nqn=nqn.2014-08.org.example:nvmet
uri=nvme+rdma://$RBT_RIG_ADDR/$nqn
mib=16
nvmet() { "$source_dir/ci/rig/nvmet" "$@"; }
connect=$tools/rbt-connect

# --verify fails the run if a single block is not what was written there.
verified() { # RW BS [OPTION...]
	timeout -k 5 60 "$tools/rbt-perf" "$uri/1" --rw "$1" --bs "$2" --verify --runtime 1 "${@:3}" >"$scratch/perf" 2>&1 || {
		cat "$scratch/perf"
		return 1
	}
	grep -E 'IOPS|read back' "$scratch/perf" | sed "s/^/# $1 $2 ${*:3}:/" >&3
	grep -q 'blocks read back and right' "$scratch/perf"
}
exec 3>&1

dmesg_mark
claim "The kernel's target starts" nvmet start --nqn "$nqn" --size ${mib}M

claim "discover lists the subsystem" ends 0 10 "^$nqn +rdma +$RBT_RIG_ADDR +4420 +nvme subsystem" \
	"$connect" discover "nvme+rdma://$RBT_RIG_ADDR"
claim "discover -o json has it too" ends 0 10 "\"$nqn\"" "$connect" discover "nvme+rdma://$RBT_RIG_ADDR:4420" -o json
claim "info tells the namespace's size" ends 0 10 "^1 +$mib MiB " "$connect" info "$uri"
claim "info tells the namespace's UUID" ends 0 10 "$(<"/sys/kernel/config/nvmet/subsystems/$nqn/namespaces/1/device_uuid")" \
	"$connect" info "$uri" -o json

head -c ${mib}M /dev/urandom >"$scratch/there"
claim "A disk image is copied to the kernel's target and read back" ends 0 60 "$mib MiB read back and right" \
	"$connect" copy --verify "$scratch/there" "$uri/1"
claim "What was copied is what the target has" cmp "$scratch/there" "/dev/shm/nvmet-${nqn//:/_}-1"
claim "The disk is copied back" ends 0 60 "$mib MiB read back and right" "$connect" copy --verify "$uri/1" "$scratch/back"
claim "What came back is what was sent" cmp "$scratch/there" "$scratch/back"

claim "4 KiB random writes verify" verified randwrite 4k
claim "4 KiB random reads and writes on two queues verify" verified randrw 4k --numjobs 2
claim "128 KiB random writes verify" verified randwrite 128k --iodepth 16
claim "128 KiB random reads and writes on two queues verify" verified randrw 128k --iodepth 8 --numjobs 2
claim "1 MiB random writes verify" verified randwrite 1M --iodepth 4
claim "1 MiB random reads and writes on two queues verify" verified randrw 1M --iodepth 2 --numjobs 2

claim "An unknown subsystem: the message names it" ends 3 10 'example:none' \
	"$connect" info "nvme+rdma://$RBT_RIG_ADDR/nqn.2014-08.org.example:none"
claim "A port without a listener: nobody listens there" ends 3 5 'nobody listens there' \
	"$connect" info "nvme+rdma://$RBT_RIG_ADDR:4421/$nqn"
claim "An address that nobody has: no answer within its bound" ends 3 10 '10\.99\.0\.77.*no answer within' \
	"$connect" discover nvme+rdma://10.99.0.77 --timeout 3s
claim "An address without a route: said at once" ends 3 5 '192\.0\.2\.1.*(no route|no RDMA device)' \
	"$connect" discover nvme+rdma://192.0.2.1
claim "An unknown namespace: the message names those that there are" ends 3 10 'no namespace 9; there are: 1' \
	"$tools/rbt-perf" "$uri/9" --rw read --runtime 1
echo 0 >"/sys/kernel/config/nvmet/subsystems/$nqn/attr_allow_any_host"
claim "A host that is not allowed: the message names it" ends 5 10 'host "nqn\.2026-01\.io\.example:guest"' \
	"$connect" info "$uri" --hostnqn nqn.2026-01.io.example:guest
mkdir /sys/kernel/config/nvmet/hosts/nqn.2026-01.io.example:guest
ln -s /sys/kernel/config/nvmet/hosts/nqn.2026-01.io.example:guest "/sys/kernel/config/nvmet/subsystems/$nqn/allowed_hosts/"
claim "The same host when it is allowed" ends 0 10 "^1 +$mib MiB" "$connect" info "$uri" --hostnqn nqn.2026-01.io.example:guest
rm "/sys/kernel/config/nvmet/subsystems/$nqn/allowed_hosts/"*
rmdir /sys/kernel/config/nvmet/hosts/*
claim "Stopping an idle target" nvmet stop

claim "A second target starts" nvmet start --nqn "$nqn" --size 64M
backing=/dev/shm/nvmet-${nqn//:/_}-1
load_has_begun() { (($(stat -c %b "$backing") > 64)); }
"$tools/rbt-perf" "$uri" --rw randwrite --runtime 60 >"$scratch/load" 2>&1 &
load=$!
claim "Load runs" within 20 load_has_begun
before=$EPOCHSECONDS
claim "The target is stopped under load" nvmet stop
over() { ! running "$load"; }
claim "rbt-perf ends within 10 s" within 10 over
running "$load" && kill -KILL "$load"
wait "$load"
status=$?
note "rbt-perf ended $((EPOCHSECONDS - before)) s after the stop began"
claim "rbt-perf's exit status says that requests failed" test "$status" = 1
claim "rbt-perf's message says that the target went" grep -q 'the target closed the connection' "$scratch/load"

# What was provoked above; and rxe, whenever a program asks for the state of a port on a dummy device.
claim "The kernel says what it says of clean runs" dmesg_clean \
	'^nvmet: connect request for invalid subsystem nqn.2014-08.org.example:none!$' \
	'^nvmet: connect by host nqn.2026-01.io.example:guest for subsystem .* not allowed$' \
	'^dummy0 speed is unknown, defaulting to 1000$'
