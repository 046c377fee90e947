"""Whatever a VM's protection waits for, its process answers: a standby that is silent, a lease whose holder has died, both ways.

Issue "the main job": the VM comes first. And a standby that waits is not put off by whoever it refuses. One host, two sides; a listener that accepts and never speaks stands for the hung standby.
"""
import json
import time

from lab import LedgerGuest
from lab.pair import KEY, Pair, Side

TIMEOUT_S = 240
ANSWER_S = 1.5      # what is waited for takes 3 s and more
MUTE = "exec python3 -c 'import socket, time; s = socket.socket(socket.AF_UNIX); s.bind(\"/run/mute\"); s.listen(); time.sleep(3600)'"


def answers_while(lab, side, guest, job):
    """Ask for the VM's state until the job has ended; returns the states of its protection, in order."""
    states = []
    while job.rc is None:
        begin = time.monotonic()
        status = json.loads(side.run(f"reprise status {guest.name} --json").output)
        took = time.monotonic() - begin
        lab.check(took < ANSWER_S, f"`status` took {took:.2f} s while protection was {states[-1:]}")
        state = status.get("protect", {}).get("state", "?")
        if states[-1:] != [state]:
            states.append(state)
        time.sleep(0.05)
    return states


def protect(side, guest, uri, lease):
    return side.background(f"exec reprise protect {guest.name} {uri} --key {KEY} --lease {lease}")


def boot(lab, pair, side):
    pair.boot(side)
    lab.wait_until(lambda: '"running"' in pair.status(), 20, "the guest runs")


def refused_and_taken_over(lab, pair, guest, x, y, z):
    """A standby that waits for a silent primary's lease refuses another instance with another lease, and goes on waiting."""
    image, other = "/mnt/shared/instance", "file:/mnt/shared/lease-other"
    (lab.shared / "lease-other").mkdir()
    x.run(f"reprise checkpoint {guest.name} file:{image}")
    x.run(f"{pair.protect_command()} --lease-ttl 4s")
    x.hang()
    lab.wait_until(lambda: '"alone"' in y.run(f"reprise status {guest.name} --json").output, 20, "the standby misses its primary")
    guest.tap = z.tap
    guest.prepare(z.host)
    z.background(f"exec reprise restore file:{image} --net tap:{z.tap}")
    lab.wait_until(lambda: z.run(f"reprise status {guest.name}", check=False).rc == 0, 20, "another instance runs")
    refused = z.run(f"reprise protect {guest.name} {pair.uri(y)} --key {KEY} --lease {other}", check=False)
    lab.check(refused.rc == 5 and "not the same storage" in refused.output, f"another lease: exit code {refused.rc}:\n{refused.output}")
    z.run(f"reprise quit {guest.name}")
    lab.wait_until(lambda: '"running"' in y.run(f"reprise status {guest.name} --json").output, 20, "the standby has taken over")
    lab.log("another lease was refused, and the silent primary taken over")
    x.resume()


def paused_stays_paused(lab, pair, guest, x, y):
    """What the administrator has paused stands still where it is handed over to, too."""
    lab.wait_until(lambda: x.run(f"reprise status {guest.name}", check=False).rc == 3, 20, "the old primary has ended")
    pair.stand_by(x)
    pair.primary = y
    y.run(pair.protect_command())
    y.run(f"reprise pause {guest.name}")
    y.run(f"reprise failover {guest.name}")
    status = json.loads(x.run(f"reprise status {guest.name} --json").output)
    lab.check(status["status"] == "paused" and status["paused-by"] == ["user"], f"handed over: {status['status']}, {status['paused-by']}")
    x.run(f"reprise resume {guest.name}")
    status = json.loads(x.run(f"reprise status {guest.name} --json").output)
    lab.check(status["status"] == "running" and not status["paused-by"], f"resumed: {status['status']}, {status['paused-by']}")
    lab.log("handed over while it was paused, and resumed there")


def unprotected_before_it_ran(lab, pair, guest, x):
    """A guest that was started paused and waits for a standby, too, runs once it is unprotected and resumed."""
    x.run(f"reprise quit {guest.name}")
    lab.wait_until(lambda: x.run(f"reprise status {guest.name}", check=False).rc == 3, 20, "the guest has ended")
    x.background(f"exec {guest.command()} --paused")
    lab.wait_until(lambda: x.run(f"reprise status {guest.name}", check=False).rc == 0, 20, "the next one is there")
    x.run(f"reprise protect {guest.name} unix:/run/nobody --key {KEY} --lease none --on-loss pause --no-wait")
    lab.wait_until(lambda: '"standby"' in x.run(f"reprise status {guest.name} --json").output.split('"uptime-ms"')[0], 20, "it lacks a standby")
    x.run(f"reprise unprotect {guest.name}")
    x.run(f"reprise resume {guest.name}")
    lab.wait_until(lambda: '"running"' in x.run(f"reprise status {guest.name} --json").output, 20, "it runs")
    lab.log("unprotected before it ran, and resumed")


