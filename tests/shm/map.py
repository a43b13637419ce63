#!/usr/bin/env python3
"""rbt-connect map as a user runs it, with FUSE and a loop device, over shared memory: needs root. Usage: map.py TOOLS_DIR [CLAIM...]

Prints one line per claim and a summary; exit status 1 if one failed. RBT_SEED replays the random moments of a run. (ublk and NBD
need a kernel module: tests/softroce/map.sh.)
"""
import contextlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

TOOLS = pathlib.Path(sys.argv[1]).resolve()
NQN = "nqn.2026-01.io.example:mapped"
SEED = int(os.environ.get("RBT_SEED", random.SystemRandom().randrange(1 << 32)))
RANDOM = random.Random(SEED)
SANITIZED = "asan" in str(TOOLS) or "tsan" in str(TOOLS)
SLOW = 5 if SANITIZED else 1  # sanitizers stretch every deadline, not what is claimed
MIB = 1 << 20
CLAIMS = []


def claim(function):
    CLAIMS.append(function)
    return function


def eventually(what, predicate, seconds=20):
    deadline = time.monotonic() + seconds * SLOW
    while not predicate():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)


class World:
    """A folder with a target, and with what rbt-connect knows of its volumes; nothing of it is left at the end."""

    def __init__(self, folder):
        self.folder = folder
        self.run = folder / "run"
        self.image = folder / "image"
        self.socket = folder / "rbt.sock"
        self.uri = f"nvme+shm:///{NQN}/1?socket={self.socket}"
        self.target = None
        self.environment = dict(os.environ, RBT_RUN_DIR=str(self.run), RBT_TAB=str(folder / "rbttab"))
        with self.image.open("wb") as image:
            image.truncate(32 * MIB)

    def serve(self, *stores):
        log = (self.folder / "target.log").open("a")
        words = [word for store in stores or (f"file:{self.image}",) for word in ("--store", store)]
        self.target = subprocess.Popen([TOOLS / "rbt-target", "--listen", f"nvme+shm://?socket={self.socket}", "--subsystem", NQN, *words],
                                       stdout=subprocess.PIPE, stderr=log, text=True)
        assert "ready" in self.target.stdout.readline(), (self.folder / "target.log").read_text()

    def kill_target(self):
        self.target.kill()
        self.target.wait()
        self.target.stdout.close()
        self.target = None

    def tool(self, *words, program=TOOLS / "rbt-connect", timeout=60, **options):
        return subprocess.run([program, *map(str, words)], capture_output=True, text=True, timeout=timeout * SLOW,
                              env=self.environment, **options)

    def expect(self, status, *words, says=()):
        result = self.tool(*words)
        text = result.stdout + result.stderr
        assert result.returncode == status, f"{words}: exit status {result.returncode}, wanted {status}: {text}"
        for each in [says] if isinstance(says, str) else says:
            assert re.search(each, text), f"{words}: '{each}' is not in: {text}"
        return result

    def map(self, *words):
        result = self.expect(0, "map", self.uri, "--via", "fuse", *words)
        assert re.fullmatch(r"/dev/loop\d+\n", result.stdout), f"not only a path: '{result.stdout}'"
        return result.stdout.strip()

    def volumes(self):
        return json.loads(self.expect(0, "ls", "-o", "json").stdout)["volumes"]

    def volume(self, name):
        return next((each for each in self.volumes() if each["name"] == name), None)

    def status(self, name):
        return json.loads(self.expect(0, "stats", name, "-o", "json").stdout)["volume"]["status"]

    def state(self, name):
        volume = self.volume(name)
        return volume["state"] if volume else None

    def kill_process(self, name):
        pid = self.volume(name)["pid"]
        os.kill(pid, signal.SIGKILL)
        eventually(f"process {pid} has ended", lambda: ended(pid))

    def nothing_left(self, device):
        assert self.volumes() == [], self.volumes()
        eventually("nothing is left in the folder", lambda: not list(self.run.iterdir()), 5)
        eventually("the loop device has no file", lambda: not pathlib.Path(f"/sys/block/{device[5:]}/loop").exists(), 5)
        assert str(self.folder) not in pathlib.Path("/proc/mounts").read_text()


