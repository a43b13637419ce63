#!/usr/bin/env bash
# DH-HMAC-CHAP with Linux: its host at rbt-target, rbt-connect at its target, with every hash and a group for each (RBT_AUTH_ALL=1: each
# hash with each group).
#   ci/softroce run tests/softroce/authentication.sh BUILD_DIR
# shellcheck source=tests/softroce/lib.sh
source "$(dirname "$0")/lib.sh"

tools=${1:?build directory}/tools
nqn=nqn.2026-01.io.example:disk
kernel_nqn=nqn.2014-08.org.example:nvmet
configfs=/sys/kernel/config/nvmet
hashes=(sha256 sha384 sha512)
groups=(null ffdhe2048 ffdhe3072)
pairs=()
for i in 0 1 2; do
	for j in 0 1 2; do
		if ((i == j)) || [[ ${RBT_AUTH_ALL:-} ]]; then pairs+=("${hashes[i]} ${groups[j]}"); fi
	done
done

host_of() { echo "nqn.2026-01.io.example:host-$1-$2"; } # HASH GROUP
id_of() { printf '01020304-0506-0708-090a-%012x' "$1"; } # NUMBER

# Secrets of all lengths and transformations: of hosts, by hash, and of the subsystem.
umask 077
for i in 0 1 2; do
	nvme gen-dhchap-key -m $((i + 1)) -n "$(host_of any any)" >"$scratch/${hashes[i]}" 2>/dev/null || bail "nvme-cli makes no secret"
done
nvme gen-dhchap-key -m 0 >"$scratch/controller" 2>/dev/null
nvme gen-dhchap-key -m 0 >"$scratch/wrong" 2>/dev/null

# --- Linux's host -------------------------------------------------------------------------------------------------------

options=(--subsystem "$nqn" --store ram:size=16MiB)
for pair in "${pairs[@]}"; do
	read -r hash group <<<"$pair"
	options+=(--allow-host "$(host_of "$hash" "$group")" --host-secret-file "$scratch/$hash"
		--host-ctrl-secret-file "$scratch/controller" --host-hash "$hash" --host-dh-group "$group")
done
options+=(--allow-host nqn.2026-01.io.example:free)
claim "rbt-target starts" start_daemon "$tools/rbt-target" --log-level info --reactors 2 \
	--listen "nvme+rdma://$RBT_RIG_ADDR" "${options[@]}"

declare -i number=0
as_host() { # NQN SECRET-FILE [NVME-OPTION...]
	connect_kernel_host "$RBT_RIG_ADDR" "$nqn" -i 1 --hostnqn "$1" --hostid "$(id_of "$number")" \
		${2:+--dhchap-secret "$(<"$2")"} "${@:3}"
}
reads_and_leaves() { # DEVICE
	dd if="$1" of=/dev/null bs=64k count=4 iflag=direct status=none && disconnect_kernel_host "$nqn"
}
both_ways() { # HASH GROUP
	number+=1
	device=$(as_host "$(host_of "$1" "$2")" "$scratch/$1" --dhchap-ctrl-secret "$(<"$scratch/controller")") || return 1
	dmesg_since | grep -q "qid 0: authenticated with hash hmac($1) dhgroup $2" || return 1
	dmesg_since | grep -q 'qid 0: controller authenticated'
}
dmesg_mark
for pair in "${pairs[@]}"; do
	read -r hash group <<<"$pair"
	dmesg_mark
	claim "Linux's host and rbt-target prove themselves to each other, $hash, $group" both_ways "$hash" "$group" || continue
	[[ $pair == "${pairs[-1]}" ]] || claim "It reads, and leaves" reads_and_leaves "$device"
done

again() { # DEVICE
	local controller
	controller=$(kernel_controllers "$nqn")
	dmesg_mark
	echo -n "$(<"$scratch/sha512")" >"/sys/class/nvme/$controller/dhchap_secret" || return 1
	within 10 again_is_over
}
again_is_over() { dmesg_since | grep -q 'qid 0: controller authenticated'; }
claim "Linux's host is authenticated again while it is connected" again
claim "It reads, and leaves" reads_and_leaves "$device"

