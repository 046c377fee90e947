#!/usr/bin/env python3
"""One whole snapshot of a running dirtier guest into a file: reprise checkpoint beside Debian QEMU's `migrate exec:cat`.

    snapshot.py BUILD [monitors=reprise,qemu] [rates=1000,20000] [ram=1024] [ws=960] [rounds=3] [gap=200] [fill=random] [at=/dev/shm]

The file is in memory unless `at` names a folder on a disk: reprise then syncs it, QEMU leaves it in the page cache.

Prints one line of JSON per case and round: seconds, MiB/s of guest RAM, the guest's longest gap meanwhile in ms (QEMU leaves it standing:
it is told to go on as soon as it says that it is done), bytes of the file. Then, as often, "copy_gap_ms": its longest gap while cp copies such
a file, for what a flood of bytes does to it here, whoever makes it. "null" for a gap: a hypervisor took this host's processors away meanwhile
(steal). Needs /dev/kvm (tests/lab/scenarios/bench-snapshot.py brings one).
"""
import json
import pathlib
import subprocess
import sys
import time

import pair
from qmp import Qmp, QmpError


class Reprise(pair.Reprise):
    def run(self):
        self.guest = self.primary()
        return self

    def snapshot(self, file):
        said = subprocess.run([self.build / "reprise", "checkpoint", "pair", f"file:{file}"], env=self.environment, capture_output=True, text=True,
                              check=False, timeout=pair.PATIENCE_S)
        if said.returncode:
            raise RuntimeError(said.stderr)


class Qemu(pair.Colo):
    def run(self):
        self.guest = self.monitor("primary")
        self.qmp = Qmp(self.directory / "primary.qmp")
        pair.until(lambda: self.runs(self.guest), "the guest runs")
        self.qmp.command("migrate-set-parameters", max_bandwidth=10 << 30)
        return self

    def snapshot(self, file):
        self.qmp.command("migrate", uri=f"exec:cat > {file}")
        self.qmp.migration_ended()
        self.qmp.command("cont")


def stolen():
    """Ticks that a hypervisor has kept this machine's processors from it."""
    return int(pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[8])


def watched(case, work):
    """Does it; how long it took, and the guest's longest gap meanwhile in ms, None if it may be one of this machine's."""
    pair.warm(case.words["ram"] * 3 // 2)
    ticks = stolen()
    before = case.probe(case.guest)
    began = time.monotonic()
    work()
    took = time.monotonic() - began
    time.sleep(0.5)
    after = case.probe(case.guest)
    seen = int(after["vcpu0.gaps"]) - int(before["vcpu0.gaps"])
    return took, None if stolen() > ticks else max(gap for _, gap in after["gaps"][-seen:]) if seen else 0.0


def snapshot(case, file):
    took, gap = watched(case, lambda: case.snapshot(file))
    return {"seconds": took, "mib_s": case.words["ram"] / took, "gap_ms": gap, "file_bytes": file.stat().st_size}


def copy(case, file):
    _, gap = watched(case, lambda: subprocess.run(["cp", file, file.with_suffix(".copy")], check=True))
    file.with_suffix(".copy").unlink()
    return {"copy_gap_ms": gap}


def measure(case, file):
    """One round after the other; the last file is what is copied."""
    case.run()
    for _ in range(case.words["rounds"]):
        file.unlink(missing_ok=True)
        yield snapshot(case, file)
    for _ in range(case.words["rounds"]):
        yield copy(case, file)


def main(arguments):
    pair.undisturbed()
    words = pair.words_of(arguments[1:], {"monitors": "reprise,qemu", "rates": "1000,20000", "ram": 1024, "ws": 960, "rounds": 3, "gap": 200,
                                          "fill": "random", "at": "/dev/shm"})
    for rate in map(int, words["rates"].split(",")):
        for monitor in words["monitors"].split(","):
            case = {"reprise": Reprise, "qemu": Qemu}[monitor](pathlib.Path(arguments[0]).resolve(), words, "file", rate, 0)
            file = pathlib.Path(words["at"]) / f"{case.directory.name}.snapshot"
            try:
                for figures in measure(case, file):
                    print(json.dumps({"monitor": monitor, "rate": rate, **figures}), flush=True)
            except (TimeoutError, RuntimeError, QmpError, KeyError, subprocess.SubprocessError) as error:
                print(json.dumps({"monitor": monitor, "rate": rate, "failed": f"{type(error).__name__}: {error}", "log": case.logs()}), flush=True)
            case.end()
            file.unlink(missing_ok=True)
            file.with_suffix(".copy").unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