def ended(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


@contextlib.contextmanager
def world(*stores):
    with tempfile.TemporaryDirectory(prefix="rbt-map-") as name:
        made = World(pathlib.Path(name))
        made.serve(*stores)
        try:
            yield made
        finally:
            for volume in made.volumes():
                made.tool("unmap", "--force", volume["name"])
            if made.target:
                made.kill_target()


class Load(threading.Thread):
    """Writes blocks with direct I/O and reads them back until told to stop, or until the first error."""

    def __init__(self, device):
        super().__init__()
        self.device, self.done, self.error, self.over = device, 0, None, threading.Event()
        self.start()

    def run(self):
        blocks = {}
        memory = memoryview(__import__("mmap").mmap(-1, 4096))  # aligned
        generator = random.Random(SEED)
        descriptor = os.open(self.device, os.O_RDWR | os.O_DIRECT)
        try:
            while not self.over.is_set():
                block = generator.randrange(1024)
                if generator.random() < 0.5 or block not in blocks:
                    blocks[block] = generator.randbytes(64) * 64
                    memory[:] = blocks[block]
                    os.pwritev(descriptor, [memory], block * 4096)
                else:
                    os.preadv(descriptor, [memory], block * 4096)
                    assert bytes(memory) == blocks[block], f"block {block} is not what was written"
                self.done += 1
        except (OSError, AssertionError) as error:
            self.error = error
        finally:
            os.close(descriptor)

    def moves(self, seconds=30):
        before = self.done
        eventually("the load moves", lambda: self.done > before + 10 or self.error, seconds)
        assert self.error is None, self.error

    def stop(self):
        self.over.set()
        self.join()


@claim
def map_prints_only_the_path_of_a_disk_that_works():
    with world() as made:
        device = made.map("--as", "one")
        assert os.stat(device).st_rdev and int(subprocess.check_output(["blockdev", "--getsize64", device])) == 32 * MIB
        pattern = os.urandom(MIB)
        with open(device, "r+b") as disk:
            disk.write(pattern)
            os.fsync(disk.fileno())
        assert made.image.read_bytes()[:MIB] == pattern, "the image is not what was written to the device"
        made.expect(0, "unmap", "one")
        made.nothing_left(device)


@claim
def ls_and_stats_tell_what_is_mapped():
    with world() as made:
        assert made.expect(0, "ls").stdout == "", "nothing is mapped"
        device = made.map("--on-loss", "30")
        volume = made.volumes()[0]
        assert {key: volume[key] for key in ("name", "uri", "device", "via", "state", "size")} == {
            "name": "mapped-1", "uri": made.uri, "device": device, "via": "fuse", "state": "live", "size": 32 * MIB}, volume
        assert volume["options"] == {"via": "fuse", "on-loss": "30s"}, volume
        assert pathlib.Path(f"/proc/{volume['pid']}/comm").read_text() == "rbt-connect\n"
        for verb in ("ls", "list", "showmapped"):
            made.expect(0, verb, says=("mapped-1 +live +" + device, re.escape(made.uri)))
        with open(device, "rb") as disk:
            disk.read(MIB)
        status = made.status(device)
        assert status["requests"]["read"]["bytes"] >= MIB and status["losses"] == 0 and status["fence"] == "target", status
        made.expect(0, "stats", "mapped-1", says=("path lost +never", "read +[1-9]"))
        assert made.expect(0, "udev-name", device[5:]).stdout == f"RBT_NAME=mapped-1\nRBT_UUID={volume['uuid']}\n"
        made.expect(3, "udev-name", "loop9999")
        made.expect(3, "stats", "other", says="there are mapped-1")


@claim
def a_name_and_a_disk_are_one_volume_s():
    with world("ram:size=8MiB", "ram:size=8MiB") as made:
        made.map("--as", "one")
        made.expect(6, "map", made.uri, "--via", "fuse", "--as", "one", says="'one' is the name of a mapped volume")
        made.expect(6, "map", made.uri, "--via", "fuse", "--as", "two", says="is mapped as 'one'")
        made.uri = made.uri.replace("/1?", "/2?")
        made.map()
        assert {each["name"] for each in made.volumes()} == {"one", "mapped-2"}


@claim
def unmap_refuses_while_somebody_uses_the_disk_and_says_who():
    with world() as made:
        device = made.map("--as", "busy")
        mount = made.folder / "mount"
        mount.mkdir()
        subprocess.run(["mkfs.ext4", "-q", device], check=True)
        subprocess.run(["mount", device, mount], check=True)
        try:
            made.expect(6, "unmap", "busy", says=f"in use: it is mounted on {mount}")
        finally:
            subprocess.run(["umount", mount], check=True)
        with open(device, "rb"):
            made.expect(6, "unmap", device, says=rf"process {os.getpid()} \(python3.*\) has it open")
            waiting = subprocess.Popen([TOOLS / "rbt-connect", "unmap", "--wait", "busy"], env=made.environment)
            time.sleep(1)
            assert waiting.poll() is None, "it does not wait"
        assert waiting.wait(20 * SLOW) == 0
        made.nothing_left(device)


@claim
def requests_wait_for_a_target_that_is_killed_and_comes_back():
    with world() as made:
        device = made.map("--as", "patient")
        load = Load(device)
        for _ in range(3):
            load.moves()
            time.sleep(RANDOM.random() / 2)
            made.kill_target()
            eventually("the loss is seen", lambda: made.state("patient") != "live")
            made.serve()
            load.moves()
        load.stop()
        assert load.error is None, load.error
        status = made.status("patient")
        assert status["losses"] == 3 and status["state"] == "live", status
        assert sum(each["errors"] for each in status["requests"].values()) == 0, status


@claim
def with_on_loss_fail_requests_fail_at_once_and_with_seconds_after_these():
    for patience, least in (("fail", 0), ("2", 1.5)):
        with world() as made:
            device = made.map("--as", "impatient", "--on-loss", patience)
            load = Load(device)
            load.moves()
            made.kill_target()
            begun = time.monotonic()
            load.join(30 * SLOW)
            took = time.monotonic() - begun
            assert isinstance(load.error, OSError), load.error
            assert least <= took <= (least + 10) * SLOW, f"after {took} s"
            assert made.state("impatient") == "failed", made.volumes()
            made.expect(0, "unmap", "impatient")
            made.nothing_left(device)


@claim
def force_frees_it_within_two_seconds_whoever_is_dead():
    for dead in ((), ("process",), ("target",), ("target", "process")):
        with world() as made:
            device = made.map("--as", "freed")
            load = Load(device)
            load.moves()
            if "target" in dead:
                made.kill_target()
                eventually("the loss is seen", lambda: made.state("freed") != "live")
            if "process" in dead:
                made.kill_process("freed")
            begun = time.monotonic()
            made.expect(0, "unmap", "--force", "freed")
            took = time.monotonic() - begun
            assert took < 2 * SLOW, f"{dead} dead: {took} s"
            load.join(10 * SLOW)
            assert isinstance(load.error, OSError), f"{dead} dead: {load.error}"
            made.nothing_left(device)


@claim
def unmap_of_a_volume_without_its_target_would_lose_what_is_not_durable_and_says_so():
    with world() as made:
        device = made.map("--as", "cut")
        made.kill_target()
        eventually("the loss is seen", lambda: made.state("cut") != "live")
        made.expect(1, "unmap", "cut", says="cannot be flushed.*--force")
        made.serve()
        eventually("it is live again", lambda: made.state("cut") == "live")
        made.expect(0, "unmap", "cut")
        made.nothing_left(device)


@claim
def a_killed_process_leaves_what_gc_and_map_clear_up():
    with world() as made:
        device = made.map("--as", "killed")
        made.kill_process("killed")
        assert made.state("killed") in ("dead", "gone")
        made.expect(3, "recover", "killed", says="gc")
        made.expect(0, "gc", says="killed: ")
        made.nothing_left(device)
        device = made.map("--as", "killed")
        made.kill_process("killed")
        eventually("its loop device is free", lambda: made.state("killed") == "gone", 5)
        device = made.map("--as", "killed")
        assert made.state("killed") == "live"
        made.kill_process("killed")
        eventually("its loop device is free", lambda: made.state("killed") == "gone", 5)
        made.expect(0, "recover", "--all", says="no volume needs recovery")
        made.expect(0, "unmap", "killed")
        made.nothing_left(device)


@claim
def sigterm_unmaps_what_nobody_uses_and_waits_for_whoever_does():
    with world() as made:
        device = made.map("--as", "told")
        pid = made.volume("told")["pid"]
        with open(device, "rb") as disk:
            os.kill(pid, signal.SIGTERM)
            time.sleep(1)
            assert not ended(pid), "it ended under its user"
            disk.read(MIB)
        eventually("it ends when nobody uses it", lambda: ended(pid))
        made.nothing_left(device)


@claim
def in_the_foreground_it_is_the_volume_s_process_and_rbttab_says_what():
    with world() as made:
        (made.folder / "rbttab").write_text(f"# volumes\ntable {made.uri} via=fuse,read-only\n")
        process = subprocess.Popen([TOOLS / "rbt-connect", "map", "table", "--foreground"], stdout=subprocess.PIPE, text=True,
                                   env=made.environment)
        device = process.stdout.readline().strip()
        volume = made.volume("table")
        assert volume["pid"] == process.pid and volume["read_only"] and volume["device"] == device, volume
        assert subprocess.check_output(["blockdev", "--getro", device]) == b"1\n"
        process.terminate()
        assert process.wait(20 * SLOW) == 0
        process.stdout.close()
        made.nothing_left(device)
        made.expect(2, "map", "table", "--queues", "2", says="stands in")
        made.expect(3, "map", "other", says="there are table")
        (made.folder / "rbttab").write_text(f"table {made.uri} via=magic\n")
        made.expect(2, "map", "table", says=r"rbttab:1:\d+: .*auto, ublk, nbd or fuse")


@claim
def systemd_is_told_when_it_is_ready_and_its_watchdog_is_fed_while_there_is_no_target():
    with world() as made, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(made.folder / "notify"))
        notified.settimeout(20 * SLOW)

        def told(what):
            while what not in notified.recv(4096).decode():
                pass

        (made.folder / "rbttab").write_text(f"unit {made.uri} via=fuse\n")
        process = subprocess.Popen([TOOLS / "rbt-connect", "map", "unit", "--foreground"], stdout=subprocess.DEVNULL,
                                   env=dict(made.environment, NOTIFY_SOCKET=str(made.folder / "notify"), WATCHDOG_USEC="300000"))
        told("READY=1")
        assert made.state("unit") == "live"
        told("WATCHDOG=1")
        made.kill_target()
        told("STATUS=/dev/loop")
        for _ in range(10):
            told("WATCHDOG=1")
        assert made.state("unit") != "live"
        made.serve()
        told(": live")
        process.terminate()
        told("STOPPING=1")
        assert process.wait(20 * SLOW) == 0


