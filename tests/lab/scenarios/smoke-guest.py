"""The lab's guest under Debian's QEMU: redis on its disk serves the client through tap, bridge and switch."""
from lab import Guest, RedisLoad

TIMEOUT_S = 240


def run(lab):
    (a,) = lab.hosts("a")
    client = lab.client()
    guest = Guest(lab, monitor="qemu", kernel="vmlinux", disk="/tmp/disk")
    guest.warm(a)
    guest.start(a)
    up = guest.wait_for("UP")
    lab.log(f"userland after {up:.1f} s, redis after {guest.wait_for('REDIS-UP'):.1f} s")
    lab.check("/dev/vda /data ext4" in guest.run("cat /proc/mounts"), "redis is not on the disk")
    load = RedisLoad(lab, client, guest.address)
    load.must_advance(200)
    figures = load.finish()
    lab.log(f"{figures}")
    lab.log(f"clocks in the guest: {guest.clocks_must_be_monotonic()}")
    guest.kernel_log_must_be_clean()
    a.kernel_log_must_be_clean()
