#!/usr/bin/env python3
"""The dirtier guest protected by Reprise and by Debian QEMU's COLO, one after the other, on this host: what protection costs it.

    pair.py BUILD [monitors=reprise,colo] [transports=unix,tcp] [rates=1000,50000] [seconds=5] [ram=64] [ws=32] [epoch=20] [gap=500]
                  [heartbeat=200] [capture=auto|stop-and-copy|copy-on-write]

Each case: a primary and a standby, `seconds` of protected running, then the primary is killed. Prints one line of JSON per case: pauses as
the guest's own gap meter sees them, its progress, epochs and, for Reprise, the engine's figures. The meter records what is longer than `gap` us;
the pauses are the longest of that, as many as there were epochs. COLO counts no epochs: all that is longer than COLO_PAUSE_MS. RAM and
working set in MiB, the epoch and the heartbeat in ms. Needs /dev/kvm (tests/lab/scenarios/bench-colo.py brings one).
"""
import json
import mmap
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from qmp import Qmp, QmpError       # noqa: E402  (beside this file, in the lab's package or copied with it)

NICE = -15
PATIENCE_S = 60
SETTLE_S = 0.05
COLO_PAUSE_MS = 0.2     # half of its pauses take five times that and more; what else stops a vCPU seldom reaches it
STDNULL = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}


def until(condition, what):
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise TimeoutError(what)


def quantiles(measured, epochs_s, prefix):
    """Of a measurement, the pauses: the longest gaps, as many as there were epochs."""
    count = max(1, round(epochs_s * measured["window"]))
    kept = sorted([0.0] * count + measured["gaps"])[-count:]
    return {f"{prefix}_p50_ms": kept[count // 2], f"{prefix}_p99_ms": kept[count * 99 // 100], f"{prefix}_max_ms": kept[-1]}


def result(bare, measured, epochs_s):
    """Figures of a protected run beside those of the same guest alone, whose longest gaps are the machine's own."""
    figures = {key: value for key, value in measured.items() if key not in ("gaps", "window")}
    return {**figures, "epochs_s": epochs_s, "unprotected_pages_s": bare["pages_s"], **quantiles(measured, epochs_s, "gap"),
            **quantiles(bare, epochs_s, "unprotected_gap")}


def warm(mib):
    """Free memory that was touched a moment ago: where this host is itself a guest, its host gives it a page only at the first touch, slowly, and
    takes back what lies free for long. Either monitor would be measured by what it happens to get."""
    mmap.mmap(-1, mib << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE).close()


class Case:
    """One monitor's pair: started, measured, and its primary killed."""

    def __init__(self, build, words, transport, rate, number):
        self.build, self.words, self.transport, self.rate = build, words, transport, rate
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="pair-"))
        self.environment = dict(os.environ, REPRISE_RUNTIME_DIR=str(self.directory))
        self.port = 23000 + number
        self.processes = []
        self.append = f"ws={words['ws']}M rate={rate} bytes=64 fill={words['fill']} gap={words['gap']}us"

    def start(self, *command, **environment):
        log = open(self.directory / f"{len(self.processes)}.log", "wb")
        process = subprocess.Popen([str(word) for word in command], env={**self.environment, **environment}, stderr=log, **STDNULL)
        self.processes.append(process)
        return process

    def logs(self):
        return "".join(path.read_text(errors="replace")[-600:] for path in sorted(self.directory.glob("*.log")))

    def probe(self, process):
        """What the guest's status says; its newest gaps, (start in ticks, ms), under "gaps"."""
        out = subprocess.run([self.build / "tests/tools/guest-probe", "-g", "-p", str(process.pid)], capture_output=True, text=True, check=False)
        words = [line.split() for line in out.stdout.splitlines() if " " in line]
        status = {word[0]: " ".join(word[1:]) for word in words}
        status["gaps"] = [(int(word[1]), int(word[2]) / 1e6) for word in words if word[0] == "vcpu0.gap"]
        return status

    def runs(self, process):
        return self.probe(process).get("state") == "running"

    def measure(self, primary):
        before, began = self.probe(primary), time.monotonic()
        cpu, own = self.cpu(), self.vcpu_cpu(primary)
        time.sleep(self.words["seconds"])
        after, took = self.probe(primary), time.monotonic() - began
        iterations = int(after.get("vcpu0.iterations", 0)) - int(before["vcpu0.iterations"])
        if iterations < 0:
            raise RuntimeError("the guest has started anew while it was measured")
        hz, end = int(after["tsc_hz"]), int(after["vcpu0.last_tsc"])
        since = int(before["vcpu0.last_tsc"]) + int(hz * SETTLE_S)      # the look at it took a processor, too
        if int(after["vcpu0.gaps"]) - int(before["vcpu0.gaps"]) > len(after["gaps"]):
            since = max(since, after["gaps"][0][0])                     # its ring holds the newest only
        return {"pages_s": iterations / took, "asked": self.rate,
                "gaps": [gap for start, gap in after["gaps"] if start >= since], "window": (end - since) / hz,
                "gap_share": (float(after["vcpu0.gap_sum_us"]) - float(before["vcpu0.gap_sum_us"])) / took / 1e6,
                "cpu": (cpu := (self.cpu() - cpu) / took),
                # A page is committed once for each epoch in which it was written: nearly once for each write, if they are spread.
                "cpu_gib": (cpu - (self.vcpu_cpu(primary) - own) / took) / (iterations / took * 4096 / (1 << 30))}

    def cpu(self):
        """Seconds of CPU of all processes of the pair, the guest's included."""
        ticks = 0
        for process in self.processes:
            fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def vcpu_cpu(self, process):
        """Seconds of CPU of its vCPU's thread."""
        for task in pathlib.Path(f"/proc/{process.pid}/task").iterdir():
            name, _, fields = (task / "stat").read_text().partition("(")[2].rpartition(") ")
            if name in ("vcpu 0", "CPU 0/KVM"):
                return sum(map(int, fields.split()[11:13])) / os.sysconf("SC_CLK_TCK")
        raise RuntimeError("the guest has no vCPU thread")

    def heartbeat(self, process):
        return int(self.probe(process).get("vcpu0.heartbeat", 0))

    def fail_over(self, primary, standby, told):
        """Kills the primary; ms from telling the standby (`told`: COLO detects nothing) until the guest there is further than it ever was."""
        last = self.heartbeat(primary)
        self.killed_wall = time.time()
        primary.send_signal(signal.SIGKILL)
        primary.wait()
        began = time.monotonic()
        told()
        until(lambda: self.heartbeat(standby) > last, "the guest runs at the standby")
        return (time.monotonic() - began) * 1e3

    def end(self):
        for process in self.processes:
            process.kill()
            process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


