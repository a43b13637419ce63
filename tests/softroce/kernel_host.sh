#!/usr/bin/env bash
# The stock kernel host against rbt-target: finds it, connects, trusts it with a file system, resets it, leaves and returns.
#   ci/softroce run tests/softroce/kernel_host.sh BUILD_DIR ram|file
# shellcheck source=tests/softroce/lib.sh
source "$(dirname "$0")/lib.sh"

build=${1:?build directory} store=${2:?ram or file}
nqn=nqn.2026-01.io.example:disk
private_nqn=nqn.2026-01.io.example:private
main_mib=256 side_mib=32
# What a first round of everything costs stays allocated; growth beyond it would be a leak.
rss_growth_max_kib=1024
# Both block sizes in each run: the disk that everything happens on, and one beside it.
case $store in
# NAWUN, 0's based: 512 KiB where commands on the same blocks take turns, one block where they do not (shadow).
ram) main_block=512 side_block=4096 main_atomic=1023 side_atomic=0 ;;
file) main_block=4096 side_block=512 main_atomic=127 side_atomic=1023 ;;
*) bail "ram or file, not '$store'" ;;
esac

spec() { # NAME MIB BLOCK [ATOMIC]
	case $store in
	ram) echo "ram:size=$2MiB,block=$3${4:+,atomic=$4}" ;;
	file) echo "file:$scratch/disk/$1,block=$3" ;;
	esac
}
serve() {
	start_daemon --name "$1" "$build/tools/rbt-target" --log-level debug --reactors 2 --listen "nvme+rdma://$RBT_RIG_ADDR" \
		--subsystem "$nqn" --serial rig0123456789 --store "$(spec main $main_mib $main_block)" \
		--store "$(spec side $side_mib $side_block shadow)" \
		--subsystem "$private_nqn" --allow-host nqn.2026-01.io.example:somebody --store ram:size=1MiB
}
if [[ $store == file ]]; then
	mkdir "$scratch/disk"
	mkfs.ext4 -q /dev/ram0 || bail "no file system for the files to serve"
	mount /dev/ram0 "$scratch/disk" || bail "the file system for the files to serve does not mount"
	truncate -s ${main_mib}M "$scratch/disk/main" && truncate -s ${side_mib}M "$scratch/disk/side"
fi

# Two jobs on two cores, so that both queues work.
# shellcheck disable=SC2054 # fio's commas
fio_options=(--name=load --ioengine=libaio --direct=1 --verify=crc32c --verify_fatal=1 --do_verify=1 --numjobs=2
	--offset_increment=12M --size=12M --cpus_allowed=0,1 --cpus_allowed_policy=split --group_reporting)
load() { timeout -k 5 120 fio "${fio_options[@]}" --filename="$1" "${@:2}"; } # DEVICE FIO-OPTION...
# The file systems' own lines; rxe, whenever a program asks for the state of a port on a dummy device.
rig_noise=('^EXT4-fs \(' '^dummy0 speed is unknown, defaulting to 1000$')
passes() { timeout -k 5 60 "$@"; }
reads_as_zeroes() { # DEVICE MIB-OFFSET MIB
	cmp -n $(($3 << 20)) <(dd if="$1" bs=1M skip="$2" count="$3" iflag=direct status=none) /dev/zero
}
copies() { # DEVICE: what is written past the page cache is what is read
	head -c 4M /dev/urandom >"$scratch/random"
	dd if="$scratch/random" of="$1" bs=128k oflag=direct status=none &&
		cmp -n $((4 << 20)) "$scratch/random" <(dd if="$1" bs=1M count=4 iflag=direct status=none)
}
round() {
	connect_kernel_host "$RBT_RIG_ADDR" "$nqn" -i 2 >"$scratch/device" 2>/dev/null &&
		dd if="$(<"$scratch/device")" of=/dev/null bs=64k count=4 iflag=direct status=none &&
		disconnect_kernel_host "$nqn" 2>/dev/null
}
round_is_over() { (($(grep -c 'the host disconnected' "$RBT_RIG_OUTPUT/target.log") >= 1)); }
gone() { [[ $(fds_of "$daemon_pid") == "$fds" ]]; }

dmesg_mark
claim "rbt-target says that it is ready" serve target || exit 1

# --- Discovery and a first round --------------------------------------------------------------------------------------

