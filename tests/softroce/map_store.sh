#!/usr/bin/env bash
# The kernel's host on map: stores: memory served without a copy, what happens when somebody else opens it, and persistent
# memory after a kill -9.
#   ci/softroce run --memory 6G --cmdline 'memmap=512M!0x100000000' tests/softroce/map_store.sh BUILD_DIR [BREAKS SECONDS]
# shellcheck source=tests/softroce/lib.sh
source "$(dirname "$0")/lib.sh"

build=${1:?build directory} breaks=${2:-200} seconds=${3:-20}
nqn=nqn.2026-01.io.example:map
target=$build/tools/rbt-target
mib=32
half=$((mib / 2))

serve() { # NAME SPEC
	name=$1
	start_daemon --name "$1" "$target" --listen "nvme+rdma://$RBT_RIG_ADDR" --subsystem "$nqn" --store "$2"
}
connect() { connect_kernel_host "$RBT_RIG_ADDR" "$nqn" -i 2 >"$scratch/device" 2>"$scratch/connect" || bail "nvme connect: $(<"$scratch/connect")"; device=$(<"$scratch/device"); }
leave() { disconnect_kernel_host "$nqn" 2>/dev/null && stop_daemon "$name"; }
# fio_load NAME FIO-OPTION...: what was written reads back with its checksums.
fio_load() {
	timeout -k 5 120 fio --name="$1" --filename="$device" --ioengine=libaio --direct=1 --verify=crc32c --verify_fatal=1 \
		--do_verify=1 --iodepth=16 "${@:2}"
}
logged() { grep -q -e "$1" "$RBT_RIG_OUTPUT/$name.log"; }
log_count() { grep -c -e "$1" "$RBT_RIG_OUTPUT/$name.log"; }
more_often() { (($(log_count "$1") > $2)); }
# The last line of the log that matches has "so far N bytes in place, M by way of buffers".
in_place() { sed -n "s/.*$1.*so far \([0-9]*\) bytes in place, \([0-9]*\) by way.*/\1/p" "$RBT_RIG_OUTPUT/$name.log" | tail -n 1; }
buffered() { sed -n "s/.*$1.*so far \([0-9]*\) bytes in place, \([0-9]*\) by way.*/\2/p" "$RBT_RIG_OUTPUT/$name.log" | tail -n 1; }
explained() { ends 0 20 "$2" "$target" --explain "$1"; } # SPEC REGEX
same() { cmp <(dd if="$device" bs=64k skip="$2" count="$3" iflag=direct,skip_bytes,count_bytes status=none) "$1"; }
random_file() { head -c "$2" /dev/urandom >"$scratch/$1"; }

# --- A file on tmpfs, and somebody else who opens it ------------------------------------------------------------------

mkdir "$scratch/tmpfs" && mount -t tmpfs -o size=192m tmpfs "$scratch/tmpfs" || bail "no tmpfs"
disk=$scratch/tmpfs/disk
truncate -s ${mib}M "$disk"
claim "--explain says that a file on tmpfs is served without a copy" explained "map:$disk,block=4096" 'without a copy.*write lease'
serve tmpfs "map:$disk,block=4096" || bail "rbt-target does not serve tmpfs"
connect
claim "A file on tmpfs keeps what is written" fio_load before --rw=randwrite --bs=4k --size=4M
random_file half $((half << 20))
opened=$(log_count 'in place again')
exec 7<>"$disk" || bail "the file cannot be opened while it is served"
claim "What was moved until somebody else opened the file was moved without a copy" within 5 logged 'somebody else opens its file'
note "$(grep 'somebody else opens' "$RBT_RIG_OUTPUT/$name.log" | tail -n 1)"
claim "No byte went by way of a buffer" test "$(buffered 'somebody else opens')" = 0
claim "Some went in place" test "$(in_place 'somebody else opens')" -ge $((8 << 20))
dd if="$scratch/half" of=/proc/self/fd/7 bs=1M seek=$half conv=notrunc status=none
claim "The host sees what somebody else wrote while he has the file open" same "$scratch/half" $((half << 20)) $((half << 20))
random_file block 65536
claim "The host writes meanwhile" dd if="$scratch/block" of="$device" bs=64k seek=1 oflag=direct status=none
claim "Somebody else sees what the host wrote" cmp "$scratch/block" <(dd if=/proc/self/fd/7 bs=64k skip=1 count=1 status=none)
exec 7>&-
claim "When he has closed it, it is served in place again" within 5 more_often 'in place again' "$opened"
claim "The host still sees what he wrote" same "$scratch/half" $((half << 20)) $((half << 20))