class Reprise(Case):
    def primary(self):
        process = self.start(self.build / "reprise", "run", "--name", "pair", "--memory", f"{self.words['ram']}M", "--kernel",
                             self.build / "guests/dirtier.elf", "--append", self.append, "--rng", "off", "--balloon", "off", "--populate",
                             "--serial", "null")
        until(lambda: self.runs(process), "the guest runs")
        return process

    def run(self):
        uri = f"unix:{self.directory}/link" if self.transport == "unix" else f"tcp://127.0.0.1:{self.port}"
        command = self.build / "reprise"
        there = self.directory / "there"        # the VM has one name, and here its two sides are on one host
        there.mkdir()
        standby = self.start(command, "standby", "--listen", uri, "--name", "pair", "--lease", "none", "--serial", "null",
                             REPRISE_RUNTIME_DIR=str(there))
        primary = self.primary()
        bare = self.measure(primary)
        said = subprocess.run([command, "protect", "pair", uri, "--lease", "none", "--epoch", f"{int(self.words['epoch'] * 1000)}us",
                               "--heartbeat", f"{self.words['heartbeat']}ms", "--capture", self.words["capture"]],
                              env=self.environment, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
        if said.returncode:
            raise RuntimeError(said.stderr)
        time.sleep(1)
        first = self.ask("status")
        figures = self.measure(primary)
        last = self.ask("status")
        figures = {**result(bare, figures, (self.committed(last) - self.committed(first)) / self.words["seconds"]), "status": last}
        self.fail_over(primary, standby, lambda: None)
        event = until(lambda: next((event for event in self.ask("history", REPRISE_RUNTIME_DIR=str(there))
                                    if event["name"] == "TAKEN_OVER"), None), "the takeover is told")
        over = event["data"]
        figures["failover_ms"] = event["wall-ns"] / 1e6 - self.killed_wall * 1e3
        figures["takeover_ms"] = (over["lease-us"] + over["enter-us"] + over["run-us"]) / 1e3
        figures["takeover"] = over
        return figures

    def ask(self, verb, **environment):
        out = subprocess.run([self.build / "reprise", verb, "pair", "--json"], env={**self.environment, **environment}, capture_output=True,
                             text=True, check=False)
        if out.returncode:
            raise RuntimeError(f"reprise {verb}: {out.stderr}")
        return json.loads(out.stdout)

    @staticmethod
    def committed(status):
        return status.get("protect", {}).get("committed", 0)


class Colo(Case):
    def monitor(self, role, *more):
        return self.start("qemu-system-x86_64", "-accel", "kvm", "-cpu", "host,-arch-capabilities", "-M", "microvm,pit=off,rtc=on,memory-backend=ram",
                          "-object", f"memory-backend-memfd,id=ram,size={self.words['ram']}M,share=on,prealloc=on", "-m", self.words["ram"],
                          "-name", "pair,debug-threads=on", "-nodefaults", "-display", "none", "-no-reboot",
                          "-qmp", f"unix:{self.directory}/{role}.qmp,server=on,wait=off",
                          "-kernel", self.build / "guests/dirtier.elf", "-append", self.append, *more)

    def run(self):
        uri = f"unix:{self.directory}/link" if self.transport == "unix" else f"tcp:127.0.0.1:{self.port}"
        standby = self.monitor("standby", "-incoming", uri)
        primary = self.monitor("primary")
        there, here = (Qmp(self.directory / f"{role}.qmp") for role in ("standby", "primary"))
        until(lambda: self.runs(primary), "the guest runs")
        bare = self.measure(primary)
        for end in (there, here):
            end.command("migrate-set-capabilities", capabilities=[{"capability": "x-colo", "state": True}])
        here.command("migrate-set-parameters", x_checkpoint_delay=max(1, int(self.words['epoch'])), max_bandwidth=10 << 30)
        here.command("migrate", uri=uri)
        until(lambda: here.command("query-migrate").get("status") == "colo", "COLO is on")
        time.sleep(1)
        figures = self.measure(primary)
        # It counts no checkpoints: each is one gap of the guest, at least.
        figures = result(bare, figures, sum(gap > COLO_PAUSE_MS for gap in figures["gaps"]) / figures["window"])
        # Told at once: what follows is what takes time after a death is detected.
        figures["takeover_ms"] = self.fail_over(primary, standby, lambda: there.command("x-colo-lost-heartbeat"))
        return figures


def words_of(arguments, defaults):
    """name=value of the command line over the defaults, in their types."""
    words = dict(defaults)
    for word in arguments:
        key, _, value = word.partition("=")
        words[key] = type(words[key])(value)
    return words


def undisturbed():
    """What else this machine does gives way to both monitors; it would be in their longest gaps. Where that may be asked for."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    except PermissionError:
        pass


def main(arguments):
    undisturbed()
    build = pathlib.Path(arguments[0]).resolve()
    words = words_of(arguments[1:], {"monitors": "reprise,colo", "transports": "unix,tcp", "rates": "1000,50000", "seconds": 5, "ram": 64, "ws": 32,
                                     "epoch": 20.0, "gap": 500, "fill": "random", "heartbeat": 200, "capture": "auto"})
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        print("pair.py: /dev/kvm is not here: tests/lab/run bench-colo has one", file=sys.stderr)
        return 4
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))     # whatever runs is ended
    number = 0
    for transport in words["transports"].split(","):
        for rate in map(int, words["rates"].split(",")):
            for monitor in words["monitors"].split(","):
                number += 1
                case = {"reprise": Reprise, "colo": Colo}[monitor](build, words, transport, rate, number)
                warm(words["ram"] * 5 // 2)
                try:
                    figures = case.run()
                except (TimeoutError, RuntimeError, QmpError, KeyError, subprocess.TimeoutExpired) as error:
                    figures = {"failed": f"{type(error).__name__}: {error}", "log": case.logs()}
                finally:
                    case.end()
                print(json.dumps({"monitor": monitor, "transport": transport, "asked": rate, **figures}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
