"""A protected Debian guest with redis survives its host: the client's connections live on, nothing acknowledged is lost.

Issue "the main job", must hold 1. transport=rdma|tcp, lease=file|etcd|none, fault=power|process|hang|cut|isolate|switch|standby,
rounds=N (1; the roles change after each round, and the old host becomes the standby), hosts=1: both sides on one host (process, hang, switch, standby).

cut: the hosts do not reach each other, but both reach the lease: the primary goes on, and is protected again afterwards.
switch: no fault, but `reprise failover`: a planned switchover. standby: the standby is killed, and another one takes its place
(on-loss=pause: until then the guest stands).
isolate (lease=etcd, whatever is said): the primary's host reaches nobody, the lease included: the standby takes over, the primary stops itself.
"""
import time

from lab import witness
from lab.pair import sides, start_etcd, with_redis

TIMEOUT_S = 900


def strike(lab, pair, fault):
    """Let the primary's host fail in this way; returns what undoes it, if anything has to."""
    host = pair.primary
    if fault == "power":
        host.kill()
        return host.start
    if fault == "process":
        lab.log(f"{host}: the monitor is killed")
        pair.guest.job.kill()
        return None
    if fault == "switch":
        lab.log(f"{host}: {host.run(f'reprise failover {pair.guest.name}', timeout_s=120).output.strip()}")
        return None
    if fault == "hang":
        host.hang()
        return host.resume
    lab.cut(host, pair.standby)
    lab.cut(host, "client")
    return lambda: (lab.restore(host, pair.standby or pair.primary), lab.restore(host, "client"))


def cut_and_mend(lab, pair, load):
    """The link between the two is cut: the holder of the lease goes on alone, and has its standby back when it is mended."""
    lab.cut(pair.primary, pair.standby)
    lab.wait_until(lambda: '"unprotected"' in pair.status(), 60, "the primary says that it is unprotected")
    load.must_advance(20)
    lab.restore(pair.primary, pair.standby)
    lab.wait_until(lambda: '"protected"' in pair.status(), 120, "the guest is protected again")
    resyncs = [event for event in pair.history() if event["name"] == "RESYNC"]
    lab.check(resyncs, "the standby that came back was sent what differs")
    lab.log(f"resync: {resyncs[-1]['data']}")
    load.must_advance(20)


def replace_standby(lab, pair, load):
    """The standby's process is killed: the guest runs unprotected and says so, and is protected again by the next standby."""
    host = pair.standby
    pair.standby_job.kill()
    if lab.word("on-loss", "run") == "pause":
        lab.wait_until(lambda: pair.status().count('"paused"') == 2, 60, "the guest is paused, and its protection says so")
        acknowledged = load.acknowledged()
        time.sleep(3)               # that nothing happens takes its time
        lab.check(load.acknowledged() == acknowledged, f"a paused guest acknowledged {load.acknowledged() - acknowledged} writes")
    else:
        lab.wait_until(lambda: '"unprotected"' in pair.status(), 60, "the primary says that it is unprotected")
        load.must_advance(20)
    pair.stand_by(host)
    lab.wait_until(lambda: '"protected"' in pair.status(), 120, "the guest is protected again")
    load.must_advance(20)


def one_round(lab, pair, load, fault):
    if fault in ("cut", "standby"):
        (cut_and_mend if fault == "cut" else replace_standby)(lab, pair, load)
        return pair.standby
    old_host, old_job = pair.primary, pair.guest.job
    load.must_advance(20)
    before = load.acknowledged()
    began = time.monotonic()
    undo = strike(lab, pair, fault)
    pair.taken_over()
    taken = time.monotonic() - began
    load.must_advance(20)
    lab.log(f"{fault} on {old_host}: {pair.primary} took over within {taken:.2f} s, the client went on within "
            f"{time.monotonic() - began:.2f} s; {before} acknowledged before, {load.acknowledged()} now")
    if undo:
        undo()
    if fault in ("hang", "isolate"):
        # The host that comes back must have stopped, and must not speak: the witness looks at the end.
        old_job.wait(60)
        lab.check(old_job.rc == 5 and "goes on elsewhere" in old_job.output,
                  f"{old_host}: the old monitor ended with {old_job.rc} when it came back, expected 5:\n{old_job.output[-500:]}")
    if fault == "switch":
        lab.check(old_job.wait(20) == 0, f"{old_host}: after the switchover the monitor ended with {old_job.rc}:\n{old_job.output[-500:]}")
    load.must_advance(20)
    return old_host


def run(lab):
    lab.need_reprise("run", "standby", "protect", "status")
    fault = lab.word("fault", "power")
    a, b = sides(lab)
    client = lab.client()
    lease = "etcd" if fault == "isolate" else lab.word("lease", "file")
    if lease == "etcd":
        start_etcd(lab, client)
    pair, load = with_redis(lab, client, a, lab.word("transport", lab.transport), lease)
    guest = pair.guest
    pair.stand_by(b)
    pair.protect()
    for number in range(lab.word("rounds", 1)):
        if number and not pair.standby:
            pair.stand_by(old_host)
            pair.protect()
        old_host = one_round(lab, pair, load, fault)
    if pair.standby:            # reading back and comparing is no test of protection
        pair.primary.run(f"reprise unprotect {guest.name}")
    lab.log(f"{load.finish()}")
    lab.log(f"clocks in the guest: {guest.clocks_must_be_monotonic()}")
    if lab.word("hosts", 2) == 2:
        gaps = witness.one_active(lab, guest, pair.path)
        lab.log(f"from the last frame of one host to the first of the next: {', '.join(f'{gap:.2f} s' for gap in gaps)}")
    guest.kernel_log_must_be_clean()
