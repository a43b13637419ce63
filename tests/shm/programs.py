#!/usr/bin/env python3
"""The three programs against each other over shared memory, as a user runs them. Usage: programs.py TOOLS_DIR [CLAIM...]

Prints one line per claim and a summary; exit status 1 if one failed. RBT_SEED replays the random moments of a run.
"""
import array
import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import termios
import time

TOOLS = pathlib.Path(sys.argv[1]).resolve()
NQN = "nqn.2026-01.io.example:programs"
SEED = int(os.environ.get("RBT_SEED", random.SystemRandom().randrange(1 << 32)))
RANDOM = random.Random(SEED)
SANITIZED = "asan" in str(TOOLS) or "tsan" in str(TOOLS)
KILLS = 8 if SANITIZED else 25  # of each side
SLOW = 5 if SANITIZED else 1  # sanitizers stretch the time that something is given to happen in
PATIENCE = 10 if SANITIZED else 1  # and, beside a virtual machine, every deadline; not what is claimed
CLAIMS = []


def claim(function):
    CLAIMS.append(function)
    return function


def tool(name, *arguments, timeout=60, **options):
    return subprocess.run([TOOLS / name, *map(str, arguments)], capture_output=True, text=True, timeout=timeout * PATIENCE, **options)


# Somebody else's program.
def run(*command, status=0, timeout=60, **options):
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=timeout, **options)
    assert result.returncode == status, f"{command[0]}: exit status {result.returncode}, wanted {status}: {result.stdout}{result.stderr}"
    return result.stdout + result.stderr


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def expect(result, status, *words):
    text = result.stdout + result.stderr
    assert result.returncode == status, f"exit status {result.returncode}, wanted {status}: {text}"
    for word in words:
        assert word in text, f"'{word}' is not in: {text}"
    return result


class Target:
    """rbt-target over one socket, until the end of the with statement."""

    def __init__(self, folder, *stores, arguments=(), listen=None):
        self.socket = folder / "rbt.sock"
        self.uri = f"nvme+shm:///{NQN}/1?socket={self.socket}"
        self.address = f"nvme+shm://?socket={self.socket}"
        self.log = (folder / "target.log").open("w+")
        self.process = subprocess.Popen([TOOLS / "rbt-target", "--listen", listen or self.address, "--subsystem", NQN, *arguments]
                                        + [word for store in stores for word in ("--store", store)],
                                        stdout=subprocess.PIPE, stderr=self.log, text=True)
        line = self.process.stdout.readline()
        assert "ready" in line, f"no ready line but '{line}': {self.text()}"

    def text(self):
        return pathlib.Path(self.log.name).read_text()

    def proc(self, name):
        return pathlib.Path(f"/proc/{self.process.pid}/{name}")

    def descriptors(self):
        return len(list(self.proc("fd").iterdir()))

    def mappings(self):
        return sum(1 for line in self.proc("maps").read_text().splitlines() if "memfd:" in line)

    def resident_kib(self):
        return int(re.search(r"VmRSS:\s+(\d+)", self.proc("status").read_text())[1])

    def cpu_seconds(self):
        fields = self.proc("stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.log.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.terminate()
            assert self.process.wait(timeout=20 * PATIENCE) == 0, f"rbt-target did not leave cleanly: {self.text()}"
        self.process.stdout.close()
        self.log.close()


@contextlib.contextmanager
def folder():
    with tempfile.TemporaryDirectory(prefix="rbt-") as name:
        yield pathlib.Path(name)


def eventually(what, predicate, seconds):
    deadline = time.monotonic() + seconds * PATIENCE
    while not predicate():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)


@claim
def verified_load_over_shm_reads_back_what_was_written():
    with folder() as work, Target(work, "ram:size=64MiB", "null:size=1TiB", arguments=["--reactors", "2"]) as target:
        for pattern, size, depth, jobs in (("randwrite", "4k", 32, 1), ("randrw", "4k", 64, 2), ("write", "128k", 16, 1),
                                           ("read", "1M", 4, 1), ("randrw", "512", 8, 1)):
            result = expect(tool("rbt-perf", target.uri, "--rw", pattern, "--bs", size, "--iodepth", depth, "--numjobs", jobs,
                                 "--runtime", "1", "--size", "16MiB", "--verify", "-o", "json"), 0)
            figures = json.loads(result.stdout)
            assert figures["errors"] == 0 and figures["blocks_verified"] > 0 and figures["iops"] > 0, figures
            assert set(figures["latency_us"]) == {"mean", "p50", "p90", "p99", "p99_9", "max"}, figures


