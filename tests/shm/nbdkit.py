#!/usr/bin/env python3
"""nbdkit-rbt-plugin.so over shared memory, used by those who speak NBD. Usage: nbdkit.py TOOLS_DIR [CLAIM...]

Prints one line per claim and a summary; exit status 1 if one failed.
"""
import json
import os
import signal
import subprocess
import time

import programs
import raw_nbd
from programs import NQN, TOOLS, Target, digest, eventually, folder, run

PLUGIN = TOOLS / "nbdkit-rbt-plugin.so"
UNLOADING = TOOLS.parent / "tests" / "shm" / "unloading.so"
CLAIMS = []


def claim(function):
    CLAIMS.append(function)
    return function


def make_sparse(path, size):
    path.touch()
    os.truncate(path, size)


class Nbdkit:
    """nbdkit with our plugin on a socket of its own, until the end of the with statement."""

    def __init__(self, folder, uri, *parameters, options=(), tls="", environment=None):
        self.socket = folder / "nbd.sock"
        self.uri = f"nbd{'s' if tls else ''}+unix://{'alice@' if tls else ''}/?socket={self.socket}{tls}"
        self.log = (folder / "nbdkit.log").open("w+")
        ready = folder / "nbdkit.pid"
        ready.unlink(missing_ok=True)
        self.socket.unlink(missing_ok=True)
        self.process = subprocess.Popen(["nbdkit", "-f", "-U", self.socket, "-P", ready, *options, PLUGIN, uri, *parameters],
                                        stdout=self.log, stderr=self.log, env={**os.environ, **(environment or {})})
        eventually("nbdkit serves", lambda: ready.exists() or self.process.poll() is not None, 20)
        assert self.process.poll() is None, f"nbdkit did not start: {self.text()}"

    def text(self):
        with open(self.log.name) as log:
            return log.read()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.terminate()
        status = self.process.wait(timeout=20)
        assert status == 0, f"nbdkit did not leave cleanly, but with {status}: {self.text()}"
        self.log.close()


def info(server):
    return json.loads(run("nbdinfo", "--json", server.uri))["exports"][0]


@claim
def clients_are_told_the_truth_about_the_namespace():
    with folder() as work, Target(work, "ram:size=64MiB,block=4096") as target, Nbdkit(work, target.uri) as server:
        told = info(server)
        wanted = {"export-size": 64 << 20, "is_rotational": False, "is_read_only": False, "can_flush": True, "can_fua": True,
                  "can_multi_conn": True, "can_trim": True, "can_zero": True, "can_fast_zero": True, "can_cache": True,
                  "block_size_minimum": 4096, "block_size_preferred": 4096, "block_size_maximum": 32 << 20}
        for key, value in wanted.items():
            assert told[key] == value, f"{key} is {told[key]}, not {value}: {told}"
        assert NQN in told["description"], told
        extents = json.loads(run("nbdinfo", "--map", "--json", server.uri))
        assert [extent["type"] for extent in extents] == [0], f"nothing is known of holes, so all is data: {extents}"
    with folder() as work:
        (work / "disk.img").write_bytes(os.urandom(1 << 20))
        with Target(work, f"file:{work / 'disk.img'},readonly") as target, Nbdkit(work, target.uri) as server:
            told = info(server)
            assert told["is_read_only"] and not told["can_trim"] and told["block_size_minimum"] == 512, told
            with raw_nbd.RawNbd(server.socket) as client:
                assert client.ask(raw_nbd.WRITE, 0, data=bytes(512))[0] == raw_nbd.EPERM
                assert client.ask(raw_nbd.READ, 0, 512)[0] == 0


