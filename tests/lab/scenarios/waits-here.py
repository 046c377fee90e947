"""Two processes, one guest, there and back: whichever lets go of it (`--then standby`) is its next standby, and is sent what differs.

Issue "the main job", after. rounds=N (6, even): a planned switchover and a process that hangs until it has lost the lease, in turn;
descriptors and threads must not grow, nor memory once it is warm, which takes some 16 rounds. One host, two sides; 64 MiB of ledger.
protect=self: nobody asks for the guest's next protection, both processes were told where it comes from (`--protect`).
"""
import json

from lab import LedgerGuest, LedgerLoad
from lab.pair import KEY, Pair, Side

TIMEOUT_S = 600
WARM_ROUNDS, MORE_KIB = 16, 1024    # what each of its threads has freed is kept for that thread: it comes to rest, but not at once


class Places(Pair):
    """Both sides of a pair listen, each at a place of its own."""

    def uri(self, host):
        return f"unix:/run/reprise-standby-{host}"

    def stays(self, host, other):
        itself = ["--protect", self.uri(other), "--heartbeat", self.heartbeat] if self.lab.word("protect", "asked") == "self" else []
        return ["--then", "standby", *itself]

    def protect(self):
        if self.lab.word("protect", "asked") == "asked":
            super().protect()
        else:
            self.lab.wait_until(lambda: '"protected"' in self.status(), 60, "the guest is protected, unasked")


def status(side, guest):
    return json.loads(side.run(f"reprise status {guest.name} --json", check=False).output or "{}")


def resources(side, guest):
    """Descriptors, threads and KiB of memory of a side's process."""
    pid = status(side, guest)["pid"]
    figures = side.run(f"ls /proc/{pid}/fd | wc -l; sed -n 's/^Threads:[^0-9]*//p; s/^RssAnon:[^0-9]*\\([0-9]*\\).*/\\1/p' /proc/{pid}/status")
    fds, anon_kib, threads = map(int, figures.output.split())
    return {"fds": fds, "threads": threads, "anon_kib": anon_kib}


def must_not_grow(lab, figures):
    """`figures`: of both processes, after every second round."""
    first, last = figures[0], figures[-1]
    lab.log(f"both processes after two rounds {first}, at the end {last}")
    for old, new in zip(first, last):
        lab.check(new["fds"] <= old["fds"] and new["threads"] <= old["threads"], f"descriptors or threads grew from {old} to {new}")
    # A figure has an epoch in it that happens to be under way: the lowest ones are what is kept.
    warm = figures[WARM_ROUNDS // 2 - 1:]
    before, after = warm[:len(warm) // 2], warm[len(warm) // 2:]
    for side in (0, 1) if before else ():
        old, new = (min(both[side]["anon_kib"] for both in part) for part in (before, after))
        lab.log(f"{'xy'[side]}: once warm {old} KiB, after that {new} KiB")
        lab.check(new <= old + MORE_KIB, f"memory grew from {old} to {new} KiB")


def let_go(lab, pair, how):
    """The guest moves to the standby; the process that had it waits for it, and is the standby from now on."""
    old, job, guest = pair.primary, pair.guest.job, pair.guest
    pid = status(old, guest)["pid"]
    if how == "switch":
        old.run(f"reprise failover {guest.name}", timeout_s=120)
    else:
        old.run(f"kill -STOP {pid}")
    pair.taken_over(120)
    if how == "hang":
        old.run(f"kill -CONT {pid}")
    lab.wait_until(lambda: job.rc is not None or '"inmigrate"' in old.run(f"reprise status {guest.name} --json", check=False).output, 60,
                   f"{old} waits for the guest that it had")
    lab.check(job.rc is None, f"{old}: the process ended with {job.rc}:\n{job.output[-1500:]}")
    pair.standby, pair.standby_job = old, job


def run(lab):
    lab.need_reprise("run", "standby", "protect", "failover", "status")
    (host,) = lab.hosts("a")
    x, y = Side(host, "x", 1), Side(host, "y", 2)
    client = lab.client()
    guest = LedgerGuest(lab)
    pair = Places(lab, guest, "unix")
    guest.options = [*guest.options, "--lease", pair.lease, "--key", KEY, "--listen", pair.uri(x), *pair.stays(x, y)]
    pair.boot(x)
    load = LedgerLoad(lab, client, guest.address, "-i 20000")
    load.must_advance(10)
    pair.standby_options = pair.stays(y, x)
    pair.stand_by(y)
    pair.protect()
    figures = []
    for number in range(lab.word("rounds", 6)):
        how = ("switch", "hang")[number % 2]
        load.must_advance(10)
        let_go(lab, pair, how)
        load.must_advance(10)
        pair.protect()
        resync = [event["data"] for event in pair.history() if event["name"] in ("RESYNC", "FULL_SYNC")][-1]
        lab.log(f"round {number + 1}: {how}; {pair.primary} runs it, {pair.standby} stands by: {resync}")
        lab.check("equal-pages" in resync, f"all of memory was sent: {resync}")
        lab.check(resync["bytes"] < resync["ram-bytes"] / 4, f"what was sent is not what differs: {resync}")
        if number % 2 == 1:             # the sides are as they were at the beginning
            figures.append((resources(x, guest), resources(y, guest)))
            lab.log(f"x and y: {figures[-1]}")
    must_not_grow(lab, figures)
    load.must_advance(10)
    pair.primary.run(f"reprise unprotect {guest.name}", timeout_s=60)
    lab.log(f"{load.finish()}")
    host.kernel_log_must_be_clean()
