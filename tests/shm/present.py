#!/usr/bin/env python3
"""Volumes presented: the NBD server used by those who speak NBD, and FUSE with a loop device. Usage: present.py TOOLS_DIR PRESENT [CLAIM...]

PRESENT is the program of present.cc. What needs root, FUSE and loop devices is left out, and said, where they are not there. Prints one line
per claim and a summary; exit status 1 if one failed.
"""
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

SOURCES = pathlib.Path(__file__).resolve().parent.parent.parent / "initiator"
PRESENT = pathlib.Path(sys.argv.pop(2)).resolve()

import programs  # noqa: E402 (it looks at the arguments)
import raw_nbd  # noqa: E402
from programs import Target, digest, eventually, folder, run  # noqa: E402

CLAIMS = []


def claim(function):
    CLAIMS.append(function)
    return function


def device_claim(function):
    if os.geteuid() == 0 and os.path.exists("/dev/fuse") and os.path.exists("/dev/loop-control"):
        CLAIMS.append(function)
    else:
        print(f"left out, for it needs root, /dev/fuse and /dev/loop-control: {function.__name__.replace('_', ' ')}")
    return function


class Presented:
    """A volume that is presented, until the end of the with statement."""

    def __init__(self, folder, uri, via, *words):
        self.path = folder / "present.log"
        self.log = self.path.open("w")
        self.process = subprocess.Popen([PRESENT, uri, via, *words], stdout=self.log, stderr=self.log)
        eventually("present is ready", lambda: "\nready\n" in self.text() or self.process.poll() is not None, 30)
        assert self.process.poll() is None, f"present did not start: {self.text()}"
        self.where = next(line for line in self.text().splitlines() if line.startswith("/"))
        self.uri = f"nbd+unix:///?socket={self.where}"

    def text(self):
        return self.path.read_text()

    def children(self):
        return pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.log.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.terminate()
            status = self.process.wait(timeout=30)
            assert status == 0, f"present did not leave cleanly, but with {status}: {self.text()}"
        self.log.close()


def socket_of(work, target):
    return Presented(work, target.uri, "socket", f"path={work / 'nbd.sock'}")


def fuse_of(work, target, *words):
    (work / "run").mkdir(exist_ok=True)
    return Presented(work, target.uri, "fuse", f"directory={work / 'run'}", *words)