@claim
def a_file_is_served_with_the_same_bytes_and_the_same_identity_after_a_restart():
    with folder() as work:
        image = work / "disk.img"
        image.write_bytes(os.urandom(1 << 20) + bytes(7 << 20))
        source = work / "new.img"
        source.write_bytes(os.urandom(3 << 20) + bytes(2 << 20) + os.urandom(3 << 20))
        with Target(work, f"file:{image}") as target:
            expect(tool("rbt-connect", "copy", "--verify", source, target.uri), 0, "read back and right")
            before = json.loads(expect(tool("rbt-connect", "info", target.uri, "-o", "json"), 0).stdout)
        assert image.read_bytes() == source.read_bytes(), "the image is not what was copied in"
        with Target(work, f"file:{image}") as target:
            after = json.loads(expect(tool("rbt-connect", "info", target.uri, "-o", "json"), 0).stdout)
            expect(tool("rbt-connect", "copy", target.uri, work / "out.img"), 0)
            piped = subprocess.run([TOOLS / "rbt-connect", "copy", target.uri, "-"], capture_output=True, timeout=60 * PATIENCE)
        assert piped.returncode == 0 and piped.stdout == source.read_bytes(), piped.stderr
        assert (work / "out.img").read_bytes() == source.read_bytes(), "the copy is not the image"
        assert before["namespaces"][0]["uuid"] == after["namespaces"][0]["uuid"], "the identity changed"


class QemuNbd:
    """qemu-nbd with a qcow2 image, until the end of the with statement; can be killed and started again."""

    def __init__(self, folder):
        self.socket = folder / "nbd.sock"
        self.image = folder / "image.qcow2"
        self.process = None
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", self.image, "64M"], check=True)

    def __enter__(self):
        self.socket.unlink(missing_ok=True)
        self.process = subprocess.Popen(["qemu-nbd", "-t", "-e", "4", "-f", "qcow2", "--discard=unmap", "-k", self.socket, self.image])
        eventually("qemu-nbd serves", lambda: subprocess.run(["nbdinfo", "--size", self.uri()], capture_output=True).returncode == 0, 20)
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def uri(self):
        return f"nbd+unix:///?socket={self.socket}"


@claim
def qcow2_over_nbd_reads_back_right_although_qemu_nbd_is_killed_in_the_middle():
    with folder() as work, QemuNbd(work) as server, Target(work, f"nbd:{server.uri()}", arguments=["--reactors", "2"]) as target:
        load = subprocess.Popen([TOOLS / "rbt-perf", target.uri, "--rw", "randrw", "--bs", "4k", "--iodepth", "16", "--numjobs", "2", "--size",
                                 "16MiB", "--runtime", str(3 * SLOW), "--verify", "-o", "json"], stdout=subprocess.PIPE, text=True)
        for kill in range(3):
            time.sleep(RANDOM.uniform(0.2, 0.6) * SLOW)
            server.__exit__()
            server.__enter__()
            eventually("the target is back", lambda: target.text().count("connected to the server again") > kill, 20)
        output, _ = load.communicate(timeout=60 * PATIENCE)
        figures = json.loads(output)
        assert load.returncode == 0 and figures["errors"] == 0 and figures["blocks_verified"] > 0, figures


