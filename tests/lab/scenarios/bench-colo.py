"""What protection costs the dirtier guest: Reprise beside Debian QEMU's COLO, in one host, unix socket and TCP; ratios.

tests/bench/pair.py's words: rates=1000 (pages/s asked), seconds=5, transports=unix,tcp, monitors=reprise,colo, epoch=20 (ms), ram=64, ws=32
(MiB). A host's KVM is emulated, twenty times slower than a real one: ratios count, and rates and sizes are scaled down; --native
asks for 1000, 50000 and 200000 pages/s of 256 MiB. More than 1000 a second is more than an emulated KVM bears (docs/lab.md).
"""
import json
import pathlib
import shutil

TIMEOUT_S = 900
ROOT = pathlib.Path(__file__).resolve().parents[3]
ROWS = (("gap_p50_ms", "pause p50, ms", False), ("gap_p99_ms", "pause p99, ms", False), ("pages_s", "guest progress, pages/s", True),
        ("epochs_s", "committed epochs/s", True), ("takeover_ms", "death detected to running, ms", False),
        ("cpu", "CPU of the pair, cores", False), ("cpu_gib", "CPU of the pair beside the vCPU's, s per GiB dirtied and committed", False))


def run(lab):
    lab.need_reprise("run", "standby", "protect", "status")
    (a,) = lab.hosts("a")
    for path in (ROOT / "tests/bench/pair.py", ROOT / "tests/lab/lab/qmp.py"):
        shutil.copy(path, lab.shared / path.name)
    scaled = {"rates": "1000,50000,200000", "ram": 1024, "ws": 256, "gap": 50, "heartbeat": 20} if lab.native else \
        {"rates": "1000", "ram": 64, "ws": 32, "gap": 1000, "heartbeat": 200}
    words = [f"{key}={lab.word(key, value)}" for key, value in {"seconds": 5, "transports": "unix,tcp", "monitors": "reprise,colo", "epoch": 20.0,
                                                                "capture": "auto", **scaled}.items()]
    output = a.run(f"python3 /mnt/shared/pair.py /mnt/build {' '.join(words)}", timeout_s=800).output
    cases = {}
    for line in output.splitlines():
        lab.log(line)
        case = json.loads(line)
        cases.setdefault((case["transport"], case["asked"]), {})[case["monitor"]] = case
    for (transport, asked), both in cases.items():
        ours, theirs = both.get("reprise", {}), both.get("colo", {})
        for key, what, more_is_better in ROWS:
            if not ours.get(key) or not theirs.get(key):
                continue
            ratio = ours[key] / theirs[key] if more_is_better else theirs[key] / ours[key]
            lab.log(f"x{ratio:.2f}  {transport}, {asked} pages/s, {what}: reprise {ours[key]:.2f}, COLO {theirs[key]:.2f}")
        alone = [f"{monitor} {case['unprotected_gap_p99_ms']:.2f}" for monitor, case in both.items() if "unprotected_gap_p99_ms" in case]
        lab.log(f"       {transport}, {asked} pages/s, the same p99 of the guest unprotected, ms, which is the machine's own: {', '.join(alone)}")
        if ours.get("failover_ms"):
            lab.log(f"       {transport}, {asked} pages/s, killed to running: reprise {ours['failover_ms']:.1f} ms")
        if ours.get("unprotected_pages_s"):
            lab.log(f"x{ours['pages_s'] / ours['unprotected_pages_s']:.3f}  {transport}, {asked} pages/s, guest progress: reprise beside itself unprotected")
    failed = [f"{case['monitor']} {case['transport']} {case['asked']}: {case['failed']}" for both in cases.values()
              for case in both.values() if "failed" in case]
    lab.check(not failed, "; ".join(failed))