claim "nvme discover finds the subsystem" ends 0 20 "^subnqn: +$nqn\$" nvme discover -t rdma -a "$RBT_RIG_ADDR" -s 4420
claim "nvme discover does not find the subsystem that belongs to somebody else" \
	fails grep -q "$private_nqn" "$scratch/ends"
claim "A first round: connect, write, read, disconnect" round
claim "The target has seen the end of it" within 5 round_is_over
fds=$(fds_of "$daemon_pid") rss=$(rss_of "$daemon_pid")
note "after the first round: $fds descriptors, $rss KiB"

connect_kernel_host "$RBT_RIG_ADDR" "$nqn" -i 2 >"$scratch/device" 2>"$scratch/connect" ||
	bail "nvme connect failed: $(<"$scratch/connect")"
device=$(within 20 kernel_device "$nqn" 1)
side=$(within 20 kernel_device "$nqn" 2)
controller=$(kernel_controllers "$nqn")
claim "The host has an admin queue and two I/O queues" test "$(<"/sys/class/nvme/$controller/queue_count")" = 3
claim "Both namespaces have their sizes and block sizes" test \
	"$(blockdev --getsize64 --getss "$device" "$side" | xargs)" = \
	"$((main_mib << 20)) $main_block $((side_mib << 20)) $side_block"

# --- What nvme-cli asks -----------------------------------------------------------------------------------------------

claim "nvme list" ends 0 20 "^$device .* rig0123456789 +rbt +1 " nvme list
claim "nvme id-ctrl" ends 0 20 '^cntrltype +: 1$' nvme id-ctrl "$device"
claim "id-ctrl names the subsystem" grep -q "^subnqn *: $nqn\$" "$scratch/ends"
claim "nvme id-ns" ends 0 20 "^lbaf +0 : ms:0 +lbads:$((main_block == 512 ? 9 : 12)) .*in use" nvme id-ns "$device"
# One line: nsfeat NATOMIC (bit 1), and NAWUN and NAWUPF, which are one less than blocks.
atomic_of() { # DEVICE
	local nsfeat nawun nawupf
	{ read -r nsfeat; read -r nawun; read -r nawupf; } < <(nvme id-ns "$1" | sed -n -E 's/^(nsfeat|nawun|nawupf) *: *//p')
	echo "$((nsfeat >> 1 & 1)) $nawun $nawupf"
}
claim "id-ns says what is atomic: a block when the power fails, and beside others as much as commands keep apart" \
	test "$(atomic_of "$device")" = "1 $main_atomic 0"
claim "id-ns of the other namespace says it, too" test "$(atomic_of "$side")" = "1 $side_atomic 0"
for limits in /sys/block/nvme*n*/queue/atomic_write_unit_max_bytes; do note "$limits: $(<"$limits")"; done
uuid=$(<"/sys/block/${device#/dev/}/uuid") nguid=$(<"/sys/block/${device#/dev/}/nguid")
claim "nvme ns-descs has the UUID that the kernel has" ends 0 20 "^uuid +: $uuid\$" nvme ns-descs "$device"
claim "UUID and NGUID are the same, and not zero" test "${nguid//-/}" = "${uuid//-/}" -a "${uuid//[0-]/}" != ''
claim "nvme smart-log" ends 0 20 '^critical_warning[[:space:]]+: 0$' nvme smart-log "$device"
claim "nvme error-log" ends 0 20 '^error_count[[:space:]]+: 0$' nvme error-log "$device"
claim "nvme fw-log" ends 0 20 '^frs1 +: 0x' nvme fw-log "$device"
claim "nvme effects-log" passes nvme effects-log "$device"
claim "nvme get-feature, number of queues" ends 0 20 'value: *0x0*10001$' nvme get-feature "$device" -f 7
claim "nvme get-feature, keep alive timer" ends 0 20 'value: *0x0*1388$' nvme get-feature "$device" -f 0x0f
claim "nvme get-feature, asynchronous events" ends 0 20 'value:' nvme get-feature "$device" -f 0x0b

# --- Data -------------------------------------------------------------------------------------------------------------

claim "4 KiB random writes at depth 32 on two queues read back with their checksums" \
	load "$device" --rw=randwrite --bs=4k --iodepth=32 --output="$RBT_RIG_OUTPUT/$store-4k.txt"
claim "1 MiB sequential writes read back with their checksums" \
	load "$device" --rw=write --bs=1M --iodepth=4 --output="$RBT_RIG_OUTPUT/$store-1m.txt"