@claim
def qemu_writes_reads_zeroes_discards_and_converts_both_ways():
    with folder() as work:
        disk, source, out, packed = (work / name for name in ("disk.img", "source.img", "out.img", "packed.qcow2"))
        disk.write_bytes(bytes(32 << 20))
        source.write_bytes(os.urandom(9 << 20) + bytes(14 << 20) + os.urandom(9 << 20))
        with Target(work, f"file:{disk}") as target, Nbdkit(work, target.uri) as server:
            said = run("qemu-io", "-f", "raw", "-t", "writeback", "-c", "write -P 0xa5 0 3M", "-c", "write -f -P 0x5a 1M 64k", "-c", "read -P 0xa5 64k 900k",
                       "-c", "read -P 0x5a 1M 64k", "-c", "write -z -u 2M 512k", "-c", "read -P 0 2M 512k", "-c", "read -P 0xa5 2560k 512k",
                       "-c", "discard 0 64k", "-c", "flush", "-c", "write -P 7 1000 3000", "-c", "read -P 7 1000 3000", server.uri)
            assert "fail" not in said and "error" not in said, said
            assert "32 MiB" in run("qemu-img", "info", server.uri)
            run("qemu-img", "convert", "-n", "-W", "-m", "8", "-f", "raw", "-O", "raw", source, server.uri)
            assert "identical" in run("qemu-img", "compare", "-f", "raw", "-F", "raw", source, server.uri)
            run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", server.uri, packed)
            run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", packed, out)
            assert "error" not in server.text(), server.text()
        assert digest(source) == digest(disk) == digest(out), "the image that was served is not what was converted"


@claim
def nbdcopy_copies_both_ways_over_several_connections():
    with folder() as work, Target(work, "ram:size=48MiB", arguments=["--reactors", "2"]) as target:
        source, out = work / "source.img", work / "out.img"
        source.write_bytes(os.urandom(20 << 20) + bytes(8 << 20) + os.urandom(20 << 20))
        with Nbdkit(work, target.uri) as server:
            run("nbdcopy", "--connections=4", "--requests=16", "--flush", source, server.uri)
            run("nbdcopy", "--connections=4", "--requests=16", server.uri, out)
            assert digest(source) == digest(out)
            assert "error" not in server.text(), server.text()


@claim
def fio_verifies_random_writes_trims_and_four_connections():
    with folder() as work, Target(work, "ram:size=64MiB", arguments=["--reactors", "2"]) as target, Nbdkit(work, target.uri + "&queues=2") as server:  # queues= is for others
        jobs = work / "jobs.fio"
        jobs.write_text(f"""
[global]
ioengine=nbd
uri={server.uri}
size=8m
iodepth=32
verify=crc32c
verify_fatal=1
fsync=64
verify_state_save=0

[random]
rw=randwrite
bs=4k
numjobs=4
offset_increment=8m

[mixed]
rw=randwrite
bsrange=512-256k
bs_unaligned=0
offset=32m
""")
        run("fio", "--output-format=json", f"--output={work / 'out.json'}", jobs, timeout=120)
        done = json.loads((work / "out.json").read_text())["jobs"]
        assert len(done) == 5 and all(job["error"] == 0 and job["read"]["total_ios"] >= job["write"]["total_ios"] > 0 for job in done), done
        run("fio", "--name=trim", "--ioengine=nbd", f"--uri={server.uri}", "--size=8m", "--offset=48m", "--rw=trimwrite", "--bs=64k", "--iodepth=8")
        run("fio", "--name=trim", "--ioengine=nbd", f"--uri={server.uri}", "--size=8m", "--offset=48m", "--rw=randtrim", "--bs=4k", "--iodepth=8")
        assert "error" not in server.text(), server.text()


@claim
def requests_of_one_connection_are_answered_side_by_side():
    # A hundred times the delay would pass if they were served one after the other.
    with folder() as work, Target(work, "delay:read=300ms,ram:size=1MiB") as target, Nbdkit(work, target.uri, options=["-t", "32"]) as server:
        with raw_nbd.RawNbd(server.socket) as client:
            began = time.monotonic()
            lengths = {client.send(raw_nbd.READ, 512 * i, 512): 512 for i in range(96)}
            answers = [client.reply(lengths) for _ in range(96)]
            took = time.monotonic() - began
        assert {cookie for cookie, error, data in answers if error == 0 and data == bytes(512)} == set(lengths)
        assert took < 96 * 0.3 / 4, f"{took:.1f} s for 96 requests that take 0.3 s each"


