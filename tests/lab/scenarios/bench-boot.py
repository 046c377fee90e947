"""Time of the stock Debian kernel to userland: reprise beside QEMU microvm.

monitors=qemu measures that one alone.
"""
from lab import Guest
from lab.bench import Comparison

TIMEOUT_S = 400
ROUNDS = 3


def run(lab):
    comparison = Comparison(lab)
    (a,) = lab.hosts("a")
    for _ in range(ROUNDS):
        for monitor in comparison.monitors:
            # Each its fastest way in: QEMU's microvm has no other for an ELF than its PVH entry, either.
            guest = Guest(lab, monitor=monitor, kernel="vmlinux", initrd="guest-base.cpio", mode="poweroff")
            guest.warm(a)
            guest.start(a)
            comparison.add("boot to userland", "s", False, monitor, guest.wait_for("UP"))
            lab.check(guest.job.wait(60) == 0, f"{monitor} ended with {guest.job.rc}:\n{guest.job.output[-1000:]}")
    comparison.report()