grep -h -E 'IOPS|bw=.*run=' "$RBT_RIG_OUTPUT/$store-"{4k,1m}.txt | sed 's/^/# /'
claim "The other namespace, with blocks of $side_block bytes, keeps what is written" copies "$side"
claim "blkdiscard" passes blkdiscard -o 4M -l 4M "$device"
claim "blkdiscard: the discarded range reads as zeroes" reads_as_zeroes "$device" 4 4
claim "blkdiscard -z: write zeroes" passes blkdiscard -z -o 12M -l 4M "$device"
claim "blkdiscard -z: the range reads as zeroes" reads_as_zeroes "$device" 12 4
claim "What lies between them is still there" fails reads_as_zeroes "$device" 8 4

# --- The rest of the command set, by nvme-cli, in the first blocks ------------------------------------------------------

head -c $((8 * main_block)) /dev/urandom >"$scratch/blocks"
dd if="$scratch/blocks" of="$device" bs=$((8 * main_block)) count=1 oflag=direct status=none
# FIRST: whether the eight blocks from there on are those of the file
compares() { passes nvme compare "$device" -s "$1" -c 7 -z $((8 * main_block)) -d "$scratch/blocks"; }
claim "nvme compare: the same blocks" compares 0
claim "nvme compare: other blocks" fails compares 8
claim "nvme verify" passes nvme verify "$device" -s 0 -c 255
claim "nvme copy, two ranges the other way round" passes nvme copy "$device" -d 100 -s 4,0 -b 3,3
claim "nvme copy: the first range is where the second was" passes cmp -n $((4 * main_block)) \
	<(dd if="$device" bs=$main_block skip=104 count=4 iflag=direct status=none) "$scratch/blocks"
claim "nvme copy, onto itself and beyond" passes nvme copy "$device" -d 4 -s 0 -b 7
claim "nvme copy: what overlaps is copied as it was" compares 4
claim "nvme write-zeroes with deallocation" passes nvme write-zeroes "$device" -s 4 -c 7 -d
claim "nvme write-zeroes: the range reads as zeroes" passes cmp -n $((8 * main_block)) \
	<(dd if="$device" bs=$main_block skip=4 count=8 iflag=direct status=none) /dev/zero
claim "nvme dsm" passes nvme dsm "$device" -s 0,100 -b 4,8 -d
claim "nvme get-feature, what can be done with it" ends 0 20 'is changeable|value: *0x0*4$' \
	nvme get-feature "$device" -f 0x0f -s 3
claim "nvme error-log has the comparison that failed" ends 0 20 'Compare|0x2?285|0x85' nvme error-log "$device" -e 1

# --- A file system ----------------------------------------------------------------------------------------------------

python3 - "$scratch/tree" <<'PYTHON'
import os, random, sys
generator = random.Random(2026)
for folder in range(60):
    path = f"{sys.argv[1]}/{folder % 7}/{folder}"
    os.makedirs(path)
    for name in range(50):
        with open(f"{path}/{name}", "wb") as file:
            file.write(generator.randbytes(generator.choice((0, 1, 100, 4096, 5000, 20000))))
    os.symlink(f"{folder}", f"{path}/link")
PYTHON
mkdir "$scratch/mount"
claim "mkfs.ext4" passes mkfs.ext4 -q "$device"
claim "mount" passes mount "$device" "$scratch/mount"
claim "A tree of 3000 files is copied" passes cp -a "$scratch/tree" "$scratch/mount/"
claim "unmount" passes umount "$scratch/mount"
claim "fsck -f finds nothing" passes fsck.ext4 -f -n "$device"
claim "mount again" passes mount "$device" "$scratch/mount"
claim "The tree is the same" passes diff -r --no-dereference "$scratch/tree" "$scratch/mount/tree"
rm -rf "$scratch/mount/tree/3"
claim "fstrim" ends 0 60 ' trimmed$' fstrim -v "$scratch/mount"
claim "unmount after fstrim" passes umount "$scratch/mount"
claim "fsck -f finds nothing after fstrim" passes fsck.ext4 -f -n "$device"

# --- Reset under load -------------------------------------------------------------------------------------------------

# Writes and reads back what it wrote some hundred writes earlier, until it is told to stop.
fio "${fio_options[@]}" --filename="$device" --rw=randwrite --bs=4k --iodepth=32 --verify_backlog=256 --time_based \
	--runtime=120 --output="$RBT_RIG_OUTPUT/$store-reset.txt" &
