"""redis through virtio-net and random I/O through virtio-blk: reprise beside QEMU microvm.

monitors=qemu measures that one alone.
"""
import re

from lab import Guest
from lab.bench import Comparison

TIMEOUT_S = 500
ROUNDS = 2
BLOCK_LOADS = {"4 KiB random reads, depth 1": "-t 4 -d 1", "4 KiB random reads, depth 8": "-t 4 -d 8",
               "4 KiB random writes, depth 8": "-t 4 -d 8 -w", "64 KiB sequential reads, depth 4": "-t 4 -d 4 -b 65536 -s"}
REDIS_LOADS = {"redis SET, 8 connections": "-t set -c 8 -n 2000", "redis SET, pipelined 16": "-t set -c 4 -P 16 -n 10000"}


def run(lab):
    comparison = Comparison(lab)
    (a,) = lab.hosts("a")
    for _ in range(ROUNDS):
        for monitor in comparison.monitors:
            # redis without its append-only file: this measures the network.
            guest = Guest(lab, monitor=monitor, kernel="vmlinux", mode="idle", disk="/tmp/disk")
            guest.warm(a)
            guest.start(a)
            guest.wait_for("UP")
            for what, load in BLOCK_LOADS.items():
                output = guest.run(f"blkload {load} /dev/vda")
                comparison.add(what, "IOPS", True, monitor, float(re.search(r"iops=(\d+)", output).group(1)))
            guest.run("redis-server --bind 0.0.0.0 --protected-mode no --save '' --daemonize yes > /dev/null")
            for what, load in REDIS_LOADS.items():
                output = a.run(f"redis-benchmark -h {guest.address} -q {load}", timeout_s=120).output
                figure = re.findall(r"SET: ([\d.]+) requests per second", output)[-1]
                comparison.add(what, "requests/s", True, monitor, float(figure))
            guest.kill()
    comparison.report()