@claim
def a_store_plugin_in_c_serves_verified_load_in_each_of_its_forms():
    for form in ("async", "blocking", "mapped"):
        plugin = TOOLS.parent / "docs" / "examples" / f"ram_store_{form}.so"
        with folder() as work, Target(work, f"stats:plugin:{plugin},size={64 << 20}", arguments=["--reactors", "2"]) as target:
            for pattern, size in (("randrw", "4k"), ("write", "128k")):
                result = expect(tool("rbt-perf", target.uri, "--rw", pattern, "--bs", size, "--iodepth", "32", "--numjobs", "2",
                                     "--runtime", "1", "--size", "16MiB", "--verify", "-o", "json"), 0)
                figures = json.loads(result.stdout)
                assert figures["errors"] == 0 and figures["blocks_verified"] > 0, (form, figures)
            target.process.send_signal(signal.SIGUSR1)
            eventually("SIGUSR1 shows what the layer counts", lambda: "commit: " in target.text(), 5)
            assert "ram_store: a disk that forgets everything" in target.text(), form


@claim
def every_byte_over_shm_is_copied_once_by_the_target_and_not_at_all_by_the_host():
    capsules = 64 + 16  # a command and its response, which the fabric copies, too
    connecting = 64 << 10  # what a host asks before its first command
    with folder() as work, tempfile.TemporaryDirectory(prefix="rbt-", dir="/dev/shm") as memory:
        # A file in memory outlives a target that is killed while it copies: what is written there the kernel copies, on the fabric's account.
        for store in ("ram:size=32MiB", f"map:{memory}/disk", f"map:{memory}/disk,atomic=in-place", f"map:{memory}/shadow,atomic=shadow",
                      f"file:{work}/disk"):
            for place in (memory, work):
                with open(f"{place}/disk", "w") as disk:
                    os.posix_fallocate(disk.fileno(), 0, 32 << 20)  # what is read from a hole in memory comes by way of a buffer
            if "shadow" in store:
                expect(tool("rbt-target", "--convert-image", f"{memory}/disk", f"{memory}/shadow", "--to", "shadow", "--block", "4096"), 0)
            with Target(work, store) as target:
                result = expect(tool("rbt-perf", target.uri, "--rw", "randrw", "--bs", "16k", "--iodepth", "8", "--size", "16MiB",
                                     "--runtime", "1", "-o", "json"), 0)
                host = json.loads(result.stdout)
                read, written, commands = host["bytes_read"], host["bytes_written"], host["commands"]
                assert read > 0 and written > 0, host
                assert 0 < host["bytes_copied"] <= commands * capsules + connecting, (store, host)
                target.process.send_signal(signal.SIGUSR1)
                counted = re.compile(r"(\d+) bytes served; copied: (\d+) by commands and stores, (\d+) by shm; ")
                eventually("SIGUSR1 shows what was copied", lambda: counted.search(target.text()), 5)
                served, by_store, by_fabric = map(int, counted.search(target.text()).groups())
                assert served == read + written, (store, served, host)
                assert by_store == 0, (store, by_store, host)
                assert served <= by_fabric <= served + commands * capsules + connecting, (store, by_fabric, host)


@claim
def a_memory_disk_is_another_disk_after_a_restart():
    with folder() as work:
        seen = set()
        for _ in range(2):
            with Target(work, "ram:size=1MiB") as target:
                seen.add(json.loads(tool("rbt-connect", "info", target.uri, "-o", "json").stdout)["namespaces"][0]["uuid"])
        assert len(seen) == 2, seen


@claim
def a_configuration_of_64_subsystems_with_1000_namespaces_each_is_served_with_few_descriptors():
    with folder() as work:
        config = work / "many.toml"
        config.write_text("".join(f'[[subsystem]]\nnqn = "{NQN}-{number}"\nstore = {json.dumps(["ram:size=64KiB", "null:size=1TiB"] * 500)}\n'
                                  for number in range(64)))
        with Target(work, "ram:size=1MiB", arguments=["--config", config]) as target:
            found = expect(tool("rbt-connect", "discover", target.address), 0).stdout
            assert all(f"{NQN}-{number}" in found for number in range(64)), found
            seen = set()
            for number in (0, 63):
                uri = f"nvme+shm:///{NQN}-{number}?socket={target.socket}"
                namespaces = json.loads(expect(tool("rbt-connect", "info", uri, "-o", "json"), 0).stdout)["namespaces"]
                assert [each["nsid"] for each in namespaces] == list(range(1, 1001)), namespaces
                seen |= {each["uuid"] for each in namespaces}
            assert len(seen) == 2000, "two namespaces have one identity"
            expect(tool("rbt-perf", f"nvme+shm:///{NQN}-63/999?socket={target.socket}", "--rw", "randwrite", "--size", "64k", "--iodepth", "4",
                        "--runtime", "0.2", "--verify"), 0)
            assert target.descriptors() < 50, f"{target.descriptors()} descriptors"
            assert SANITIZED or target.resident_kib() < 1 << 20, f"{target.resident_kib()} KiB"