timeout -k 5 $((seconds + 100)) python3 "$test_dir/breaker.py" "$disk" "$breaks" "$seconds" $(((mib << 8) - 1)) >"$scratch/breaker" 2>&1 &
breaker=$!
claim "Verified load goes on through $breaks breaks of the lease in $seconds s, without an error" \
	fio_load storm --rw=randrw --bs=4k --size=4M --time_based --runtime="$seconds" --verify_backlog=64
wait "$breaker"
claim "Who opened the file never waited a second" test $? = 0
note "$(<"$scratch/breaker")"
claim "The host sees the last block that the breaker wrote" same \
	<(head -c 4096 /dev/zero | tr '\0' "\\$(printf %o $(((breaks - 1) % 251 + 1)))") $(((mib << 20) - 4096)) 4096
sleep 2 # the log tells of a break at most once a second
opened=$(log_count 'in place again')
claim "One more break" python3 "$test_dir/breaker.py" "$disk" 1 0 0
claim "... and back" within 5 more_often 'in place again' "$opened"
note "$(grep 'in place again' "$RBT_RIG_OUTPUT/$name.log" | tail -n 1)"
claim "The host reads it all" dd if="$device" of=/dev/null bs=64k iflag=direct status=none
claim "Host and target leave" leave
note "$(grep 'closed; so far' "$RBT_RIG_OUTPUT/$name.log")"
claim "... without another byte by way of a buffer" test "$(buffered 'closed;')" = "$(buffered 'in place again')"
claim "... but all of it in place" test "$(in_place 'closed;')" -ge $(($(in_place 'in place again') + (mib << 20)))

# --- The same as a shadow image, over packets that are smaller than a block ------------------------------------------

image=$scratch/tmpfs/image
claim "A plain image becomes a shadow image" ends 0 20 'a shadow image of 32 MiB' "$target" --convert-image "$disk" "$image" --to shadow --block 4096
serve shadow "map:$image,atomic=shadow" || bail "rbt-target does not serve a shadow image"
netdev=$(ip -o address show to "$RBT_RIG_ADDR" | awk '{print $2}') mtu=$(<"/sys/class/net/$netdev/mtu")
ip link set dev "$netdev" mtu 1500
connect
ip link set dev "$netdev" mtu "$mtu"
claim "The host sees in the shadow image what the plain one has" same "$disk" 0 $((mib << 20))
claim "A shadow image keeps what is written" fio_load shadow --rw=randwrite --bs=4k --size=2M
claim "... also what is written over it in long pieces" fio_load shadow-long --rw=randwrite --bsrange=4k-64k --size=2M
exec 7<"$image"
claim "While somebody else has the image open" within 5 logged 'somebody else opens its file'
claim "... it keeps what is written" fio_load shadow-away --rw=randwrite --bs=4k --size=1M
exec 7<&-
claim "... and is served without a copy again afterwards" within 5 logged 'in place again'
claim "No byte was copied until then" test "$(buffered 'somebody else opens')" = 0
claim "... of some" test "$(in_place 'somebody else opens')" -ge $((4 << 20))
dd if="$device" of="$scratch/tmpfs/seen" bs=1M iflag=direct status=none
leave
claim "A shadow image becomes a plain one" ends 0 20 'a plain image of 32 MiB' "$target" --convert-image "$image" "$scratch/tmpfs/plain" --to raw
claim "... of the same bytes" cmp "$scratch/tmpfs/seen" "$scratch/tmpfs/plain"

# --- Huge pages -------------------------------------------------------------------------------------------------------

echo $((half)) >/proc/sys/vm/nr_hugepages
mkdir "$scratch/huge" && mount -t hugetlbfs hugetlbfs "$scratch/huge" && truncate -s ${half}M "$scratch/huge/disk" || bail "no huge pages"
claim "--explain says that a file on hugetlbfs is served without a copy" explained "map:$scratch/huge/disk" 'hugetlbfs; served in place, without a copy'
serve huge "map:$scratch/huge/disk,block=4096" || bail "rbt-target does not serve hugetlbfs"
connect
claim "A file on hugetlbfs keeps what is written" fio_load huge --rw=randwrite --bs=4k --size=2M
exec 7<>"$scratch/huge/disk"
claim "... also while somebody else has it open" fio_load huge-away --rw=randwrite --bs=4k --size=1M
exec 7>&-
claim "... and is served in place again afterwards" within 5 logged 'in place again'
claim "No byte of it was copied before" test "$(buffered 'somebody else opens')" = 0
leave

