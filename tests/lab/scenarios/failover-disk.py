"""Disk and RAM agree after every failover: the primary killed at random moments, with its own disk or a shared one.

disk=private|shared|nbd (private; shared: a file that both hosts see), mode=async|sync (how the block writer writes), rounds=N (4),
transport=tcp|rdma|unix, lease=file|none, hosts=1: both sides on one host, fault=kill|switch (kill; switch: planned). In every round the primary's monitor is killed or hands over, the guest compares its whole disk with what it
remembers, then the disk is compared from outside, and the old host becomes the standby. With private disks the old primary's disk is
first refused to a new VM, and before every other round the standby is killed in the middle of taking or applying an epoch.
"""
import json

from lab import BlkGuest
from lab.pair import Pair, sides

TIMEOUT_S = 900
POINTS = ("replica-write", "journal-write", "journal-sync")    # fault points of the standby's disks, see core/fault.h


def private(lab):
    return lab.word("disk", "private") == "private"


def choose_disk(lab):
    """(what --disk says, where a host finds the bytes)"""
    kind = lab.word("disk", "private")
    if kind == "private":
        return "disk", "disk"
    with open(lab.shared / "disk", "wb") as disk:
        disk.truncate(16 << 20)
    if kind == "shared":
        return "/mnt/shared/disk,shared", "/mnt/shared/disk"
    client = lab.client()
    client.background(f"exec qemu-nbd -f raw -t -e 8 -b 10.10.0.3 -p 10809 {client.file(lab.shared / 'disk')}")
    lab.wait_until(lambda: "10809" in client.run("ss -Hltn").output, 30, "qemu-nbd listens")
    return "nbd://10.10.0.3:10809", "/mnt/shared/disk"


def refused(lab, host, guest):
    """The disk of a VM that has gone on elsewhere is not used by accident."""
    answer = host.run(f"reprise run --name other --kernel /mnt/build/guests/idle.elf --memory 16M --disk {guest.disk}", check=False)
    lab.check(answer.rc == 5 and "may have gone on at its standby" in answer.output,
              f"the old disk on {host} was not refused: exit code {answer.rc}: {answer.output[-300:]}")


def protected(pair):
    return '"protected"' in pair.status()


def replace_standby(lab, pair, fault=""):
    """Another standby on the same host, with the same disk; the primary finds it by itself."""
    if pair.standby_job.rc is None:
        pair.standby_job.kill()
    lab.wait_until(lambda: not protected(pair), 60, "the primary misses its standby")
    pair.stand_by(pair.standby, fault)
    if not fault:
        lab.wait_until(lambda: protected(pair), 120, "the guest is protected again")


def lose_the_standby(lab, pair, guest):
    """It dies in the middle of taking or applying an epoch; the VM goes on, and a new one is fed."""
    fault = f"{lab.random.choice(POINTS)}:{lab.random.randint(20, 200)}:kill"
    replace_standby(lab, pair, fault)
    lab.wait_until(lambda: pair.standby_job.rc is not None, 120, f"the standby is killed at {fault}")
    guest.must_write(20)
    lab.log(f"the standby on {pair.standby} was killed at {fault}; the guest goes on")
    replace_standby(lab, pair)


def unsuitable(lab, pair, host):
    """A standby that could not run the guest says so when it is asked to stand by, disks or not; the guest is not told that it is protected."""
    pair.standby_options = ["--vsock", "/run/no-such-device"]
    pair.stand_by(host)
    answer = pair.primary.run(pair.protect_command(), check=False, timeout_s=120)
    lab.check(answer.rc != 0 and "the VM has no vsock device" in answer.output, f"protected by {host}, which cannot run it: exit code {answer.rc}: {answer.output[-400:]}")
    pair.standby_job.kill()
    pair.standby_options = []


def resynced_by_sums(lab, pair):
    """The old primary's disk got what differs, and what was equal already was not sent."""
    syncs = [event["data"] for event in pair.history() if event["name"] == "DISK_SYNC"]
    lab.check(syncs, f"{pair.primary} did not say what its standby was sent of the disk")
    lab.log(f"the disk on {pair.standby}: {syncs[-1]}")
    lab.check(4 << 20 <= syncs[-1]["equal-bytes"] <= syncs[-1]["bytes"], f"what is equal was sent: {syncs[-1]}")


def summed(pair, guest):
    """The standby knows what all of its disk holds. (A primary that comes before is told what is known until then.)"""
    standby = json.loads(pair.standby.run(f"reprise status {guest.name} --json").output)["standby"]
    return standby["disks"]["summed-bytes"] >= guest.disk_mib << 20


def one_round(lab, pair, guest):
    old = pair.primary
    guest.must_write(lab.random.randint(10, 300))
    # A busy machine may have made the two miss each other; who dies unprotected is not taken over, and that is right.
    lab.wait_until(lambda: protected(pair), 120, "the guest is protected")
    switch = lab.word("fault", "kill") == "switch"
    if switch:
        old.run(f"reprise failover {guest.name}", timeout_s=120)
    else:
        pair.guest.job.kill()
    pair.taken_over()
    blocks = guest.disk_must_agree()
    guest.must_write(20)
    if private(lab):
        refused(lab, old, guest)
    lab.log(f"{old} {'handed over' if switch else 'was killed'}; on {pair.primary} RAM and disk agree in {blocks} blocks")
    return old


def run(lab):
    lab.need_reprise("run", "standby", "protect", "status")
    a, b = sides(lab)
    disk, where = choose_disk(lab)
    guest = BlkGuest(lab, disk=disk, append=f"size=8M mode={lab.word('mode', 'async')} rate=150 zeroes=10 flush=16 seed={lab.seed % 1000000}")
    guest.disk_file = where
    pair = Pair(lab, guest, lab.word("transport", "tcp"), lab.word("lease", "file"))
    if private(lab):        # something that the guest never writes again, and that need not travel twice
        guest.prepare(a)
        a.run(f"dd if=/dev/urandom of={guest.disk_file} bs=1M seek=10 count=4 conv=notrunc status=none")
    pair.boot(a)
    lab.wait_until(lambda: "\"running\"" in pair.status(), 60, "the guest runs")
    guest.must_write(50)
    unsuitable(lab, pair, b)
    pair.stand_by(b)
    pair.protect()
    for number in range(lab.word("rounds", 4)):
        if number % 2 and private(lab):
            lose_the_standby(lab, pair, guest)
        old = one_round(lab, pair, guest)
        pair.stand_by(old)
        if private(lab):
            lab.wait_until(lambda: summed(pair, guest), 60, "the old disk is summed")
        pair.protect()
        if private(lab):
            resynced_by_sums(lab, pair)
    guest.must_write(50)
    lab.log(f"at the end {guest.disk_must_agree()} blocks agree")
    for host in (a, b):
        host.kernel_log_must_be_clean()
