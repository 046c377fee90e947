"""Time of the stock Debian kernel to userland: reprise beside QEMU microvm.

monitors=qemu measures that one alone; rounds=N (3); kernel=bzImage|vmlinux; shmem=advise: the host gives shared memory huge pages where it is
asked for them, as `reprise doctor` wants it (never: the kernel's own setting).
"""
from lab import Guest
from lab.bench import Comparison

TIMEOUT_S = 400


def run(lab):
    comparison = Comparison(lab)
    kernel = lab.word("kernel", "vmlinux")
    (a,) = lab.hosts("a")
    a.run(f"echo {lab.word('shmem', 'never')} > /sys/kernel/mm/transparent_hugepage/shmem_enabled")
    for _ in range(lab.word("rounds", 3)):
        for monitor in comparison.monitors:
            guest = Guest(lab, monitor=monitor, kernel=kernel, initrd="guest-base.cpio", mode="poweroff", net=False,
                          options=["--rng", "off", "--balloon", "off"])
            guest.warm(a)
            guest.start(a)
            comparison.add("boot to userland", "s", False, monitor, guest.wait_for("UP"))
            lab.check(guest.job.wait(60) == 0, f"{monitor} ended with {guest.job.rc}:\n{guest.job.output[-1000:]}")
    comparison.report()