@claim
def what_is_not_whole_blocks_is_refused_and_the_blocksize_filter_serves_it():
    with folder() as work, Target(work, "ram:size=1MiB") as target:
        with Nbdkit(work, target.uri) as server, raw_nbd.RawNbd(server.socket) as client:
            assert client.ask(raw_nbd.WRITE, 100, data=b"x" * 10)[0] == raw_nbd.EINVAL
            assert client.ask(raw_nbd.READ, 0, 513)[0] == raw_nbd.EINVAL
            assert client.ask(raw_nbd.WRITE_ZEROES, 1, 512)[0] == raw_nbd.EINVAL
            assert client.ask(raw_nbd.TRIM, 1, 1000)[0] == 0, "a trim is a hint: the blocks within it"
            assert client.ask(raw_nbd.READ, 0, 4096) == (0, bytes(4096))
            assert "write of 10 bytes at byte 100" in server.text() and "--filter=blocksize" in server.text(), server.text()
        with Nbdkit(work, target.uri, options=["--filter=blocksize"]) as server, raw_nbd.RawNbd(server.socket) as client:
            assert client.ask(raw_nbd.WRITE, 100, data=b"x" * 10)[0] == 0
            assert client.ask(raw_nbd.READ, 99, 12) == (0, b"\0" + b"x" * 10 + b"\0")
        with Nbdkit(work, target.uri, "blocksize-error-policy=error", options=["--filter=blocksize-policy"]) as server:
            with raw_nbd.RawNbd(server.socket) as client:
                assert client.ask(raw_nbd.READ, 99, 12)[0] == raw_nbd.EINVAL
                assert client.ask(raw_nbd.READ, 0, 512)[0] == 0


@claim
def zeroing_may_leave_holes_and_fua_and_fast_zero_are_kept():
    with folder() as work:
        disk = work / "disk.img"
        disk.write_bytes(os.urandom(8 << 20))
        with Target(work, f"stats:file:{disk}") as target, Nbdkit(work, target.uri) as server, raw_nbd.RawNbd(server.socket) as client:
            full = disk.stat().st_blocks
            assert client.ask(raw_nbd.WRITE_ZEROES, 0, 1 << 20, flags=raw_nbd.NO_HOLE | raw_nbd.FAST_ZERO)[0] == 0
            assert disk.stat().st_blocks == full, "no hole was allowed"
            assert client.ask(raw_nbd.WRITE_ZEROES, 0, 4 << 20, flags=raw_nbd.FUA)[0] == 0
            assert disk.stat().st_blocks < full, "a hole was allowed, and there is none"
            assert client.ask(raw_nbd.READ, 1 << 20, 1 << 20) == (0, bytes(1 << 20))
            assert client.ask(raw_nbd.TRIM, 4 << 20, 1 << 20, flags=raw_nbd.FUA)[0] == 0
            assert client.ask(raw_nbd.WRITE, 7 << 20, data=b"y" * 4096, flags=raw_nbd.FUA)[0] == 0
            assert client.ask(raw_nbd.CACHE, 0, 1 << 20)[0] == 0
            assert client.ask(raw_nbd.READ, 7 << 20, 4096) == (0, b"y" * 4096)
            target.process.send_signal(signal.SIGUSR1)
            eventually("the flush after the trim", lambda: "flush: 1 " in target.text(), 5)


@claim
def errors_of_the_store_arrive_as_what_they_are():
    for spec, wanted in (("error:commit,status=no_space,ram:size=1MiB", raw_nbd.ENOSPC),
                         ("error:commit,status=write_error,ram:size=1MiB", raw_nbd.EIO),
                         ("error:commit,status=read_only,ram:size=1MiB", raw_nbd.EPERM)):
        with folder() as work, Target(work, spec) as target, Nbdkit(work, target.uri) as server, raw_nbd.RawNbd(server.socket) as client:
            for _ in range(50):
                assert client.ask(raw_nbd.WRITE, 0, data=bytes(512))[0] == wanted, spec
            assert client.ask(raw_nbd.READ, 0, 512)[0] == 0
            assert 1 <= server.text().count("write of 512 bytes at byte 0: ") <= 10, f"not one line per failure: {server.text()}"


@claim
def filters_stand_on_top_of_it():
    with folder() as work, Target(work, "ram:size=4MiB") as target:
        with Nbdkit(work, target.uri, options=["--filter=cow"]) as server:
            run("qemu-io", "-f", "raw", "-c", "write -P 9 0 1M", "-c", "read -P 9 0 1M", server.uri)
        with Nbdkit(work, target.uri, "offset=1M", "range=1M", options=["--filter=offset"]) as server:
            assert info(server)["export-size"] == 1 << 20
            run("qemu-io", "-f", "raw", "-c", "read -P 0 0 1M", "-c", "write -P 3 0 4k", server.uri)
        with Nbdkit(work, target.uri) as server:
            run("qemu-io", "-f", "raw", "-c", "read -P 0 0 1M", "-c", "read -P 3 1M 4k", server.uri)