@claim
def rbttab_s_volume_waits_for_a_target_that_is_just_being_started():
    with world() as made:
        made.kill_target()
        (made.folder / "rbttab").write_text(f"late {made.uri} via=fuse\n")
        process = subprocess.Popen([TOOLS / "rbt-connect", "map", "late"], stdout=subprocess.PIPE, text=True, env=made.environment)
        eventually("it begins", lambda: made.state("late") == "starting")
        made.serve()
        assert process.stdout.readline().startswith("/dev/loop") and process.wait() == 0
        process.stdout.close()
        assert made.state("late") == "live"


@claim
def somebody_else_than_root_is_told_so_and_nothing_worse():
    with world() as made:
        device = made.map("--as", "root-s")
        made.folder.chmod(0o711)
        program = shutil.copy(TOOLS / "rbt-connect", made.folder)  # where everybody can run it
        for words in (["ls"], ["stats", "root-s"], ["unmap", "root-s"], ["unmap", "--force", device], ["gc"], ["recover", "--all"],
                      ["map", made.uri, "--as", "root-s"]):
            result = made.tool(*words, program=program, user=65534, group=65534, extra_groups=[])
            said = result.stdout + result.stderr
            assert result.returncode == 5 and "run it as root" in said and "by hand" not in said, f"{words}: {result}"
        assert made.state("root-s") == "live"
        made.expect(0, "unmap", "root-s")
        made.nothing_left(device)


