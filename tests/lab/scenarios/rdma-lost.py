"""RDMA dies under a protected guest: protection goes on over TCP and is never reported lost, and a failover then loses nothing.

host=a|b: whose RDMA packets are lost (a, the primary's); back=0|1: they pass again, and RDMA carries again, before the primary's
host loses its power (1).
"""
import json
import time

from lab import rdma, witness
from lab.pair import with_redis

TIMEOUT_S = 900


def link_of(pair):
    status = json.loads(pair.status())
    return status["protect"]["state"], status["protect"]["link"]["transport"], status["protect"]["epoch"]


def must_carry(lab, pair, load, transport):
    """The guest is protected over this transport: epochs are committed, and outputs leave."""
    lab.wait_until(lambda: link_of(pair)[1] == transport, 90, f"epochs travel over {transport}")
    began = time.monotonic()
    load.must_advance(20)
    state, now, epoch = link_of(pair)
    lab.check((state, now) == ("protected", transport), f"the guest is {state} over {now}")
    lab.log(f"protected over {transport}, epoch {epoch}; 20 writes acknowledged within {time.monotonic() - began:.2f} s")


def run(lab):
    lab.need_reprise("run", "standby", "protect", "status")
    a, b = lab.hosts("a", "b")
    pair, load = with_redis(lab, lab.client(), a, "rdma")
    guest = pair.guest
    pair.stand_by(b)
    pair.protect()
    must_carry(lab, pair, load, "rdma")
    victim = {"a": a, "b": b}[lab.word("host", "a")]
    victim.run(rdma.CUT)
    must_carry(lab, pair, load, "tcp")
    if lab.word("back", 1):
        victim.run(rdma.MEND)
        must_carry(lab, pair, load, "rdma")
    history = json.dumps(guest.qmp("query-history"))
    lab.log(f"history: {history[-2500:]}")
    lab.check("TRANSPORT_DEGRADED" in history, "the history does not say that rdma was lost")
    lab.check("PROTECT_LOST" not in history, "protection was reported lost")
    load.must_advance(20)
    a.kill()
    pair.taken_over()
    load.must_advance(20)
    lab.log(f"{load.finish()}")
    gaps = witness.one_active(lab, guest, pair.path)
    lab.log(f"from the last frame of one host to the first of the next: {', '.join(f'{gap:.2f} s' for gap in gaps)}")
