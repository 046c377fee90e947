"""One whole snapshot of a running guest's 1 GiB of random RAM, in a file: reprise checkpoint beside QEMU's migrate exec:cat.

tests/bench/snapshot.py's words: rates=1000,20000 (pages/s), rounds=3, ram=1024, ws=960 (MiB), monitors=reprise,qemu, at=/dev/shm (where the
file is). In a host with emulated KVM everything is smaller.
"""
import json
import pathlib
import shutil
import statistics

TIMEOUT_S = 500
ROOT = pathlib.Path(__file__).resolve().parents[3]
ROWS = (("mib_s", "MiB of RAM a second", True), ("gap_ms", "the guest's longest gap, ms", False), ("file_bytes", "bytes of the file", False))


def known(cases, rate, monitor, key):
    return [case[key] for case in cases if case["rate"] == rate and case["monitor"] == monitor and case.get(key) is not None]


def run(lab):
    lab.need_reprise("run", "checkpoint")
    (a,) = lab.hosts("a")
    for path in (ROOT / "tests/bench/pair.py", ROOT / "tests/bench/snapshot.py", ROOT / "tests/lab/lab/qmp.py"):
        shutil.copy(path, lab.shared / path.name)
    scaled = {"rates": "1000,20000", "ram": 1024, "ws": 960, "gap": 200} if lab.native else {"rates": "100,1000", "ram": 128, "ws": 96, "gap": 1000}
    words = [f"{key}={lab.word(key, value)}" for key, value in {"monitors": "reprise,qemu", "rounds": 3, "at": "/dev/shm", **scaled}.items()]
    output = a.run(f"python3 /mnt/shared/snapshot.py /mnt/build {' '.join(words)}", timeout_s=450).output
    cases = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    for case in cases:
        lab.log(json.dumps(case))
    failed = [f"{case['monitor']}, {case['rate']} pages/s: {case['failed']}" for case in cases if "failed" in case]
    for rate in sorted({case["rate"] for case in cases}):
        for key, what, more_is_better in ROWS:
            ours, theirs = (known(cases, rate, name, key) for name in ("reprise", "qemu"))
            if ours and theirs:
                ours, theirs = statistics.median(ours), statistics.median(theirs)
                ratio = (ours / theirs if more_is_better else theirs / ours) if ours and theirs else 0
                lab.log(f"x{ratio:.2f}  {rate} pages/s, {what}: reprise {ours:.1f}, QEMU {theirs:.1f}")
        gaps, copies, rounds = (known(cases, rate, "reprise", key) for key in ("gap_ms", "copy_gap_ms", "mib_s"))
        if gaps and copies:
            lab.log(f"{rate} pages/s, the longest gap beside a checkpoint {statistics.median(gaps):.1f} ms, beside cp of as much {statistics.median(copies):.1f} ms "
                    f"({len(gaps)} and {len(copies)} of {len(rounds)} rounds: in the others this machine's own host took its processors away)")
    lab.check(not failed, "; ".join(failed))
