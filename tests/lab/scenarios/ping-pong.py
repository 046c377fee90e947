"""Failovers there and back, protected anew each time: the ledger loses nothing, and no process grows.

Issue "the main job", must hold 2. rounds=N (6; 100 is the long run), kind=mixed|switch|kill (mixed: the seed's choice of a
planned switchover or a killed primary), transport=tcp|rdma|unix, hosts=1: both sides on one host. The monitor of each round is a new process, so growth shows within
one: at its end each has gone through standby, takeover, protection by a next one, and what follows.
"""
from lab import witness
from lab.pair import sides, with_ledger

TIMEOUT_S = 7200


def resources(host, guest):
    """Descriptors, threads and KiB of memory of the monitor that runs the guest."""
    pid = host.run(f"reprise status {guest.name} --json | sed -n 's/.*\"pid\": \\([0-9]*\\).*/\\1/p'").output.split()[0]
    figures = host.run(f"ls /proc/{pid}/fd | wc -l; sed -n 's/^Threads:[^0-9]*//p; s/^RssAnon:[^0-9]*\\([0-9]*\\).*/\\1/p' /proc/{pid}/status")
    fds, rss, threads = map(int, figures.output.split())
    return {"fds": fds, "threads": threads, "anon_kib": rss}


def run(lab):
    lab.need_reprise("run", "standby", "protect", "failover", "status")
    hosts = sides(lab)
    pair, load = with_ledger(lab, lab.client(), hosts[0])
    guest = pair.guest
    kind = lab.word("kind", "mixed")
    seen = []
    for number in range(lab.word("rounds", 6)):
        target = hosts[1] if pair.primary is hosts[0] else hosts[0]
        pair.stand_by(target)
        pair.protect()
        load.must_advance(5)
        if number:                      # the first monitor booted its guest; all others have taken over
            seen.append(resources(pair.primary, guest))
        old_host, old = pair.primary, guest.job
        if kind == "switch" or (kind == "mixed" and lab.random.random() < 0.5):
            how = "switched"
            old_host.run(f"reprise failover {guest.name}", timeout_s=120)
        else:
            how = "killed"
            old.kill()
        pair.taken_over()
        load.must_advance(5)
        lab.check(old.wait(30) == (0 if how == "switched" else -9) or how == "killed", f"{old_host}: the old monitor ended with {old.rc}")
        lab.log(f"round {number + 1}: {how} from {old_host} to {pair.primary}, {load.acknowledged()} acknowledged, {seen[-1] if seen else ''}")
    # Protected and let go again, many times in one process: that is where a leak would be.
    target = hosts[1] if pair.primary is hosts[0] else hosts[0]
    pair.stand_by(target)
    pair.protect()
    before = resources(pair.primary, guest), resources(target, guest)
    for _ in range(lab.word("again", 5)):
        pair.primary.run(f"reprise unprotect {guest.name}", timeout_s=60)
        load.must_advance(5)
        pair.protect()
        load.must_advance(5)
    after = resources(pair.primary, guest), resources(target, guest)
    lab.log(f"primary and standby before and after being protected {lab.word('again', 5)} more times: {before}, {after}")
    for old_figures, new in zip(before, after):
        for what in ("fds", "threads"):
            lab.check(new[what] <= old_figures[what], f"{what} grew from {old_figures[what]} to {new[what]}")
        lab.check(new["anon_kib"] <= old_figures["anon_kib"] * 1.15 + 2048, f"memory grew from {old_figures} to {new}")
    pair.primary.run(f"reprise unprotect {guest.name}", timeout_s=60)
    lab.log(f"{load.finish()}")
    if lab.word("hosts", 2) == 2:
        witness.one_active(lab, guest, pair.path)
