"""Every step of protection, lease and takeover fails once, on either side: nothing acknowledged is lost, one instance is active.

The ledger guest counts a client's requests; each case arms one fault point (core/fault.h) in one process by RP_FAULT and waits
until it has done its work. points=A,B,… runs only these, transport=tcp|rdma|unix, hosts=1: both sides on one host. Not here: deaths of both sides at once, and of a
primary that is not protected (yet): those are losses by definition.
"""
import json

from lab import witness
from lab.pair import sides, with_ledger

TIMEOUT_S = 3000


class Matrix:
    """The pair, whose roles change from case to case, and its client."""

    def __init__(self, lab):
        self.lab = lab
        self.hosts = sides(lab)
        self.armed = self.point = None  # the process whose fault point the case is about, and which
        self.pair, self.load = with_ledger(lab, lab.client(), self.hosts[0])
        self.guest = self.pair.guest

    # -- steps -----------------------------------------------------------------------------------------------------

    def other(self):
        return self.hosts[1] if self.pair.primary is self.hosts[0] else self.hosts[0]

    def stand_by(self, fault=None):
        self.pair.stand_by(self.other(), fault)
        if fault:
            self.armed = self.pair.standby_job

    def protected(self, fault=None):
        """Protected by a standby with this fault point armed."""
        self.stand_by(fault)
        self.pair.protect()
        self.load.must_advance(5)

    def switch(self):
        """A planned switchover, which must come about."""
        self.pair.primary.run(f"reprise failover {self.guest.name}", timeout_s=120)
        self.pair.taken_over()
        self.load.must_advance(5)

    def armed_primary(self, fault):
        """The guest runs in a process with this fault point armed, and is protected from there."""
        self.protected(fault)
        self.switch()

    def figures(self):
        """Of the protection of the guest, whose monitor must not have ended meanwhile."""
        self.lab.check(self.guest.job.rc is None, f"the primary's monitor has ended with {self.guest.job.rc}: {self.guest.job.output[-400:]}")
        try:
            return json.loads(self.pair.status()).get("protect", {})
        except ValueError:
            return {}

    def taken_over(self):
        self.pair.taken_over(120)
        self.load.must_advance(10)

    def protected_again(self):
        self.lab.wait_until(lambda: self.figures().get("state") == "protected" and self.figures().get("losses", 0) > 0, 180,
                            "the standby was lost and the guest is protected again")
        self.load.must_advance(10)

    def fired(self):
        return f"fault point {self.point} fires" in self.armed.output

    def still_protected(self):
        self.lab.wait_until(lambda: self.figures().get("state") == "protected", 180, "the guest is protected")
        self.lab.wait_until(self.fired, 120, "the fault point fires")
        self.load.must_advance(60, 180)
        self.lab.wait_until(lambda: self.figures().get("state") == "protected", 180, "the guest is still protected, or again")

    def without_standby(self):
        """The guest runs on without one; clean the table for the next case."""
        if self.pair.standby:
            self.pair.primary.run(f"reprise unprotect {self.guest.name}", timeout_s=60, check=False)
            self.pair.standby_job.kill()
            self.pair.standby = None
        self.load.must_advance(5)

    # -- cases: the standby's side ------------------------------------------------------------------------------------

    def standby_error(self, fault):
        """The standby refuses or drops something once: unprotected, and protected again."""
        self.stand_by(fault)
        self.pair.primary.run(f"{self.pair.protect_command()} --no-wait", timeout_s=60)
        self.protected_again()
        self.without_standby()

    def standby_death(self, fault):
        """The standby dies: the guest runs on, and the next standby protects it."""
        self.standby_killed(fault + ":kill")

    def standby_killed(self, fault):
        self.stand_by(fault)
        self.pair.primary.run(f"{self.pair.protect_command()} --no-wait", timeout_s=60)
        self.lab.wait_until(lambda: self.pair.standby_job.rc is not None, 180, "the standby has died")
        self.load.must_advance(10)
        self.stand_by()
        self.protected_again()
        self.without_standby()

    def standby_recovers(self, fault):
        """A lane ends at the standby: protected in the end, over a new lane or in a new session."""
        self.stand_by(fault)
        self.pair.primary.run(f"{self.pair.protect_command()} --no-wait", timeout_s=60)
        self.still_protected()
        self.without_standby()

    def failed_switch(self, fault):
        """The standby cannot go on with what it was handed: the source does."""
        self.protected(fault)
        result = self.pair.primary.run(f"reprise failover {self.guest.name}", timeout_s=120, check=False)
        self.lab.check(result.rc != 0, f"the switchover succeeded although {fault} was armed: {result.output}")
        self.load.must_advance(10)
        self.lab.wait_until(lambda: self.pair.standby_job.rc is not None, 60, "the standby that failed has ended")
        self.without_standby()

    def late_word(self, fault):
        """The standby runs the guest and takes a second to say so: the source waits for its word."""
        self.protected(fault)
        self.switch()

    def late_takeover(self, fault):
        """The primary dies, and the standby's first attempt (at the lease, at the machine) fails."""
        self.protected(fault)
        self.guest.job.kill()
        self.taken_over()

    def lost_meanwhile(self, fault):
        """The standby's lease is lost while it takes over: its guest stands still, and goes on once the lease is held again."""
        self.protected(fault)
        self.guest.job.kill()
        self.lab.wait_until(self.fired, 60, "the standby is taking over")
        host = self.pair.standby
        pid = host.run("pgrep -ox reprise").output.strip()
        limit = f"prlimit --pid {pid} --nofile="        # without descriptors it cannot look at its lease
        host.run(f"{limit}16:")
        self.lab.wait_until(lambda: "TAKEN_OVER" in self.armed.output, 60, "the standby has taken over")
        host.run(f"{limit}1024:")
        self.taken_over()

    # -- cases: the primary's side ------------------------------------------------------------------------------------

    def primary_error(self, fault):
        """The primary loses its link to a failure of its own: unprotected, and protected again."""
        self.armed_primary(fault)
        self.stand_by()
        self.pair.primary.run(f"{self.pair.protect_command()} --no-wait", timeout_s=60)
        self.protected_again()
        self.without_standby()

    def primary_recovers(self, fault):
        """Protected in the end, whether a connection was made again within the session or a session was lost."""
        self.armed_primary(fault)
        self.stand_by()
        self.pair.primary.run(f"{self.pair.protect_command()} --no-wait", timeout_s=60)
        self.still_protected()
        self.without_standby()

    def primary_unharmed(self, fault):
        """The failure is of no consequence."""
        self.armed_primary(fault)
        self.protected()
        self.lab.wait_until(lambda: self.figures().get("committed", 0) > 0 and self.load.must_advance(100, 180) is None, 200, "it goes on")
        self.lab.wait_until(self.fired, 120, "the fault point fires")
        self.lab.check(self.figures()["state"] == "protected", f"not protected after {fault}: {self.figures()}")
        self.without_standby()

    def primary_death(self, fault):
        """The primary dies at that step: the standby takes over."""
        self.armed_primary(fault + ":kill")
        self.protected()
        old = self.guest.job
        self.lab.wait_until(lambda: old.rc is not None, 240, f"the primary has died of {fault}")
        self.taken_over()

    def failed_disown(self, fault):
        """The standby is lost, and the lease cannot be moved on at once: outputs wait until it can."""
        self.armed_primary(fault)
        self.protected()
        self.pair.standby_job.kill()
        self.load.must_advance(10)
        self.without_standby()

    def late_release(self, fault):
        """A switchover whose lease cannot be given up: the standby waits until it has run out, and goes on."""
        self.armed_primary(fault)
        self.protected()
        self.switch()

    def death_in_switch(self, fault):
        """The source dies in the middle of a switchover: the standby, which holds the last epoch, goes on.

        It cannot know that the source is dead: it moves the lease on twice, so that the source could not go on either.
        """
        self.armed_primary(fault + ":kill")
        self.protected()
        term = json.loads(self.pair.status())["protect"]["lease"]["term"]
        self.pair.primary.run(f"reprise failover {self.guest.name}", timeout_s=120, check=False)
        self.taken_over()
        now = json.loads(self.pair.status())["protect"]["lease"]["term"]
        self.lab.check(now == term + 2, f"the standby has opened its outputs under term {now}, after {term}")