@claim
def wrong_words_are_told_what_is_right():
    with world() as made:
        nothing_there = made.uri.replace("rbt.sock", "other.sock")
        for status, words, says in (
                (2, ["map"], "0 arguments"), (2, ["map", made.uri, "--via", "magic"], "auto, ublk, nbd or fuse"),
                (2, ["map", "nvme+rdma://10.0.0.1"], "which subsystem"), (2, ["map", made.uri, "--as", "a/b"], "letters"),
                (2, ["map", made.uri, "--queues", "99"], "1 to 64"), (2, ["map", made.uri, "--on-loss", "soon"], "hold"),
                (2, ["map", made.uri, "--quues", "9"], "unrecogni[sz]ed option"), (3, ["map", nothing_there, "--via", "fuse"], "no such socket"),
                (3, ["map", made.uri.replace("/1?", "/9?"), "--via", "fuse"], "namespace"), (2, ["unmap"], "0 arguments"),
                (3, ["unmap", "nothing"], "there is none"), (3, ["unmap", "/dev/null"], "there is none"), (2, ["ls", "x"], "1 argument"),
                (2, ["ls", "-o", "xml"], "table or json"), (2, ["recover"], "recover --all"), (3, ["recover", "x"], "no mapped volume"),
                (2, ["-o", "json", "ls"], "comes first"), (2, ["mapp"], "there are map, unmap")):
            made.expect(status, *words, says=says)
            assert made.volumes() == [], words
        for verb in ("map", "unmap", "ls", "stats", "recover", "gc"):
            made.expect(0, verb, "--help", says=f"Usage: rbt-connect {verb}")
        assert not made.run.exists() or not list(made.run.iterdir()), "something is left of what did not work"


