#!/usr/bin/env python3
"""docs/examples/read_blocks against rbt-target over shm. Usage: example.py TOOLS EXAMPLE"""
import os
import signal
import subprocess
import sys
import tempfile

tools, example = sys.argv[1:]
nqn = "nqn.2024-01.io.example:example"
with tempfile.TemporaryDirectory(prefix="rbt-example-") as folder:
    socket = os.path.join(folder, "socket")
    target = subprocess.Popen(
        [os.path.join(tools, "rbt-target"), "--listen", f"nvme+shm://?socket={socket}", "--subsystem", nqn,
         "--store", "ram:size=16MiB"],
        stdout=subprocess.PIPE, text=True)
    try:
        while "ready" not in (line := target.stdout.readline()):
            assert line, "rbt-target ended before it was ready"
        uri = f"nvme+shm:///{nqn}/1?socket={socket}"
        for lba in (0, 1000, 0):
            done = subprocess.run([example, uri, str(lba)], capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr
            assert done.stdout == f"Hello, block {lba} of 32768\n", done.stdout
            assert done.stderr == "", done.stderr
        outside = subprocess.run([example, uri, "32768"], capture_output=True, text=True, timeout=60)
        assert outside.returncode == 1 and "out of range" in outside.stderr, outside.stderr
        nowhere = subprocess.run([example, uri + "x"], capture_output=True, text=True, timeout=60)
        assert nowhere.returncode == 1 and "connecting admin queue of nvme+shm" in nowhere.stderr, nowhere.stderr
    finally:
        target.send_signal(signal.SIGTERM)
        assert target.wait(timeout=30) == 0