CASES = [
    # point, nth visit, what becomes of it
    ("image-apply", 20, "standby_error"), ("image-apply", 20, "standby_death"),
    ("link-ack-send", 1, "standby_error"), ("link-ack-send", 30, "standby_error"), ("link-ack-send", 30, "standby_death"),
    ("load-section", 1, "failed_switch"), ("takeover-claimed", 1, "failed_switch"), ("takeover-entered", 1, "failed_switch"),
    ("lease-acquire", "1:kill", "failed_switch"), ("takeover-claimed", "1:kill", "failed_switch"), ("takeover-entered", "1:kill", "failed_switch"),
    ("takeover-runs", "1:stall", "late_word"), ("lease-acquire", 1, "late_takeover"), ("takeover-claimed", 1, "late_takeover"),
    ("takeover-entered", "1:stall", "lost_meanwhile"),
    ("link-hello", 1, "primary_error"), ("link-lane", 1, "primary_recovers"), ("cut", 20, "primary_error"),
    ("link-record", 3, "primary_error"), ("link-epoch-end", 1, "primary_error"), ("link-epoch-end", 30, "primary_error"),
    ("link-heartbeat", 10, "primary_recovers"), ("link-path", 5, "primary_recovers"), ("link-spare", 1, "primary_recovers"),
    ("link-frame", 30, "standby_recovers"), ("link-frame", "60:kill", "standby_killed"),
    ("link-ack-recv", 20, "primary_unharmed"), ("lease-renew", 20, "primary_unharmed"),
    ("cut", 100, "primary_death"), ("link-record", 400, "primary_death"), ("link-epoch-end", 100, "primary_death"),
    ("link-ack-recv", 100, "primary_death"), ("link-heartbeat", 60, "primary_death"), ("lease-renew", 90, "primary_death"),
    ("lease-advance", 1, "failed_disown"), ("lease-release", 1, "late_release"), ("lease-release", 1, "death_in_switch"),
]


def run(lab):
    lab.need_reprise("run", "standby", "protect", "failover", "status")
    wanted = [word for word in lab.word("points", "").split(",") if word]
    matrix = Matrix(lab)
    done = 0
    for point, nth, case in CASES:
        if (wanted and point not in wanted and case not in wanted) or (point == "link-spare" and matrix.pair.transport != "rdma"):
            continue
        lab.log(f"case {point}:{nth} {case} (the guest is on {matrix.pair.primary}, {matrix.load.acknowledged()} acknowledged)")
        matrix.point = point
        try:
            getattr(matrix, case)(f"{point}:{nth}")
            lab.wait_until(matrix.fired, 20, f"the fault point fires; the process said: {matrix.armed.output[-400:]}")
        except lab.Failure as failure:
            raise lab.Failure(f"{point}:{nth} {case}: {failure}") from failure
        done += 1
    lab.log(f"{done} cases; {matrix.load.finish()}")
    if lab.word("hosts", 2) == 2:
        witness.one_active(lab, matrix.guest, matrix.pair.path)