@claim
def discovery_lists_what_a_host_may_use():
    with folder() as work, Target(work, "ram:size=1MiB", arguments=["--allow-host", "nqn.2026-01.io.example:me"]) as target:
        result = expect(tool("rbt-connect", "discover", target.address, "--hostnqn", "nqn.2026-01.io.example:me"), 0)
        assert NQN in result.stdout, result.stdout
        stranger = expect(tool("rbt-connect", "discover", target.address), 0)
        assert NQN not in stranger.stdout, stranger.stdout
        refused = tool("rbt-connect", "info", target.uri)
        assert refused.returncode != 0 and "host" in refused.stderr, refused.stderr


@claim
def a_socket_is_its_users_alone_unless_the_listener_names_a_group():
    group = 54321 if os.geteuid() == 0 else os.getegid()
    with folder() as work:
        work.chmod(0o711)
        program = shutil.copy(TOOLS / "rbt-connect", work)  # where everybody can run it
        for option, mode, stranger, member in (("", 0o600, False, False), (f"&group={group}", 0o660, False, True)):
            with Target(work, "ram:size=1MiB", listen=f"nvme+shm://?socket={work}/rbt.sock{option}") as target:
                status = target.socket.stat()
                assert stat.S_IMODE(status.st_mode) == mode, oct(status.st_mode)
                assert not option or status.st_gid == group, status
                expect(tool("rbt-connect", "info", target.uri), 0)
                if os.geteuid() != 0:
                    continue  # only root can be somebody else
                for groups, welcome in (([], stranger), ([group], member)):
                    result = subprocess.run([program, "info", target.uri], user=65534, group=65534, extra_groups=groups,
                                            capture_output=True, text=True, timeout=60 * PATIENCE)
                    assert result.returncode == (0 if welcome else 5), f"{option} {groups}: {result}"
        for option, words in (("&group=no-such-group", "there is no group 'no-such-group'"), ("&group=0x", "there is no group '0x'")):
            refused = subprocess.run([TOOLS / "rbt-target", "--listen", f"nvme+shm://?socket={work}/rbt.sock{option}", "--subsystem", NQN,
                                      "--store", "ram:size=1MiB"], capture_output=True, text=True, timeout=60 * PATIENCE)
            assert refused.returncode == 3 and words in refused.stderr, refused
        expect(tool("rbt-connect", "info", f"nvme+shm:///{NQN}?socket={work}/rbt.sock&group=1"), 2, "leave it out")


@claim
def every_refusal_says_what_where_and_what_now():
    with folder() as work, Target(work, "ram:size=1MiB") as target:
        expect(tool("rbt-connect", "info", target.uri.replace("/1?", "/7?")), 3, "7")
        expect(tool("rbt-connect", "info", target.uri.replace("programs", "nobody")), 3, "nobody")
        expect(tool("rbt-connect", "info", f"nvme+shm:///{NQN}/1?socket={work}/none"), 3, f"{work}/none")
        expect(tool("rbt-connect", "info", "nvme+rdma://10.0.0.1:99999/x"), 2, "99999", "^")
        expect(tool("rbt-connect", "frobnicate"), 2, "frobnicate", "copy")
        expect(tool("rbt-connect", "copy", target.uri), 2, "SRC DST")
        expect(tool("rbt-connect"), 2, "Usage")
        expect(tool("rbt-perf", target.uri, "--bs", "1000"), 2, "1000")
        expect(tool("rbt-perf", target.uri, "--rw", "sideways"), 2, "sideways", "randread")
        expect(tool("rbt-perf"), 2, "Usage")
        expect(tool("rbt-target"), 2, "Usage")
        expect(tool("rbt-target", "--explain", "ram:size=1MiB", "null:size=1MiB"), 2, "'null:size=1MiB'", "the option's name")
        expect(tool("rbt-perf", target.uri, "another"), 2, "'another'")
        expect(tool("rbt-target", "--listen", "nvme+shm://", "--subsystem", NQN, "--store", "rma:size=1MiB"), 2, "rma", "ram")
        expect(tool("rbt-target", "--listen", target.address, "--subsystem", NQN, "--store", "ram:size=1MiB"), 6,
               str(target.socket), str(target.process.pid))
        big = work / "big"
        big.write_bytes(bytes(2 << 20))
        expect(tool("rbt-connect", "copy", big, target.uri), 2, "too small")


