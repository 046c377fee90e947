"""A link between two hosts over RDMA: it survives a lane, a dead wire and a removed device, and notices dead processes and hosts.

steps=lane,wire,device,process,standby,power: which of them (all, in this order). What is logged: how long each death took to be
noticed. heartbeat=100, timeout=2000 (ms): the lab stalls for longer than hosts do.
"""
import re
import time

from lab import rdma

TIMEOUT_S = 500
PORT = 4200
PEER = "/mnt/build/tests/bench/link-peer"


class Link:
    """A primary on a, a standby on b."""

    def __init__(self, lab, a, b):
        self.lab, self.a, self.b = lab, a, b
        self.times = f"heartbeat={lab.word('heartbeat', 100)} timeout={lab.word('timeout', 2000)}"

    def start(self, lanes, fault=""):
        uri = f"rdma://{self.b.repl_address}:{PORT}"
        self.standby = self.b.background(f"exec {PEER} standby {uri} {self.times}")
        self.standby.wait_for_output("listening", 30)
        self.primary = self.a.background(f"RP_FAULT={fault} exec {PEER} primary {uri} lanes={lanes} {self.times}")
        self.must_commit(3, 90)

    def committed(self):
        found = re.findall(r"committed (\d+)", self.primary.output)
        return int(found[-1]) if found else 0

    def over(self):
        found = re.findall(r"committed \d+ over (\w+), (\d+) lanes", self.primary.output)
        return (found[-1][0], int(found[-1][1])) if found else ("", 0)

    def must_commit(self, more, timeout_s=60):
        before = self.committed()
        self.lab.wait_until(lambda: self.committed() >= before + more or self.primary.rc is not None or self.standby.rc is not None,
                            timeout_s, f"{more} epochs more are committed")
        self.lab.check(self.primary.rc is None and self.standby.rc is None,
                       f"the link ended:\n{self.primary.output[-600:]}\n{self.standby.output[-600:]}")

    def await_event(self, name, timeout_s=60):
        self.primary.wait_for_output(f"event {name} ", timeout_s)
        line = re.findall(rf"event {name} .*", self.primary.output)[-1]
        self.lab.log(line)
        return line

    def must_be(self, transport, lanes):
        self.lab.wait_until(lambda: self.over() == (transport, lanes), 30, f"the link runs over {transport}, {lanes} lanes, not {self.over()}")

    def stop(self):
        for job in (self.primary, self.standby):
            if job.rc is None:
                job.kill()
                job.wait(20)


def lane_dies(lab, link):
    """One lane of two breaks: the other carries on, and it comes back."""
    link.start(2, "link-record:40")
    link.await_event("LANE_LOST")
    link.must_commit(5)
    link.await_event("LANE_BACK")
    link.must_be("rdma", 2)
    link.must_commit(5)
    link.stop()


def wire_dies(lab, link):
    """RDMA's packets are lost, TCP's are not: tcp carries on, nothing begins anew, and rdma is used again when it is back."""
    link.start(2)
    link.must_be("rdma", 2)
    link.a.run(rdma.CUT)
    link.await_event("TRANSPORT_DEGRADED")
    link.must_be("tcp", 1)
    link.must_commit(10)
    link.a.run(rdma.MEND)
    link.await_event("LANE_BACK", 90)
    link.must_be("rdma", 2)
    link.must_commit(10)
    lab.check(link.standby.rc is None, "the session ended")
    link.stop()


def device_dies(lab, link):
    """The verbs device is removed. (soft-RoCE lets go of it only when the processes that have it open end.)"""
    link.start(2)
    link.must_be("rdma", 2)
    removal = link.a.background("rdma link delete rxe0")
    link.await_event("TRANSPORT_DEGRADED")
    link.must_be("tcp", 1)
    link.must_commit(10)
    lab.check(link.standby.rc is None, "the session ended")
    link.stop()
    removal.wait(30)
    link.a.run("rdma link add rxe0 type rxe netdev eth0")


def silence(job):
    line = re.findall(r"end .*", job.output)[-1]
    return line, float(re.search(r"after (\d+) ms", line).group(1))


def process_dies(lab, link):
    """The primary's process is killed: its connections tell, long before any silence would."""
    link.start(1)
    link.primary.kill(9)
    link.standby.wait(30)
    line, ms = silence(link.standby)
    lab.log(f"the primary's process killed: {line}")
    lab.check("end lost" in line and "digest right" in line, f"the standby said: {line}")
    link.stop()


def standby_dies(lab, link):
    link.start(1)
    link.standby.kill(9)
    link.primary.wait(30)
    lab.log("the standby's process killed: " + re.findall(r"end .*", link.primary.output)[-1])
    link.stop()


def power_is_lost(lab, link):
    """The primary's host loses its power: no goodbye, no event. The heartbeat's silence tells."""
    link.start(1)
    killed = time.monotonic()
    link.a.kill()
    link.standby.wait(60)
    line, ms = silence(link.standby)
    lab.log(f"the primary's host without power: {line} ({time.monotonic() - killed:.2f} s after the kill, the driver's delay included)")
    lab.check("end lost" in line and "digest right" in line, f"the standby said: {line}")


STEPS = {"lane": lane_dies, "wire": wire_dies, "device": device_dies, "process": process_dies, "standby": standby_dies, "power": power_is_lost}


def run(lab):
    if not (lab.build / "tests" / "bench" / "link-peer").exists():
        raise lab.Skip("build/tests/bench/link-peer is not built")
    a, b = lab.hosts("a", "b")
    for name in lab.word("steps", ",".join(STEPS)).split(","):
        lab.log(f"step {name}")
        STEPS[name](lab, Link(lab, a, b))
    b.kernel_log_must_be_clean()
