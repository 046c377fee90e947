"""A machine's start, its memory beside guest RAM, and its pause when it is cut idle: reprise beside QEMU microvm.

Start: the process from its start to the end of a guest that ends at its first instructions, rounds=N times (8). Memory: a
running 128 MiB guest with one vCPU, what the process holds beside guest RAM (proportional set size). The pause has no counterpart in QEMU.
"""
import re
import statistics
import time

from lab.bench import Comparison

TIMEOUT_S = 400
GUEST = "/mnt/build/guests/idle.elf"
QEMU = ("qemu-system-x86_64 -accel kvm -cpu host,-arch-capabilities -M microvm,pit=off,rtc=on,pcie=off -nodefaults -display none -no-reboot"
        " -object memory-backend-memfd,id=ram,size=128M,share=on -m 128 -machine memory-backend=ram"
        " -device isa-debug-exit,iobase=0xf4,iosize=1 -kernel {guest} -append '{append}'")
REPRISE = "reprise run --name bench --memory 128M --kernel {guest} --append '{append}' {options}"
# In the host: the median of N runs, in ms, without the shell's own start.
TIMES = """
python3 - <<'END'
import shlex, subprocess, time
times = []
for _ in range({rounds}):
    began = time.monotonic()
    subprocess.run(shlex.split({command!r}), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    times.append((time.monotonic() - began) * 1e3)
print("ms", *("%.1f" % t for t in times))
END
"""
# Guest RAM is shared memory in both; what else is shared is libraries.
BESIDE = "awk '/^Pss_(Anon|File):/ {kib += $2} END {print kib}' /proc/PID/smaps_rollup"


def command(monitor, append, options="--rng off --balloon off"):
    return (QEMU if monitor == "qemu" else REPRISE).format(guest=GUEST, append=append, options=options)


def start_times(lab, a, comparison):
    end = {"reprise": "run=1us end=off", "qemu": "run=1us end=exit"}
    for _ in range(2):
        for monitor in comparison.monitors:
            script = TIMES.format(rounds=lab.word("rounds", 8), command=command(monitor, end[monitor]))
            times = [float(word) for word in a.run(script, timeout_s=150).output.split() if re.fullmatch(r"[\d.]+", word)]
            comparison.add("process start to a guest that ends at once", "ms", False, monitor, statistics.median(times))


def memory(a, comparison):
    for monitor in comparison.monitors:
        job = a.background("exec " + command(monitor, "end=spin", ""))
        time.sleep(4)       # nothing to wait for: it has started, and idles
        pid = a.run("pgrep -nf '^(reprise run|qemu-system)'").output.split()[0]
        kib = float(a.run(BESIDE.replace("PID", pid)).output)
        comparison.add("memory beside guest RAM", "MiB", False, monitor, kib / 1024)
        job.kill()
        job.wait(20)


def run(lab):
    comparison = Comparison(lab)
    (a,) = lab.hosts("a")
    a.run(f"cat {GUEST} /mnt/build/reprise $(which qemu-system-x86_64) > /dev/null")
    start_times(lab, a, comparison)
    memory(a, comparison)
    if (lab.build / "tests" / "bench" / "bench-engine").exists():
        lab.log(a.run(f"/mnt/build/tests/bench/bench-engine machine guest={GUEST}", timeout_s=150).output)
    comparison.report()