@claim
def states_that_are_damaged_are_told_and_hide_no_others():
    with world() as made:
        device = made.map("--as", "whole")
        (made.run / "broken.json").write_text('{"version": 1, "name"')
        result = made.tool("ls")
        assert result.returncode != 0 and "broken.json" in result.stderr and "whole" in result.stdout, result
        result = made.tool("gc")
        assert result.returncode != 0 and "by hand" in result.stderr, result
        (made.run / "broken.json").unlink()
        made.expect(0, "unmap", "whole")
        made.nothing_left(device)


@claim
def without_privileges_it_says_what_is_missing():
    with world() as made:
        made.folder.chmod(0o755)
        run = made.folder / "own"
        run.mkdir()
        os.chown(run, 65534, 65534)
        result = subprocess.run(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", TOOLS / "rbt-connect", "map", made.uri],
                                capture_output=True, text=True, env=dict(made.environment, RBT_RUN_DIR=str(run)), timeout=60)
        assert result.returncode == 5 and "ublk: " in result.stderr and "fuse: " in result.stderr, result
        assert list(run.iterdir()) == []


def main():
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK) or not os.access("/dev/loop-control", os.R_OK | os.W_OK):
        print("skipped: needs root, /dev/fuse and /dev/loop-control")
        return 77
    failed = 0
    print(f"RBT_SEED={SEED}")
    for function in CLAIMS:
        if sys.argv[2:] and function.__name__ not in sys.argv[2:]:
            continue
        begun = time.monotonic()
        try:
            function()
            word = "ok"
        except Exception as error:  # an assertion, or whatever a broken program makes of the test
            failed += 1
            word = f"FAILED: {type(error).__name__}: {error}"
        print(f"{function.__name__.replace('_', ' ')} ({time.monotonic() - begun:.1f} s): {word}", flush=True)
    print(f"{failed} failed")
    return 1 if failed else 0


sys.exit(main())