@claim
def tls_with_a_shared_key_lets_in_who_has_it():
    with folder() as work, Target(work, "ram:size=4MiB") as target:
        keys = work / "keys.psk"
        keys.write_text(f"alice:{os.urandom(32).hex()}\n")
        wrong = work / "wrong.psk"
        wrong.write_text(f"alice:{os.urandom(32).hex()}\n")
        source, out = work / "source.img", work / "out.img"
        source.write_bytes(os.urandom(4 << 20))
        with Nbdkit(work, target.uri, options=["--tls=require", f"--tls-psk={keys}"], tls=f"&tls-psk-file={keys}") as server:
            run("nbdcopy", source, server.uri)
            run("nbdcopy", server.uri, out)
            assert digest(source) == digest(out)
            plain = f"nbd+unix:///?socket={server.socket}"
            run("nbdinfo", "--size", plain, status=1)
            run("nbdinfo", "--size", server.uri.replace(str(keys), str(wrong)), status=1)


class Restarted:
    """rbt-target with a sparse file of 16 MiB, to be killed and started again."""

    def __init__(self, work):
        self.work, self.disk = work, work / "disk.img"
        make_sparse(self.disk, 16 << 20)
        self.start()

    def start(self):
        self.target = Target(self.work, f"file:{self.disk}")
        self.uri = self.target.uri

    def kill(self):
        self.target.process.kill()
        self.target.process.wait()
        self.target.process.stdout.close()
        self.target.log.close()

    def written(self):
        return self.disk.stat().st_blocks * 512

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.target.process.poll() is None:
            self.target.__exit__()


def start_verified_load(server, *arguments):
    return subprocess.Popen(["fio", "--name=j", "--ioengine=nbd", f"--uri={server.uri}", "--rw=randwrite", "--bs=4k", "--iodepth=16",
                             "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", *arguments], stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)


@claim
def clients_do_not_notice_that_the_target_is_killed_five_times():
    with folder() as work, Restarted(work) as target, Nbdkit(work, target.uri) as server:
        load = start_verified_load(server, "--size=12m", "--rate=4m", "--fsync=100")
        for kill in range(1, 6):
            eventually(f"{2 * kill} MiB are written", lambda: target.written() >= 2 * kill << 20 or load.poll() is not None, 30)
            assert load.poll() is None, load.communicate()[0] + server.text()
            target.kill()
            time.sleep(programs.RANDOM.uniform(0.0, 0.3))
            target.start()
        said, _ = load.communicate(timeout=100)
        assert load.returncode == 0, said + server.text()
        assert server.text().count("the path is lost") == 5, server.text()
        assert "failed" not in server.text() and "Input/output" not in said, said + server.text()


@claim
def a_client_that_comes_while_the_target_is_away_waits_as_well():
    with folder() as work, Restarted(work) as target, Nbdkit(work, target.uri) as server:
        assert info(server)["export-size"] == 16 << 20
        target.kill()
        client = subprocess.Popen(["qemu-io", "-f", "raw", "-c", "write -P 5 0 64k", "-c", "read -P 5 0 64k", server.uri], stdout=subprocess.PIPE, text=True)
        eventually("its request waits", lambda: "the path is lost" in server.text(), 20)
        time.sleep(0.5)
        assert client.poll() is None, client.communicate()[0]
        target.start()
        said, _ = client.communicate(timeout=30)
        assert client.returncode == 0 and "fail" not in said, said


@claim
def nbdkit_ends_when_it_is_told_to_while_requests_wait_for_a_target_that_is_gone():
    with folder() as work, Restarted(work) as target, Nbdkit(work, target.uri) as server:
        with raw_nbd.RawNbd(server.socket) as client:
            target.kill()
            lengths = {client.send(raw_nbd.READ, 512 * i, 512): 512 for i in range(8)}
            eventually("the loss is seen", lambda: "the path is lost" in server.text(), 20)
            time.sleep(0.5)
            server.process.terminate()
            answers = [client.reply(lengths) for _ in lengths]
            assert [error for _, error, _ in answers] == [raw_nbd.EIO] * len(lengths), answers
        assert server.process.wait(timeout=5) == 0, server.text()
    # The same when the path is lost after that, and for a command that nbdkit ends with.
    with folder() as work, Target(work, "delay:read=3s,ram:size=1MiB") as target, Nbdkit(work, target.uri) as server:
        with raw_nbd.RawNbd(server.socket) as client:
            lengths = {client.send(raw_nbd.READ, 0, 512): 512}
            time.sleep(0.3)
            server.process.terminate()
            time.sleep(0.3)
            assert server.process.poll() is None, "nbdkit waits for requests that are under way"
            target.process.kill()
            assert client.reply(lengths)[1] == raw_nbd.EIO
        assert server.process.wait(timeout=5) == 0, server.text()
        target.process.wait()
    with folder() as work, Restarted(work) as target:
        read = "qemu-io -f raw -c 'read 0 4k' $nbd"
        command = f"{read} && kill -9 {target.target.process.pid}; timeout 1 {read}; echo left with $?"
        began = time.monotonic()
        said = run("nbdkit", "-U", "-", PLUGIN, target.uri, "--run", command)
        assert "left with 124" in said and time.monotonic() - began < 10, said