def start_fio(device, output, *, seconds, **extra):
    """Writes and reads back what it wrote some writes earlier."""
    options = {"name": "load", "direct": 1, "verify": "crc32c", "verify_fatal": 1, "verify_backlog": 64, "rw": "randwrite", "bs": "4k",
               "iodepth": 16, "size": "8m", "time_based": 1, "runtime": seconds, "verify_state_save": 0, "output-format": "json", "output": output,
               **({"ioengine": "libaio", "filename": device} if device else {}), **extra}
    return subprocess.Popen(["fio", *(f"--{key}={value}" for key, value in options.items())], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def fio_is_clean(process, output):
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, f"fio: {process.returncode}: {said}"
    text = output.read_text()
    jobs = json.loads(text[text.index("{"):])["jobs"]  # notes come before it
    assert all(job["error"] == 0 and job["write"]["total_ios"] > 0 for job in jobs), jobs
    return max(job["write"]["clat_ns"]["max"] for job in jobs) / 1e9


def dies_and_returns(work, disk, target, times, away):
    """Kills the target and starts it again. Returns the last one, in a with statement of its own."""
    for _ in range(times):
        time.sleep(1.5)
        target.process.kill()
        target.process.wait()
        target.process.stdout.close()
        target.log.close()
        time.sleep(away)
        target = Target(work, f"file:{disk}")
    return target


@claim
def nbd_clients_are_told_the_truth():
    with folder() as work, Target(work, "ram:size=64MiB,block=4096") as target, socket_of(work, target) as server:
        told = json.loads(run("nbdinfo", "--json", server.uri))["exports"][0]
        wanted = {"export-size": 64 << 20, "is_rotational": False, "is_read_only": False, "can_flush": True, "can_fua": True, "can_multi_conn": True,
                  "can_trim": True, "can_zero": True, "block_size_minimum": 4096, "block_size_preferred": 4096, "block_size_maximum": 2 << 20}
        for key, value in wanted.items():
            assert told[key] == value, f"{key} is {told[key]}, not {value}: {told}"
        assert "1 export" in run("nbdinfo", "--list", server.uri) or 'export=""' in run("nbdinfo", "--list", server.uri)
        run("nbdinfo", f"nbd+unix:///other?socket={server.where}", status=1)


@claim
def nbdcopy_copies_both_ways_over_several_connections():
    with folder() as work, Target(work, "ram:size=48MiB") as target, socket_of(work, target) as server:
        source, out = work / "source.img", work / "out.img"
        source.write_bytes(os.urandom(20 << 20) + bytes(8 << 20) + os.urandom(20 << 20))
        run("nbdcopy", "--connections=4", "--requests=16", "--flush", source, server.uri)
        run("nbdcopy", "--connections=4", "--requests=16", server.uri, out)
        assert digest(source) == digest(out)


@claim
def qemu_writes_reads_zeroes_discards_and_converts():
    with folder() as work, Target(work, "ram:size=32MiB") as target, socket_of(work, target) as server:
        source, out = work / "source.img", work / "out.img"
        source.write_bytes(os.urandom(9 << 20) + bytes(14 << 20) + os.urandom(9 << 20))
        said = run("qemu-io", "-f", "raw", "-t", "writeback", "-c", "write -P 0xa5 0 3M", "-c", "write -f -P 0x5a 1M 64k", "-c", "read -P 0xa5 64k 900k",
                   "-c", "read -P 0x5a 1M 64k", "-c", "write -z -u 2M 512k", "-c", "read -P 0 2M 512k", "-c", "discard 0 64k", "-c", "flush",
                   "-c", "write -P 7 1000 3000", "-c", "read -P 7 1000 3000", server.uri)
        assert "fail" not in said and "error" not in said, said
        run("qemu-img", "convert", "-n", "-W", "-m", "8", "-f", "raw", "-O", "raw", source, server.uri)
        run("qemu-img", "convert", "-f", "raw", "-O", "raw", server.uri, out)
        assert digest(source) == digest(out)


@claim
def fio_over_nbd_sees_no_error_while_the_target_is_killed_three_times():
    with folder() as work:
        disk = work / "disk.img"
        disk.touch()
        os.truncate(disk, 64 << 20)
        target = Target(work, f"file:{disk}")
        with socket_of(work, target) as server:
            load = start_fio(None, work / "fio.json", seconds=12, ioengine="nbd", uri=server.uri, numjobs=2, offset_increment="16m")
            target = dies_and_returns(work, disk, target, 3, 1)
            with target:
                fio_is_clean(load, work / "fio.json")
                assert server.text().count("volume: lost") == 3, server.text()


@claim
def a_client_that_says_nothing_is_hung_up_on_and_a_killed_server_leaves_a_socket_that_the_next_one_replaces():
    with folder() as work, Target(work, "ram:size=1MiB") as target:
        with socket_of(work, target) as server:
            server.kill()
        assert (work / "nbd.sock").exists()
        with socket_of(work, target) as server:
            with raw_nbd.RawNbd(server.where) as client:
                assert client.ask(raw_nbd.WRITE, 0, data=b"x" * 512)[0] == 0
                assert client.ask(raw_nbd.READ, 0, 512) == (0, b"x" * 512)
                assert client.ask(raw_nbd.CACHE, 0, 512)[0] == raw_nbd.EINVAL
            refused = subprocess.run([PRESENT, target.uri, "socket", f"path={server.where}"], capture_output=True, text=True, timeout=60)
            assert refused.returncode == 1 and "somebody listens" in refused.stderr, refused
        assert not (work / "nbd.sock").exists()


@claim
def without_the_kernel_module_or_nbdfuse_the_error_says_what_to_do():
    with folder() as work, Target(work, "ram:size=1MiB") as target:
        if not os.path.exists("/sys/module/nbd"):
            refused = subprocess.run([PRESENT, target.uri, "nbd"], capture_output=True, text=True, timeout=60)
            assert refused.returncode == 1 and "modprobe nbd" in refused.stderr, refused
        (work / "run").mkdir()
        refused = subprocess.run([PRESENT, target.uri, "fuse", f"directory={work / 'run'}"], capture_output=True, text=True, timeout=60,
                                 env={**os.environ, "PATH": str(work)})
        assert refused.returncode == 1 and "libnbd-bin" in refused.stderr, refused
        assert not list((work / "run").iterdir())


@device_claim
def a_loop_device_is_what_the_volume_is():
    with folder() as work, Target(work, "ram:size=64MiB,block=4096") as target, fuse_of(work, target) as device:
        name = device.where.removeprefix("/dev/")
        wanted = {"size": str((64 << 20) // 512), "ro": "0", "loop/dio": "1", "queue/logical_block_size": "4096", "queue/write_cache": "write back",
                  "loop/autoclear": "1"}
        for key, value in wanted.items():
            found = pathlib.Path(f"/sys/block/{name}/{key}").read_text().strip()
            assert found == value, f"{key} is {found}, not {value}"
        load = start_fio(device.where, work / "fio.json", seconds=3, numjobs=2, offset_increment="16m", iodepth=32)
        for i in range(8):
            run("blkdiscard", "-o", f"{48 + i % 4}M", "-l", "1M", device.where)
        fio_is_clean(load, work / "fio.json")
        run("blkdiscard", "-z", "-o", "4M", "-l", "4M", device.where)
        fd = os.open(device.where, os.O_RDONLY)
        assert os.pread(fd, 4 << 20, 4 << 20) == bytes(4 << 20)
        os.close(fd)
        for key in ("queue/discard_max_bytes", "queue/write_zeroes_max_bytes"):
            assert int(pathlib.Path(f"/sys/block/{name}/{key}").read_text()) > 0, key
        run("sfdisk", "-q", "--wipe", "always", device.where, input="label: gpt\nsize=20MiB\nsize=20MiB\n")
        partition = f"{device.where}p2"
        run("partx", "--update", device.where)  # a kernel may know no kind of table
        eventually("there is a second partition", lambda: os.path.exists(partition), 5)
        run("mkfs.ext4", "-q", partition)
        (work / "mounted").mkdir()
        for _ in range(2):
            run("mount", partition, work / "mounted")
            try:
                run("cp", "-r", SOURCES, work / "mounted")
                run("diff", "-r", SOURCES, work / "mounted" / SOURCES.name)
            finally:
                run("umount", work / "mounted")
            run("e2fsck", "-fn", partition)
        run("sfdisk", "-q", "--delete", device.where)
        eventually("there is none any more", lambda: not os.path.exists(partition), 5)
        assert len(device.children()) == 1
    with folder() as work, Target(work, "ram:size=64MiB") as target, fuse_of(work, target, "readonly") as device:
        assert pathlib.Path(f"/sys/block/{device.where.removeprefix('/dev/')}/ro").read_text().strip() == "1"
        run("dd", f"of={device.where}", "if=/dev/zero", "bs=4k", "count=1", "oflag=direct", status=1)


@device_claim
def its_users_see_no_error_while_the_target_is_killed_three_times():
    with folder() as work:
        disk = work / "disk.img"
        disk.touch()
        os.truncate(disk, 64 << 20)
        target = Target(work, f"file:{disk}")
        with fuse_of(work, target) as device:
            load = start_fio(device.where, work / "fio.json", seconds=14, numjobs=2, offset_increment="16m")
            target = dies_and_returns(work, disk, target, 3, 2)
            with target:
                longest = fio_is_clean(load, work / "fio.json")
                assert longest > 1, "nobody was away"


@device_claim
def nothing_is_left_of_a_device_that_was_removed_and_little_of_one_whose_process_was_killed():
    with folder() as work, Target(work, "ram:size=16MiB") as target:
        with fuse_of(work, target) as device:
            loop = pathlib.Path(f"/sys/block/{device.where.removeprefix('/dev/')}/loop")
            child = pathlib.Path(f"/proc/{device.children()[0]}")
            assert loop.exists() and child.exists()
        gone = [lambda: not loop.exists(), lambda: not child.exists(), lambda: str(work) not in pathlib.Path("/proc/mounts").read_text()]
        assert all(each() for each in gone) and not list((work / "run").iterdir())

        with fuse_of(work, target) as device:
            loop = pathlib.Path(f"/sys/block/{device.where.removeprefix('/dev/')}/loop")
            child = pathlib.Path(f"/proc/{device.children()[0]}")
            refused = subprocess.run([PRESENT, target.uri, "fuse", f"directory={work / 'run'}", "recover=0"], capture_output=True, text=True, timeout=60)
            assert refused.returncode == 1 and "cannot be recovered" in refused.stderr, refused
            device.kill()
        for each in gone:
            eventually("child, mount and loop device go with the process", each, 10)
        assert len(list((work / "run").iterdir())) == 1
        assert "1 removed" in run(PRESENT, "-", f"clean={work / 'run'}")
        assert not list((work / "run").iterdir())


@device_claim
def qcow2_behind_the_target_verifies_through_the_device_although_qemu_nbd_is_killed_twice():
    with folder() as work:
        (work / "server").mkdir()
        with programs.QemuNbd(work / "server") as server, Target(work, f"nbd:{server.uri()}") as target, fuse_of(work, target) as device:
            load = start_fio(device.where, work / "fio.json", seconds=5)
            for kill in range(2):
                time.sleep(1)
                server.__exit__()
                server.__enter__()
                eventually("the target is back", lambda: target.text().count("connected to the server again") > kill, 20)
            fio_is_clean(load, work / "fio.json")
            assert b"QFI\xfb" == server.image.read_bytes()[:4] and server.image.stat().st_size > 8 << 20


@device_claim
def a_device_that_is_in_use_is_not_left_hanging_when_it_is_removed():
    with folder() as work, Target(work, "ram:size=16MiB") as target:
        device = fuse_of(work, target)
        fd = os.open(device.where, os.O_RDONLY | os.O_DIRECT)
        began = time.monotonic()
        device.process.send_signal(signal.SIGTERM)
        assert device.process.wait(timeout=20) == 1 and "somebody has it open" in device.text(), device.text()
        assert time.monotonic() - began < 15
        device.log.close()
        try:
            os.pread(fd, 0, 0)
        finally:
            os.close(fd)
        loop = pathlib.Path(f"/sys/block/{device.where.removeprefix('/dev/')}/loop")
        eventually("it goes when it is closed", lambda: not loop.exists(), 10)
        assert not list((work / "run").iterdir())


@device_claim
def when_nbdfuse_dies_the_process_says_so():
    with folder() as work, Target(work, "ram:size=16MiB") as target:
        device = fuse_of(work, target)
        os.kill(int(device.children()[0]), signal.SIGKILL)
        assert device.process.wait(timeout=20) == 1 and "nbdfuse was killed by signal 9" in device.text(), device.text()
        device.log.close()
        assert not list((work / "run").iterdir())


if __name__ == "__main__":
    programs.main(CLAIMS)