fio=$!
moves() { local now; now=$(sectors_of "$device"); within 20 moved_on "$device" $((now + 1000)); }
for number in 1 2 3; do
	moves || bail "no load to reset under"
	started=$EPOCHREALTIME
	claim "nvme reset under load, number $number" passes nvme reset "/dev/$controller"
	note "$(bc <<<"$EPOCHREALTIME - $started") s"
done
claim "The load goes on after the last one" moves
kill -TERM "$fio" # fio takes it for Ctrl-C; a background job of a script ignores that
wait "$fio"
claim "fio saw no error and no wrong block" grep -q 'err= 0:' "$RBT_RIG_OUTPUT/$store-reset.txt"

# --- Idle, refusal, twenty rounds -------------------------------------------------------------------------------------

ticks() { awk '{ sub(/.*\) /, ""); print $12 + $13 }' "/proc/$daemon_pid/stat"; }
before=$(ticks)
sleep 6 # the measurement itself
used=$(($(ticks) - before))
note "idle with three connections: $used ticks of 600 (1/100 s of processor time in 6 s)"
claim "The daemon uses less than 1 % of a processor while the host is idle" test "$used" -lt 6
claim "disconnect" disconnect_kernel_host "$nqn"
claim "The kernel says what it says of clean runs" dmesg_clean "${rig_noise[@]}"
claim "A host that is not on the list is refused" fails connect_kernel_host "$RBT_RIG_ADDR" "$private_nqn"
dmesg_mark
twenty_rounds() {
	local number
	for ((number = 1; number <= 20; number++)); do round || { echo "round $number"; return 1; }; done
}
claim "Twenty rounds of connect, read, disconnect" twenty_rounds
claim "Every descriptor of the daemon is back ($fds)" within 10 gone
note "at the end: $(fds_of "$daemon_pid") descriptors, $(rss_of "$daemon_pid") KiB"
claim "The daemon has not grown by more than $rss_growth_max_kib KiB since the first round" \
	test $(($(rss_of "$daemon_pid") - rss)) -le $rss_growth_max_kib
claim "The kernel says what it says of clean runs, all twenty times" dmesg_clean "${rig_noise[@]}"

# --- The daemon leaves and returns ------------------------------------------------------------------------------------

connect_kernel_host "$RBT_RIG_ADDR" "$nqn" -i 2 --reconnect-delay=1 >/dev/null 2>&1 || bail "cannot connect any more"
device=$(within 20 kernel_device "$nqn" 1)
head -c 1M /dev/urandom >"$scratch/before"
dd if="$scratch/before" of="$device" bs=1M oflag=direct status=none
started=$EPOCHSECONDS
claim "SIGTERM while a host is connected: the daemon leaves with exit status 0" stop_daemon target
note "it took $((EPOCHSECONDS - started)) s"
claim "The daemon starts again on the same address" serve target-again
live() { [[ $(<"/sys/class/nvme/$(kernel_controllers "$nqn")/state") == live ]]; }
claim "The host comes back by itself" within 30 live
same_as_before() { cmp -n $((1 << 20)) "$scratch/before" <(dd if="$device" bs=1M count=1 iflag=direct status=none); }
other_identity() {
	local now
	now=$("$build/tools/rbt-connect" info "nvme+rdma://$RBT_RIG_ADDR/$nqn" -o json | grep -o -m1 '"uuid": "[^"]*')
	[[ -n $now && $now != *"$uuid" ]]
}
refused_as_different() { dmesg_since | grep -q 'identifiers changed for nsid 1$'; }
if [[ $store == file ]]; then
	claim "It is the same disk: the host reads what it had written" same_as_before
	claim "UUID and NGUID are the same after the restart" test \
		"$(<"/sys/block/${device#/dev/}/uuid")-$(<"/sys/block/${device#/dev/}/nguid")" = "$uuid-$nguid"
else
	claim "A new RAM disk has a new UUID" other_identity
	claim "The host sees that it is not the disk it knew" within 10 refused_as_different
fi
claim "disconnect at the end" disconnect_kernel_host "$nqn"
claim "SIGTERM without a host: exit status 0" stop_daemon target-again
[[ $store == ram ]] || umount "$scratch/disk"
claim "The daemon's log has no error" fails grep -h -E ' (error|critical) ' "$RBT_RIG_OUTPUT/"target{,-again}.log