@claim
def a_target_that_dies_costs_eio_one_clear_line_and_no_hang_if_that_is_wanted():
    with folder() as work:
        disk = work / "disk.img"
        make_sparse(disk, 16 << 20)
        with Target(work, f"file:{disk}") as target, Nbdkit(work, target.uri, "on-loss=fail") as server:
            load = subprocess.Popen(["fio", "--name=j", "--ioengine=nbd", f"--uri={server.uri}", "--rw=randrw", "--bs=4k", "--iodepth=32",
                                     "--numjobs=2", "--time_based", "--runtime=60"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            with raw_nbd.RawNbd(server.socket) as client:
                assert client.ask(raw_nbd.WRITE, 0, data=b"kept" * 128, flags=raw_nbd.FUA)[0] == 0
                eventually("the load writes", lambda: disk.stat().st_blocks > 1000, 20)
                target.process.kill()
                target.process.wait()
                said, _ = load.communicate(timeout=20)
                assert load.returncode != 0 and "Input/output error" in said, said
                assert client.ask(raw_nbd.READ, 0, 512)[0] == raw_nbd.EIO
                assert client.ask(raw_nbd.FLUSH)[0] == raw_nbd.EIO
            line = [line for line in server.text().splitlines() if "given up" in line and str(target.socket) in line]
            assert len(line) == 1 and len(server.text().splitlines()) < 20, server.text()
            refused = run("nbdinfo", server.uri, status=1)
            assert "connecting again" in server.text() and str(target.socket) in server.text(), server.text() + refused
            target.log.close()
            with Target(work, f"file:{disk}"):  # the same disk is back: for the next client
                run("qemu-io", "-f", "raw", "-c", "read -P 0 4k 4k", "-c", "write -P 1 4k 4k", server.uri)
                with raw_nbd.RawNbd(server.socket) as client:
                    assert client.ask(raw_nbd.READ, 0, 512) == (0, b"kept" * 128)
            with Target(work, "ram:size=16MiB"):  # another one in its place is refused
                run("nbdinfo", server.uri, status=1)
                assert "is another one than before" in server.text(), server.text()


@claim
def requests_wait_for_as_long_as_they_were_told_to():
    with folder() as work, Restarted(work) as target, Nbdkit(work, target.uri, "on-loss=2") as server, raw_nbd.RawNbd(server.socket) as client:
        target.kill()
        began = time.monotonic()
        assert client.ask(raw_nbd.READ, 0, 512)[0] == raw_nbd.EIO
        took = time.monotonic() - began
        assert 1.0 < took < 10, f"{took:.1f} s"
        assert "given up" in server.text(), server.text()


@claim
def with_the_retry_filter_clients_do_not_notice_that_the_target_was_killed_either():
    with folder() as work, Restarted(work) as target:
        with Nbdkit(work, target.uri, "on-loss=fail", "retry-delay=1", "retries=30", "retry-exponential=no", options=["--filter=retry"]) as server:
            load = start_verified_load(server, "--size=8m", "--rate=4m")
            for written in (2 << 20, 5 << 20):
                eventually(f"{written} bytes are written", lambda: target.written() > written, 20)
                target.kill()
                target.start()
            said, _ = load.communicate(timeout=100)
            assert load.returncode == 0, said + server.text()
            assert server.text().count("given up") == 2, server.text()


@claim
def no_thread_of_the_plugin_lives_when_nbdkit_unloads_it_although_clients_are_not_closed():
    # nbdkit leaves out close() for those who are connected when it is told to end.
    with folder() as work, Target(work, "delay:read=200ms,ram:size=1MiB") as target:
        for _ in range(3):
            with Nbdkit(work, target.uri, "keep-alive=100ms", options=["-v"], environment={"LD_PRELOAD": str(UNLOADING)}) as server:
                with raw_nbd.RawNbd(server.socket) as client:
                    lengths = {client.send(raw_nbd.READ, 0, 512): 512}
                    time.sleep(0.05)
                    server.process.terminate()
                    assert client.reply(lengths)[1] == 0
                assert server.process.wait(timeout=20) == 0, server.text()
                assert "rbt: unload plugin" in server.text() and "rbt: close" not in server.text(), server.text()
                assert "threads when unloaded: 1\n" in server.text(), server.text()


@claim
def a_disk_that_grows_is_as_large_for_the_next_client():
    with folder() as work:
        disk = work / "disk.img"
        disk.write_bytes(bytes(1 << 20))
        with Target(work, f"file:{disk}") as target, Nbdkit(work, target.uri) as server:
            assert info(server)["export-size"] == 1 << 20
            os.truncate(disk, 3 << 20)
            eventually("the new size", lambda: info(server)["export-size"] == 3 << 20, 20)


@claim
def what_is_wrong_at_the_start_is_said_before_nbdkit_goes_into_the_background():
    with folder() as work, Target(work, "ram:size=1MiB", arguments=["--allow-host", "nqn.2026-01.io.example:me"]) as target:
        mine = target.uri + "&hostnqn=nqn.2026-01.io.example:me"
        for uri, *words in ((mine.replace(str(target.socket), f"{work}/none"), f"{work}/none", "rbt-target"),
                            (mine.replace("/1?", "/7?"), "no namespace 7", "there are: 1"),
                            (mine.replace("programs", "nobody"), "nobody"),
                            (target.uri, "host"),
                            ("nvme+rdma://10.0.0.1:99999/x", "99999", "^"),
                            ("nvme+sim://x/y/1", "nvme+rdma://")):
            for mode in ([], ["-f"]):
                said = run("nbdkit", *mode, "-U", work / "never.sock", PLUGIN, f"uri={uri}", status=1)
                assert all(word in said for word in words), f"{words} not in: {said}"
        for parameters, *words in (([], "uri=", "nvme+shm:///NQN/1"), (["uri=" + mine, "uri=" + mine], "second uri"),
                                   (["uri=" + mine, "color=blue"], "'color'", "command-timeout"),
                                   (["uri=" + mine, "requests=65"], "requests=65", "1 to 64"),
                                   (["uri=" + mine, "on-loss=never"], "on-loss=never", "hold", "fail", "seconds"),
                                   (["uri=" + mine, "command-timeout=5"], "command-timeout=5", "like 5ms"),
                                   (["uri=" + mine, "keep-alive=0"], "keep-alive=0")):
            said = run("nbdkit", "-f", "-U", work / "never.sock", PLUGIN, *parameters, status=1)
            assert all(word in said for word in words), f"{words} not in: {said}"
        help_text = run("nbdkit", PLUGIN, "--help")
        assert "nvme+rdma://HOST" in help_text and "command-timeout" in help_text and "on-loss=hold|fail" in help_text, help_text
        assert "rbt_fabrics=rdma shm" in run("nbdkit", PLUGIN, "--dump-plugin")


@claim
def in_the_background_from_another_directory_it_serves_and_ends_when_told():
    with folder() as work, Target(work, "ram:size=1MiB") as target:
        pid_file = work / "pid"
        run("nbdkit", "-U", work / "nbd.sock", "-P", pid_file, PLUGIN, f"nvme+shm:///{NQN}/1?socket=rbt.sock", cwd=work)
        eventually("nbdkit serves", lambda: pid_file.exists() and pid_file.read_text().endswith("\n"), 20)
        pid = int(pid_file.read_text())
        try:
            run("qemu-io", "-f", "raw", "-c", "write -P 1 0 64k", "-c", "read -P 1 0 64k", f"nbd+unix:///?socket={work}/nbd.sock")
            connected = target.descriptors()
        finally:
            os.kill(pid, signal.SIGTERM)
        eventually("nbdkit is gone", lambda: not os.path.exists(f"/proc/{pid}"), 20)
        eventually("the target has let go", lambda: target.descriptors() < connected, 20)


if __name__ == "__main__":
    programs.main(CLAIMS)
