#!/usr/bin/env python3
"""Somebody else who opens a file that is served, writes a block of it, and closes it, again and again.

    breaker.py PATH COUNT SECONDS BLOCK   opens it COUNT times, evenly over SECONDS; writes block number BLOCK (4 KiB)

Prints how often it opened the file and the longest that open() took; exit status 1 if that was a second or more.
"""
import os
import sys
import time

path, count, seconds, block = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
longest = 0.0
begin = time.monotonic()
for number in range(count):
    time.sleep(max(0.0, begin + number * seconds / count - time.monotonic()))
    before = time.monotonic()
    descriptor = os.open(path, os.O_RDWR)
    longest = max(longest, time.monotonic() - before)
    os.pwrite(descriptor, bytes([number % 251 + 1]) * 4096, block * 4096)
    os.close(descriptor)
print(f"opened {count} times in {time.monotonic() - begin:.1f} s, waited {longest * 1000:.0f} ms at the most")
sys.exit(longest >= 1.0)