@claim
def the_programs_explain_themselves():
    for name in ("rbt-target", "rbt-connect", "rbt-perf"):
        expect(tool(name, "--help"), 0, "Usage", "Exit status" if name != "rbt-perf" else "--verify")
        expect(tool(name, "--version"), 0, name)
        expect(tool(name, "--no-such-option"), 2, "no-such-option", "--help")


@claim
def explain_says_how_each_store_would_be_served_and_why_not_better():
    with folder() as work, tempfile.TemporaryDirectory(prefix="rbt-", dir="/dev/shm") as memory:
        for path in (f"{work}/disk", f"{memory}/disk"):
            with open(path, "w") as disk:
                disk.truncate(1 << 20)
        plugin = TOOLS.parent / "docs" / "examples"
        for spec, words in (("ram:size=1MiB", "served in place, without a copy"),
                            ("ram:size=1MiB,atomic=shadow", "landing blocks"),
                            ("null:size=1TiB", "nothing is kept"),
                            (f"file:{work}/disk", "by way of buffers"),
                            (f"file:{work}/disk,direct=off", "through the page cache: direct=off"),
                            (f"map:{work}/disk", "no adapter may write there"),
                            (f"map:{memory}/disk", "a shadow image (--convert-image, atomic=shadow) needs no copy"),
                            (f"map:{memory}/disk,readonly", "leave out ,readonly"),
                            (f"delay:1ms,map:{memory}/disk", "guarded by a write lease"),
                            (f"plugin:{plugin}/ram_store_mapped.so,size={1 << 20}", "the plugin's memory; served in place"),
                            (f"plugin:{plugin}/ram_store_async.so,size={1 << 20}", "offers no memory (map_region)")):
            told = expect(tool("rbt-target", "--explain", spec), 0, words).stdout
            assert "userfault: " in told and "lease: " in told, told
        if os.geteuid() != 0:
            return  # only root can be somebody else
        # A source that is not to be had: no zero copy, in the log, too, and what would bring it back.
        os.chmod(memory, 0o711)
        os.chmod(f"{memory}/disk", 0o666)
        work.chmod(0o711)
        program = shutil.copy(TOOLS / "rbt-target", work)
        stranger = {"user": 65534, "group": 65534, "extra_groups": [], "capture_output": True, "text": True, "timeout": 60 * PATIENCE}
        refused = ("by way of buffers", "(EACCES); run as its owner or with CAP_LEASE")
        expect(subprocess.run([program, "--explain", f"map:{memory}/disk"], **stranger), 0, *refused)
        told = subprocess.run([program, "--listen", f"nvme+shm://?socket={memory}/none/rbt.sock", "--subsystem", NQN, "--store",
                               f"map:{memory}/disk"], **stranger)
        assert all(word in told.stderr for word in refused), told


@claim
def the_doctor_examines_this_machine():
    table = expect(tool("rbt-connect", "doctor"), 0).stdout
    findings = json.loads(expect(tool("rbt-connect", "doctor", "-o", "json"), 0).stdout)["findings"]
    assert {finding["subject"] for finding in findings} >= {"ublk", "nbd", "fuse", "rdma", "memlock", "io_uring", "userfaultfd"}, findings
    rdma = next(finding for finding in findings if finding["subject"] == "rdma")
    assert (rdma["verdict"] != "missing") <= os.path.isdir("/sys/class/infiniband"), rdma
    for finding in findings:
        assert (finding["verdict"] == "good") == (finding["remedy"] == ""), finding
        assert finding["seen"] in table and finding["remedy"] in table, finding
    expect(tool("rbt-connect", "doctor", "me"), 2, "doctor")