def half_of_another(lab, pair, guest, x, y):
    """A standby that was sent half of a guest protects the next one, although that has more memory."""
    y.run(f"reprise quit {guest.name}", check=False)
    x.run(f"reprise quit {guest.name}", check=False)
    lab.wait_until(lambda: all(side.run(f"reprise status {guest.name}", check=False).rc == 3 for side in (x, y)), 20, "nobody runs the guest")
    pair.stand_by(y, "image-apply:1")
    boot(lab, pair, x)
    x.run(f"{pair.protect_command()} --no-wait")
    lab.wait_until(lambda: "fault point image-apply fires" in pair.standby_job.output, 20, "the copy breaks off")
    x.kill()
    lab.wait_until(lambda: guest.job.rc is not None, 20, "the guest is dead")
    guest.memory_mib *= 2
    boot(lab, pair, x)
    pair.protect()
    lab.log("half of a guest was held, and another one protected")


def run(lab):
    lab.need_reprise("run", "standby", "protect", "unprotect", "status")
    (host,) = lab.hosts("a")
    x, y = Side(host, "x", 1), Side(host, "y", 2)
    guest = LedgerGuest(lab)
    pair = Pair(lab, guest, "unix")
    boot(lab, pair, x)

    host.background(MUTE)
    lab.wait_until(lambda: host.run("test -S /run/mute", check=False).rc == 0, 10, "somebody listens, and is silent")
    job = protect(x, guest, "unix:/run/mute", pair.lease)
    states = answers_while(lab, x, guest, job)
    lab.log(f"a standby that is silent: {states}, exit code {job.rc}: {job.output.strip()[-200:]}")
    lab.check(job.rc == 1 and "connecting" in states, f"protecting by a silent standby: {states}, exit code {job.rc}:\n{job.output}")

    x.run(f"reprise protect {guest.name} unix:/run/mute --key {KEY} --no-wait")
    lab.wait_until(lambda: '"unprotected"' in x.run(f"reprise status {guest.name} --json").output, 10, "the first attempt has failed")
    time.sleep(1)                   # the second one goes on
    job = x.background(f"exec reprise unprotect {guest.name}")
    time.sleep(0.2)
    refused = x.run(f"reprise failover {guest.name}", check=False)
    lab.check(refused.rc == 5, f"a switchover of a guest that is being unprotected: exit code {refused.rc}:\n{refused.output}")
    states = answers_while(lab, x, guest, job)
    lab.log(f"unprotected while it connects: {states}, exit code {job.rc}")
    lab.check(job.rc == 0 and "unprotected" in states and '"standby"' not in pair.status(), f"unprotect: {states}, exit code {job.rc}:\n{job.output}")

    # The holder of another lease dies: its time has to run out first.
    gone = "file:/mnt/shared/lease-gone"
    (lab.shared / "lease-gone").mkdir()
    guest.tap = y.tap
    guest.prepare(host)
    holder = y.background(f"exec {guest.command()} --lease {gone} --lease-ttl 4s --pidfile /run/holder")
    lab.wait_until(lambda: holder.rc is not None or host.run("test -s /run/holder", check=False).rc == 0, 20, "somebody holds the lease")
    host.run("kill -9 $(cat /run/holder)")
    lab.wait_until(lambda: holder.rc is not None, 10, "the holder is dead")
    pair.lease = gone
    pair.stand_by(y)
    x.run(f"reprise quit {guest.name}")
    boot(lab, pair, x)
    job = protect(x, guest, pair.uri(y), f"{gone} --lease-ttl 4s")
    states = answers_while(lab, x, guest, job)
    lab.log(f"a lease whose holder has died: {states}, exit code {job.rc}")
    lab.check(job.rc == 0 and "leasing" in states, f"protecting under a dead holder's lease: {states}, exit code {job.rc}:\n{job.output}")
    x.run(f"reprise unprotect {guest.name}")
    refused_and_taken_over(lab, pair, guest, x, y, Side(host, "z", 3))
    paused_stays_paused(lab, pair, guest, x, y)
    unprotected_before_it_ran(lab, pair, guest, x)
    half_of_another(lab, pair, guest, x, y)
    host.kernel_log_must_be_clean()