# --- Persistent memory ------------------------------------------------------------------------------------------------

if ! [[ -e /dev/pmem0 ]]; then
	bail "no persistent memory: run me with --memory 6G --cmdline 'memmap=512M!0x100000000'"
fi
claim "The namespace becomes a devdax device" ndctl create-namespace -f -e namespace0.0 -m devdax -a 2M
dax=$(echo /dev/dax*)
[[ -c $dax ]] || bail "there is no devdax device: $dax; $(ndctl list -N -X)"
claim "--explain says that devdax is served without a copy and how it lasts" explained "map:$dax" 'devdax.; served in place, without a copy'
claim "... written back out of the caches" grep -q "written back out of the CPU's caches" "$scratch/ends"
serve dax "map:$dax,block=4096" || bail "rbt-target does not serve $dax"
connect
uuid=$(<"/sys/block/${device#/dev/}/uuid")
claim "A devdax device keeps what is written" fio_load dax --rw=randwrite --bs=4k --size=4M
random_file fua 65536
claim "A write with FUA" nvme write "$device" --start-block=4096 --block-count=15 --data-size=65536 --data="$scratch/fua" --force-unit-access
stop_daemon dax KILL
disconnect_kernel_host "$nqn" 2>/dev/null
serve dax-again "map:$dax,block=4096" || bail "rbt-target does not serve $dax again"
connect
claim "After kill -9 what was written with FUA is there" same "$scratch/fua" $((4096 * 4096)) 65536
claim "... on the same disk" test "$(<"/sys/block/${device#/dev/}/uuid")" = "$uuid"
claim "blkdiscard -z: write zeroes" timeout -k 5 60 blkdiscard -z -o 16M -l 4M "$device"
claim "... read as zeroes" cmp -n $((4 << 20)) <(dd if="$device" bs=1M skip=16 count=4 iflag=direct status=none) /dev/zero
claim "Host and target leave the device" leave
note "$(grep 'closed; so far' "$RBT_RIG_OUTPUT/$name.log")"
claim "Nothing went by way of a buffer" test "$(buffered 'closed;')" = 0

claim "A shadow image goes to the device" ends 0 30 'a shadow image of 32 MiB' "$target" --convert-image "$disk" "$dax" --to shadow --block 4096 --overwrite
serve dax-shadow "map:$dax,atomic=shadow" || bail "rbt-target does not serve a shadow image on $dax"
connect
claim "A write with FUA to a shadow image" nvme write "$device" --start-block=100 --block-count=15 --data-size=65536 --data="$scratch/fua" --force-unit-access
stop_daemon dax-shadow KILL
disconnect_kernel_host "$nqn" 2>/dev/null
serve dax-shadow-again "map:$dax,atomic=shadow" || bail "rbt-target does not serve the shadow image on $dax again"
connect
claim "After kill -9 it is there" same "$scratch/fua" $((100 * 4096)) 65536
claim "... and all else is as it was" same <(dd if="$disk" bs=1M skip=1 status=none) $((1 << 20)) $(((mib - 1) << 20))
claim "Host and target leave the shadow image" leave
claim "... of which nothing went by way of a buffer" test "$(buffered 'closed;')" = 0

claim "The namespace becomes a disk again" ndctl create-namespace -f -e namespace0.0 -m fsdax
mkfs.ext4 -q -b 4096 /dev/pmem0 && mkdir "$scratch/dax" && mount -o dax /dev/pmem0 "$scratch/dax" || bail "no file system with dax"
truncate -s ${half}M "$scratch/dax/disk"
claim "--explain says that no adapter reaches fs-dax" explained "map:$scratch/dax/disk" 'ext4 with dax; by way of buffers and stores to persistent memory'
serve fsdax "map:$scratch/dax/disk,block=4096" || bail "rbt-target does not serve fs-dax"
connect
claim "A file on fs-dax keeps what is written" fio_load fsdax --rw=randwrite --bs=4k --size=2M
claim "A write with FUA to fs-dax" nvme write "$device" --start-block=1024 --block-count=15 --data-size=65536 --data="$scratch/fua" --force-unit-access
stop_daemon fsdax KILL
claim "After kill -9 it is in the file" cmp "$scratch/fua" <(dd if="$scratch/dax/disk" bs=64k skip=64 count=1 status=none)
disconnect_kernel_host "$nqn" 2>/dev/null
umount "$scratch/dax" "$scratch/huge" "$scratch/tmpfs"
