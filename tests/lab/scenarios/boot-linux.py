"""reprise boots the stock Debian kernel, as bzImage and as PVH ELF, to a redis that answers; resets and powers it off."""
from lab import Guest, RedisLoad

TIMEOUT_S = 400


def one_kernel(lab, host, client, kernel):
    guest = Guest(lab, kernel=kernel, disk="/tmp/disk")
    guest.warm(host)
    guest.start(host)
    lab.log(f"{kernel}: userland after {guest.wait_for('UP'):.1f} s, redis after {guest.wait_for('REDIS-UP'):.1f} s")
    lab.check("/dev/vda /data ext4" in guest.run("cat /proc/mounts"), "redis is not on the disk")
    load = RedisLoad(lab, client, guest.address)
    load.must_advance(100)
    lab.log(f"{kernel}: {load.finish()}")
    lab.log(f"{kernel}: clocks in the guest: {guest.clocks_must_be_monotonic()}")
    guest.kernel_log_must_be_clean()

    guest.run("sync; { sleep 0.3; reboot -f; } > /dev/null 2>&1 &")
    lab.wait_until(lambda: guest.job.output.count("REPRISE-GUEST-REDIS-UP") == 2 or guest.job.rc is not None, 120,
                   f"{kernel}: the guest is back after a reset")
    lab.check(guest.job.rc is None, f"{kernel}: a reset ended the monitor with {guest.job.rc}:\n{guest.job.output[-1000:]}")
    lab.check("dbsize" not in guest.run("redis-cli dbsize") and int(guest.run("redis-cli dbsize").split()[-1]) > 0,
              "what redis had on its disk is gone after a reset")

    guest.run("sync; { sleep 0.3; poweroff -f; } > /dev/null 2>&1 &")
    lab.check(guest.job.wait(60) == 0, f"{kernel}: power-off ended the monitor with {guest.job.rc}:\n{guest.job.output[-1000:]}")
    lab.log(f"{kernel}: reset and power-off are clean")


def run(lab):
    lab.need_reprise("run")
    (a,) = lab.hosts("a")
    client = lab.client()
    for kernel in ("bzImage", "vmlinux"):
        one_kernel(lab, a, client, kernel)
        a.run("rm -f /tmp/disk")
    a.kernel_log_must_be_clean()