@claim
def a_copy_from_a_pipe_that_says_nothing_ends_when_it_is_told_to():
    with folder() as work, Target(work, "ram:size=4MiB") as target:
        copy = subprocess.Popen([TOOLS / "rbt-connect", "copy", "-", target.uri], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        # One transfer and a byte of the next: once that byte has been taken, the copy waits for the rest of it.
        copy.stdin.write(bytes(range(256)) * 4096 + b"!")
        copy.stdin.flush()
        left = array.array("i", [0])
        eventually("the pipe is empty", lambda: fcntl.ioctl(copy.stdin, termios.FIONREAD, left) == 0 and left[0] == 0, 10)
        copy.terminate()
        status = copy.wait(timeout=10 * PATIENCE)
        assert status == 130, f"exit status {status}: {copy.stderr.read()}"
        said = copy.stderr.read()
        assert b"interrupted after" in said, said
        copy.stdin.close()
        copy.stderr.close()


@claim
def a_copy_from_a_pipe_that_says_nothing_notices_that_the_target_is_gone():
    with folder() as work, Target(work, "ram:size=4MiB") as target:
        copy = subprocess.Popen([TOOLS / "rbt-connect", "copy", "--on-loss", "fail", "-", target.uri], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        copy.stdin.write(bytes(range(256)) * 4096 + b"!")
        copy.stdin.flush()
        left = array.array("i", [0])
        eventually("the pipe is empty", lambda: fcntl.ioctl(copy.stdin, termios.FIONREAD, left) == 0 and left[0] == 0, 10)
        target.process.kill()
        killed = time.monotonic()
        status = copy.wait(timeout=10 * PATIENCE)
        took = time.monotonic() - killed
        said = copy.stderr.read()
        assert status == 3 and target.uri.encode() in said, f"exit status {status}: {said}"
        assert took < 1.0 * PATIENCE, f"noticed after {took:.2f} s"
        copy.stdin.close()
        copy.stderr.close()


@claim
def a_copy_goes_on_where_it_was_when_its_target_is_killed_and_comes_back():
    size = 24 << 20
    with folder() as work:
        source, image = work / "source.img", work / "disk.img"
        source.write_bytes(RANDOM.randbytes(size // 3) + bytes(size // 3) + RANDOM.randbytes(size // 3))
        image.write_bytes(bytes(size))
        # Half of it goes through a pipe; then the target is killed and started again, and then comes the other half.
        half = size // 2 + 12345
        target = Target(work, f"file:{image}")
        copy = subprocess.Popen([TOOLS / "rbt-connect", "copy", "--verify", "-", target.uri], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        data = source.read_bytes()
        copy.stdin.write(data[:half])
        copy.stdin.flush()
        target.kill()
        target = Target(work, f"file:{image}")
        copy.stdin.write(data[half:])
        copy.stdin.close()
        said = copy.stderr.read().decode()
        assert copy.wait(timeout=60 * PATIENCE) == 0 and "the path is lost" in said and "live again" in said, said
        copy.stderr.close()
        assert image.read_bytes() == data, "the image is not what was copied in"
        # The other way: the pipe stands still until the target is there again.
        copy = subprocess.Popen([TOOLS / "rbt-connect", "copy", target.uri, "-"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        got = copy.stdout.read(1 << 20)
        target.kill()
        target = Target(work, f"file:{image}")
        got += copy.stdout.read()
        said = copy.stderr.read().decode()
        assert copy.wait(timeout=60 * PATIENCE) == 0 and "the path is lost" in said, said
        copy.stdout.close()
        copy.stderr.close()
        assert got == data, "what came out is not the image"
        # Told to end, it does, although nobody is there to write to.
        copy = subprocess.Popen([TOOLS / "rbt-connect", "copy", target.uri, "-"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        copy.stdout.read(1 << 20)
        target.kill()
        copy.terminate()
        assert copy.wait(timeout=20 * PATIENCE) == 130 and b"interrupted after" in copy.stderr.read()
        copy.stdout.close()
        copy.stderr.close()


def start_load(target, seconds=30):
    return subprocess.Popen([TOOLS / "rbt-perf", target.uri, "--rw", "randrw", "--bs", RANDOM.choice(["4k", "64k"]), "--iodepth", "32",
                             "--size", "16MiB", "--runtime", str(seconds)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


@claim
def a_target_killed_in_the_middle_of_io_is_reported_within_a_second():
    with folder() as work:
        for moment in range(KILLS):
            target = Target(work, "ram:size=16MiB")
            load = start_load(target)
            time.sleep(RANDOM.uniform(0.0, 0.3) * SLOW)
            target.process.kill()
            target.process.wait()
            killed = time.monotonic()
            _, errors = load.communicate(timeout=10 * PATIENCE)
            took = time.monotonic() - killed
            assert took < 1.0 * PATIENCE, f"kill {moment}: rbt-perf noticed after {took:.2f} s: {errors}"
            assert load.returncode in (1, 3), f"kill {moment}: exit status {load.returncode}: {errors}"
            assert errors.strip(), f"kill {moment}: rbt-perf said nothing"
            target.process.stdout.close()
            target.log.close()


@claim
def a_target_survives_hosts_killed_in_the_middle_of_io_and_leaks_nothing():
    with folder() as work, Target(work, "ram:size=16MiB") as target:
        expect(tool("rbt-perf", target.uri, "--rw", "randwrite", "--size", "16MiB", "--runtime", "0.3"), 0)
        time.sleep(0.5)  # what the first connection needed is given back within this
        descriptors, mappings, resident = target.descriptors(), target.mappings(), target.resident_kib()
        for moment in range(KILLS):
            load = start_load(target)
            time.sleep(RANDOM.uniform(0.0, 0.3) * SLOW)
            load.kill()
            load.communicate()
            eventually(f"kill {moment}: the target let go: {target.descriptors()} descriptors, {descriptors} before; "
                       f"{target.mappings()} mappings, {mappings} before",
                       lambda: target.descriptors() == descriptors and target.mappings() == mappings, 1)
        expect(tool("rbt-perf", target.uri, "--rw", "randrw", "--verify", "--runtime", "0.5"), 0)
        grown = target.resident_kib() - resident
        assert SANITIZED or grown < 8 * 1024, f"the target has grown by {grown} KiB in {KILLS} connections"


@claim
def an_idle_target_with_100_connections_uses_no_cpu():
    with folder() as work, Target(work, "ram:size=1MiB", arguments=["--reactors", "2"]) as target:
        with contextlib.ExitStack() as hosts:
            quiet = [subprocess.Popen([TOOLS / "rbt-perf", target.uri, "--numjobs", "24", "--iodepth", "1", "--bs", "512", "--size", "64k",
                                       "--runtime", "1000", "--rw", "randread"], stdout=subprocess.DEVNULL) for _ in range(4)]
            for host in quiet:
                hosts.callback(host.wait)
                hosts.callback(host.kill)
            # 4 hosts with an admin queue and 24 I/O queues each. Stopped, they stay connected and say nothing; their
            # keep-alive is not yet due.
            eventually("100 connections", lambda: target.descriptors() >= 100, 20)
            for host in quiet:
                host.send_signal(signal.SIGSTOP)
            time.sleep(1)
            before, began = target.cpu_seconds(), time.monotonic()
            time.sleep(3)
            share = (target.cpu_seconds() - before) / (time.monotonic() - began)
            assert share < 0.01, f"{share * 100:.2f} % of a core"


def main(claims):
    wanted = sys.argv[2:]
    passed = failed = 0
    print(f"RBT_SEED={SEED}")
    for function in claims:
        if wanted and function.__name__ not in wanted:
            continue
        began = time.monotonic()
        try:
            function()
            passed += 1
            print(f"ok     {time.monotonic() - began:6.1f} s  {function.__name__.replace('_', ' ')}", flush=True)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            failed += 1
            print(f"FAILED {time.monotonic() - began:6.1f} s  {function.__name__.replace('_', ' ')}\n       {error}", flush=True)
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed or not passed else 0)


if __name__ == "__main__":
    main(CLAIMS)
