"""A standby that stalls for a minute: it is given up, the guest goes on, both processes' memory stays bounded, protection comes back.

Issue "the main job", must hold 5. The dirtier guest rewrites its pages all the time; the standby's process is stopped (SIGSTOP) for stall=60
seconds, which a heartbeat of stall/2 seconds forgives, so that the engine finds out by itself: nothing committed for 10 s. Printed state by state: the primary's private memory (guest RAM is shared memory
and does not count; bound: 64 MiB and a tenth of RAM), how the engine reacts, what the guest has written. transport=unix|tcp, hosts=1 (2: two hosts).
"""
import json
import shlex
import time

from lab import BlkGuest
from lab.pair import Pair, sides

TIMEOUT_S = 900
MEMORY_MIB = 128
BOUND_KIB = (64 << 10) + (MEMORY_MIB << 10) // 10


class DirtierGuest(BlkGuest):
    """tests/guests/dirtier.c: no devices, and it checks each page it rewrites."""

    def __init__(self, lab):
        super().__init__(lab, "dirtier", disk="", memory_mib=MEMORY_MIB)
        self.append = f"ws=64M rate=2000 bytes=256 entropy=random fill=random verify=1 seed={lab.seed % 1000000}"

    def prepare(self, host):
        host.run("cat /mnt/build/guests/dirtier.elf > /dev/null")

    def _reprise(self):
        return shlex.join(["reprise", "run", "--name", self.name, "--memory", f"{self.memory_mib}M", "--kernel", "/mnt/build/guests/dirtier.elf",
                           "--append", self.append, "--rng", "off", "--balloon", "off", *self.host_side()])

    def written(self):
        seen = self.probe()
        self.lab.check(seen.get("error", "0") == "0", f"the guest found a wrong page: {seen}")
        return int(seen["vcpu0.iterations"])


class Watch:
    """What the two processes and the guest do, a line at a time."""

    def __init__(self, lab, pair):
        self.lab, self.pair = lab, pair
        self.pids = [self._pid(pair.primary), self._pid(pair.standby)]
        self.most_kib = [0, 0]

    def _pid(self, host):
        status = host.run(f"reprise status {self.pair.guest.name} --json").output
        return json.loads(status)["pid"]

    def look(self, what):
        both = [host.run(f"sed -n 's/^RssAnon:[^0-9]*\\([0-9]*\\).*/\\1/p' /proc/{pid}/status").output
                for host, pid in zip((self.pair.primary, self.pair.standby), self.pids)]
        kib = [int(text) for text in both]
        self.most_kib = [max(pair) for pair in zip(self.most_kib, kib)]
        protect = json.loads(self.pair.status())["protect"]
        written = self.pair.guest.written()
        self.lab.log(f"{what}: {protect['state']}, pressure {protect['cost']['pressure']}, throttle {protect['cost']['throttle-percent']} %, "
                     f"epoch {protect['cost']['epoch-us'] // 1000} ms, committed {protect['committed']}, lag {protect['lag-epochs']}, "
                     f"primary {kib[0]} KiB, standby {kib[1]} KiB, written {written}")
        return protect, written


def run(lab):
    lab.need_reprise("run", "standby", "protect", "failover", "status")
    lab.words.setdefault("hosts", "1")
    stall = lab.word("stall", 60)
    hosts = sides(lab)
    guest = DirtierGuest(lab)
    pair = Pair(lab, guest, lab.word("transport", "unix"))
    pair.heartbeat = f"{stall // 2}s"
    pair.boot(hosts[0])
    lab.wait_until(lambda: '"running"' in pair.status(), 60, "the guest runs")
    lab.wait_until(lambda: guest.written() > 1000, 120, "the guest writes")
    pair.stand_by(hosts[1])
    pair.protect()
    watch = Watch(lab, pair)
    _, written = watch.look("calm")
    pair.standby.run(f"kill -STOP {watch.pids[1]}")
    until = time.monotonic() + stall
    while time.monotonic() < until:
        protect, now = watch.look("stalled")
        time.sleep(2)
    pair.standby.run(f"kill -CONT {watch.pids[1]}")
    lab.check(now > written, f"the guest did nothing while its standby stalled: {written} writes before, {now} at the end")
    lab.check(protect["state"] == "unprotected", f"after {stall} s the standby was not given up: {protect['state']}")
    lab.log(f"why: {protect['reason']}")
    lab.wait_until(lambda: watch.look("catching up")[0]["state"] == "protected", 180, "the guest is protected again")
    committed = watch.look("protected")[0]["committed"]
    lab.wait_until(lambda: watch.look("protected")[0]["committed"] > committed + 10, 180, "epochs are committed again")
    for who, most in zip(("primary", "standby"), watch.most_kib):
        lab.check(most <= BOUND_KIB, f"the {who} used {most} KiB of private memory, more than {BOUND_KIB}")
    lab.log(f"at most: primary {watch.most_kib[0]} KiB, standby {watch.most_kib[1]} KiB of {BOUND_KIB} KiB")
    old = pair.primary
    old.run(f"reprise failover {guest.name}", timeout_s=180)
    pair.taken_over()
    written = guest.written()
    lab.wait_until(lambda: guest.written() > written + 1000, 120, f"the guest goes on on {pair.primary}")
    lab.log(f"handed over from {old} to {pair.primary}: {guest.written()} pages written, each found as it was left")
