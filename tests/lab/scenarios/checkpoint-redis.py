"""A Debian guest with redis under load is checkpointed and restored, again and again, also on the other host.

Issue "the machine", must hold 1: clients see nothing but a delay, redis's data equals what was acknowledged, no lockup in
the kernel's log, no clock going backwards. rounds=N sets the number of rounds (20), cpus=N the guest's (1).
"""
import time

from lab import Guest, RedisLoad, witness

TIMEOUT_S = 1500


def move(lab, guest, target, number):
    """Pause, checkpoint, end the old process, enter the image in a new one on target; returns the seconds of each."""
    source, image = guest.host, f"/mnt/shared/{guest.name}.{number}"
    steps = [time.monotonic()]
    source.run(f"reprise pause {guest.name}", timeout_s=30)
    source.run(f"reprise checkpoint {guest.name} file:{image}", timeout_s=120)
    steps.append(time.monotonic())
    old = guest.job
    source.run(f"reprise quit {guest.name}", timeout_s=30)
    lab.check(old.wait(30) == 0, f"quit ended the monitor with {old.rc}:\n{old.output[-1000:]}")
    steps.append(time.monotonic())
    guest.prepare(target)
    guest.restore(target, f"file:{image}")
    lab.wait_until(lambda: guest.job.rc is not None or
                   target.run(f"reprise status {guest.name}", check=False).rc == 0, 60, f"round {number}: restored")
    lab.check(guest.job.rc is None, f"round {number}: restore on {target} ended with {guest.job.rc}:\n{guest.job.output[-1500:]}")
    steps.append(time.monotonic())
    target.run(f"rm -f {image}")
    return [after - before for before, after in zip(steps, steps[1:])]


def run(lab):
    lab.need_reprise("run", "pause", "checkpoint", "restore", "status", "quit")
    a, b = lab.hosts("a", "b")
    client = lab.client()
    lab.record(snap_bytes=64)
    guest = Guest(lab, disk="/mnt/shared/disk", cpus=lab.word("cpus", 1))
    guest.warm(a)
    guest.start(a)
    guest.wait_for("REDIS-UP")
    guest.note_kernel_log()
    load = RedisLoad(lab, client, guest.address, "--pause 0.01")
    load.must_advance(50)
    path = [a]
    for number in range(1, lab.word("rounds", 20) + 1):
        # The first rounds alternate, so that a short run covers both; the rest is the seed's choice.
        target = (a, b)[number % 2] if number < 3 else lab.random.choice((a, b))
        source = guest.host
        saved, quit_s, entered = move(lab, guest, target, number)
        load.must_advance(20)
        path += [target] if target is not path[-1] else []
        lab.log(f"round {number}: {source} -> {target}: checkpoint {saved:.1f} s, quit {quit_s:.1f} s, restore {entered:.1f} s,"
                f" {load.acknowledged()} acknowledged")
    lab.log(f"{load.finish()}")
    lab.log(f"clocks in the guest: {guest.clocks_must_be_monotonic()}")
    witness.one_active(lab, guest, path)
    guest.kernel_log_must_be_clean()
    for host in (a, b):
        host.kernel_log_must_be_clean()
