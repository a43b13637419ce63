# shellcheck shell=bash disable=SC2154 # lib.sh, and whoever sources this, set what is used
# What every block device of rbt's must be good for, however it is presented: data that verifies beside discards, zeroes, a file system,
# partitions, LVM. Sourced after lib.sh; what is used is $device, 64 MiB or more, and what was on it is lost.

# Two jobs, on two processors and so on two hardware queues where there are as many, write and verify; a third one discards elsewhere.
verified() { # RW BS [MIB-PER-JOB [FIO-OPTION...]]
	local common=(--filename="$device" --direct=1 --ioengine=libaio --verify_fatal=1) mib=${3:-8}
	timeout -k 5 150 fio --output="$scratch/fio" "${common[@]}" --name=written --rw="$1" --bs="$2" --size="${mib}M" --iodepth=16 \
		--numjobs=2 --offset_increment="${mib}M" --cpus_allowed=0,1 --cpus_allowed_policy=split --verify=crc32c "${@:4}" \
		--name=discarded --rw=randtrim --bs=64k --offset=48M --size="$((mib < 8 ? 2 * mib : 16))M" --numjobs=1 --iodepth=4 || {
		tail -n 20 "$scratch/fio"
		return 1
	}
}

zeroed() {
	head -c 8M /dev/urandom | dd of="$device" bs=1M oflag=direct status=none && blkdiscard -z -o 0 -l 4M "$device" &&
		cmp -n $((4 << 20)) "$device" /dev/zero && fails cmp -s -i $((4 << 20)) -n 4096 "$device" /dev/zero
}

tree() { cp -r "$source_dir/initiator" "$source_dir/docs" "$scratch/mounted/" && sync -f "$scratch/mounted"; }
same_tree() { diff -r "$source_dir/initiator" "$scratch/mounted/initiator" && diff -r "$source_dir/docs" "$scratch/mounted/docs"; }
file_system() { # DEVICE
	mkdir -p "$scratch/mounted" && mkfs.ext4 -q "$1" && mount -o discard "$1" "$scratch/mounted" && tree && umount "$scratch/mounted" &&
		e2fsck -fn "$1" && mount "$1" "$scratch/mounted" && same_tree && rm -r "$scratch/mounted/docs" && umount "$scratch/mounted" &&
		e2fsck -fn "$1"
}

partition() {
	printf 'label: gpt\nsize=30MiB\nsize=30MiB\n' | sfdisk -q --wipe always "$device" && within 5 test -b "${device}p2"
}
# There is no udev in the rig.
volumes() { DM_DISABLE_UDEV=1 lvm "$@" --devices "${device}p1,${device}p2"; }
lvm_on_top() {
	volumes pvcreate -q -y "${device}p1" "${device}p2" && volumes vgcreate -q rbttest "${device}p1" "${device}p2" &&
		volumes lvcreate -q -y -L 48M -n both rbttest && file_system /dev/rbttest/both && volumes vgremove -q -y rbttest
}

# All of it.
device_claims() { # NAME [MIB-PER-JOB]
	local mib=${2:-8}
	claim "$1: random writes of 4 KiB verify, beside discards" verified randwrite 4k "$mib"
	claim "$1: sequential writes of 128 KiB verify, beside discards" verified write 128k $((2 * mib))
	claim "$1: blkdiscard -z leaves zeroes, and nothing else" zeroed
	claim "$1: blkdiscard of all" blkdiscard "$device"
	claim "$1: a partition table" partition
	modprobe dm_mod || bail "no dm_mod"
	claim "$1: LVM over both partitions; ext4: a tree is copied, and is there after the next mount; fsck finds nothing" lvm_on_top
	claim "$1: partitions go" sfdisk -q --delete "$device"
}
