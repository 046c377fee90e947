"""The failover demo: a protected VM loses its host in the middle of a client's writes, and nothing acknowledged is lost.

guest=redis|ledger (redis: a stock Debian kernel), transport=rdma|tcp|unix, lease=file|etcd, seconds=N of writes before and after (8).
What `make demo` runs; it leaves build/demo/failover.svg.
"""
import json
import time

from lab import Guest, LedgerGuest, LedgerLoad, RedisLoad, chart, witness
from lab.pair import Pair

TIMEOUT_S = 600


def start(lab, host, client):
    """Boot the guest and put the client's load on it."""
    if lab.word("guest", "redis") == "ledger":
        guest = LedgerGuest(lab)
        return guest, lambda: LedgerLoad(lab, client, guest.address, "-i 5000")
    guest = Guest(lab, memory_mib=128)
    return guest, lambda: RedisLoad(lab, client, guest.address, "--pause 0.005 --connections 2")


def protection(pair):
    """What the primary says of its protection."""
    return json.loads(pair.status()).get("protect", {})


def show_pauses(lab, figures):
    lab.log("pauses of the VM while it was protected, one per epoch:")
    for line in chart.histogram([(bound / 1000, count) for bound, count in figures["pause"]["histogram-us"]]):
        lab.log(line)
    for name, label in (("pause", "a pause"), ("commit", "from the cut to its commit")):
        part = figures[name]
        lab.log(f"  {label}: p50 {part['p50-us'] / 1000:.2f} ms, p99 {part['p99-us'] / 1000:.2f} ms, longest {part['max-us'] / 1000:.2f} ms")
    outputs = figures["outputs"]
    lab.log(f"  an output waited: p50 {outputs['hold-p50-us'] / 1000:.2f} ms, p99 {outputs['hold-p99-us'] / 1000:.2f} ms")


def timeline(lab, events, died, samples):
    """Who did what when, in seconds since the power was cut; returns marks for the picture."""
    first = next((at for at, took in samples if at > died and at - took <= died + 60 and took > 0 and at > died + 0.02), None)
    marks = [(died, "power is cut")]
    for event in events:
        if event["wall-ns"] / 1e9 > died - 1 and event["name"] in STEPS:
            marks.append((event["wall-ns"] / 1e9, STEPS[event["name"]]))
    if first:
        marks.append((first, "first answer after it"))
    for at, label in sorted(marks):
        lab.log(f"  {(at - died) * 1000:+9.1f} ms  {label}")
    return marks


STEPS = {"PRIMARY_LOST": "the standby misses the primary", "ENTERED": "it holds the lease, and the newest epoch is entered",
         "RESUME": "the VM runs on the standby", "TAKEN_OVER": "it has taken over"}


def run(lab):
    lab.need_reprise("run", "standby", "protect", "status", "history")
    a, b = lab.hosts("a", "b")
    client = lab.client()
    lab.record(snap_bytes=64)
    guest, write = start(lab, a, client)
    transport = lab.word("transport", lab.transport)
    pair = Pair(lab, guest, transport, lab.word("lease", "file"))
    if lab.native:                  # such hosts do not stall
        pair.heartbeat = lab.word("heartbeat", "50ms")
    lab.log(f"host a boots the VM ({guest.kernel if guest.name == 'vm' else 'the ledger guest'})")
    pair.boot(a)
    guest.wait_for("REDIS-UP")
    load = write()
    load.must_advance(20)
    lab.log("the client writes; host b stands by")
    pair.stand_by(b)
    began = time.monotonic()
    pair.protect()
    lab.log(f"protected over {transport} after {time.monotonic() - began:.1f} s: from now on no packet leaves before its epoch is safe on b")
    seconds = lab.word("seconds", 8)
    time.sleep(seconds)
    load.must_advance(20)
    figures = protection(pair)

    before = load.acknowledged()
    died = time.time()
    a.kill()
    pair.taken_over()
    load.must_advance(20)
    time.sleep(seconds)
    after = load.acknowledged()
    events = pair.history()
    verdict = load.finish()
    lab.log(f"{before} writes were acknowledged before the power was cut, {after} a while later, over the same TCP connections")
    lab.log(f"all {verdict['acknowledged']} acknowledged writes were read back: none lost, none doubled")
    witness.one_active(lab, guest, pair.path)

    samples = load.samples()
    lab.log("timeline:")
    marks = timeline(lab, events, died, samples)
    show_pauses(lab, figures)
    origin = samples[0][0]
    directory = lab.build / "demo"
    directory.mkdir(exist_ok=True)
    picture = directory / "failover.svg"
    wanted = [mark for mark in marks if mark[1] in ("power is cut", STEPS["RESUME"], "first answer after it")]
    picture.write_text(chart.failover([(at - origin, took) for at, took in samples], [(at - origin, label) for at, label in sorted(wanted)],
                                      f"A VM loses its host ({transport}); {verdict['acknowledged']} acknowledged writes, none lost"))
    lab.log(f"the picture: {picture.relative_to(lab.build.parent) if picture.is_relative_to(lab.build.parent) else picture}")