dmesg_mark
number+=1
claim "Linux's host with a wrong secret is not let in" fails as_host "$(host_of sha384 ffdhe2048)" "$scratch/wrong"
claim "Linux's host without a secret is not let in" fails as_host "$(host_of sha384 ffdhe2048)" ''
claim "Linux's host does not take an rbt-target with another secret" fails as_host "$(host_of sha256 null)" \
	"$scratch/sha256" --dhchap-ctrl-secret "$(<"$scratch/wrong")"
number+=1
one_way() { device=$(as_host "$(host_of sha256 null)" "$scratch/sha256"); }
claim "Linux's host alone proves itself" one_way
claim "It reads, and leaves" reads_and_leaves "$device"
number+=1
free() { device=$(as_host nqn.2026-01.io.example:free ''); }
claim "A host from which nothing is wanted connects as ever" free
claim "It reads, and leaves" reads_and_leaves "$device"
no_secrets() { # LOG
	local file
	for file in "$scratch"/sha* "$scratch/controller" "$scratch/wrong"; do
		! grep -q -F "$(cut -d: -f3 "$file")" "$1" || return 1
	done
}
claim "No secret is in rbt-target's log" no_secrets "$RBT_RIG_OUTPUT/rbt-target.log"
claim "rbt-target ends" stop_daemon rbt-target

# --- Linux's target -----------------------------------------------------------------------------------------------------

guest=nqn.2026-01.io.example:guest
"$source_dir/ci/rig/nvmet" start --nqn "$kernel_nqn" --size 16M >/dev/null || bail "the kernel's target does not start"
echo 0 >"$configfs/subsystems/$kernel_nqn/attr_allow_any_host"
mkdir "$configfs/hosts/$guest"
ln -s "$configfs/hosts/$guest" "$configfs/subsystems/$kernel_nqn/allowed_hosts/"
kernel_wants() { # HASH GROUP
	cat "$scratch/$1" >"$configfs/hosts/$guest/dhchap_key" && cat "$scratch/controller" >"$configfs/hosts/$guest/dhchap_ctrl_key" &&
		echo "hmac($1)" >"$configfs/hosts/$guest/dhchap_hash" && echo "$2" >"$configfs/hosts/$guest/dhchap_dhgroup"
}
rbt_connect() { # STATUS REGEX [OPTION...]
	ends "$1" 20 "$2" "$tools/rbt-connect" info "nvme+rdma://$RBT_RIG_ADDR/$kernel_nqn" --hostnqn "$guest" "${@:3}"
}
for pair in "${pairs[@]}"; do
	read -r hash group <<<"$pair"
	claim "The kernel's target wants $hash, $group" kernel_wants "$hash" "$group"
	claim "rbt-connect and the kernel's target prove themselves to each other, $hash, $group" rbt_connect 0 '^1 +16 MiB' \
		--secret-file "$scratch/$hash" --ctrl-secret-file "$scratch/controller"
done
claim "rbt-connect reads on a queue that is authenticated, too" ends 0 30 IOPS timeout 20 "$tools/rbt-perf" \
	"nvme+rdma://$RBT_RIG_ADDR/$kernel_nqn/1?hostnqn=$guest&secret-file=$scratch/sha512&ctrl-secret-file=$scratch/controller" \
	--rw read --runtime 1
# That target ends the association as it answers, and the answer may not get out any more.
not_let_in() {
	local status=0
	timeout -k 5 20 "$tools/rbt-connect" info "nvme+rdma://$RBT_RIG_ADDR/$kernel_nqn" --hostnqn "$guest" --secret-file "$scratch/wrong" \
		>"$scratch/refused" 2>&1 || status=$?
	cat "$scratch/refused"
	((status == 5 || status == 3)) && grep -q 'authentication: ' "$scratch/refused"
}
claim "rbt-connect with a wrong secret is not let in" not_let_in
claim "rbt-connect without a secret says what is missing" rbt_connect 5 'secret-file' --log-level error
claim "rbt-connect does not take a target with another secret" rbt_connect 5 'has not proved that it is itself' \
	--secret-file "$scratch/sha512" --ctrl-secret-file "$scratch/wrong"
chmod 644 "$scratch/sha512"
claim "rbt-connect does not take a secret that others can read" rbt_connect 5 'chmod 600' --secret-file "$scratch/sha512"
rm "$configfs/subsystems/$kernel_nqn/allowed_hosts/$guest"
rmdir "$configfs/hosts/$guest"
claim "Stopping the kernel's target" "$source_dir/ci/rig/nvmet" stop
