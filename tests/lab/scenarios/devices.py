"""An SMP guest under an ordinary user drives console, entropy, balloon and power button, across a checkpoint and a restore.

cpus=N vCPUs (2). only=button: presses the power button at once, and that is all. The user owns nothing but membership in the group of /dev/kvm and a tap that is passed in as fd 9.
"""
import shlex

from lab import Guest

TIMEOUT_S = 400
MIB = 1 << 20
# Opens the tap as root, gives up root, becomes the monitor.
AS_USER = """
import fcntl, grp, os, struct, sys
tap = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tap, 0x400454ca, struct.pack("16sH22x", b"tap1", 0x0002 | 0x1000 | 0x4000))    # TUNSETIFF: TAP, NO_PI, VNET_HDR
os.dup2(tap, 9, inheritable=True)
kvm = os.stat("/dev/kvm").st_gid
os.setgroups([kvm])
os.setgid(65534)
os.setuid(65534)
os.environ["REPRISE_RUNTIME_DIR"] = "/tmp/user"
os.execvp(sys.argv[1], sys.argv[1:])
"""


class UserGuest(Guest):
    """A guest whose monitor never was root."""

    def __init__(self, lab, **options):
        super().__init__(lab, **options)
        self.runtime = "/tmp/user"

    def host_side(self):
        return ["--serial", "stdio", "--net", f"fd:9,mac={self.mac}", "--console", "unix:/tmp/user/hvc"]

    def launch(self, host, command):
        host.run("""
        mkdir -p /tmp/user
        chown 65534:65534 /tmp/user
        chgrp 107 /dev/kvm
        chmod 660 /dev/kvm""")
        super().launch(host, f"python3 -c {shlex.quote(AS_USER)} {command}")

    def reprise(self, words, check=True):
        return self.host.run(f"REPRISE_RUNTIME_DIR=/tmp/user reprise {words}", timeout_s=120, check=check)

    def shmem_mib(self):
        pid = self.host.run("pgrep -x reprise").output.split()[0]
        return int(self.host.run(f"grep RssShmem /proc/{pid}/status").output.split()[1]) // 1024


def console(lab, guest):
    """Bytes both ways between the guest's hvc0 and whoever connects to the socket."""
    job = guest.host.background("(sleep 5; echo from-host; sleep 20) | socat - UNIX-CONNECT:/tmp/user/hvc")
    lab.wait_until(lambda: "hello-from-guest" in job.output or
                   not guest.run("echo hello-from-guest > /dev/hvc0") and "hello-from-guest" in job.output, 30,
                   "the guest's hvc0 reaches the host")
    got = guest.run("read line < /dev/hvc0; echo \"got $line\"")
    lab.check("got from-host" in got, f"hvc0 read: {got}")
    job.kill()


def entropy(lab, guest):
    lab.check("virtio_rng" in guest.run("cat /sys/class/misc/hw_random/rng_current"), "virtio-rng is not the guest's source of entropy")
    one, two = (guest.run("dd if=/dev/hwrng bs=32 count=1 2>/dev/null | hexdump -v -e '1/1 \"%02x\"'") for _ in range(2))
    lab.check(len(one.strip()) == 64 and one != two, f"entropy: {one} {two}")


def balloon(lab, guest, mib):
    """Leaves the guest with that much RAM."""
    answer = guest.qmp("balloon", value=mib * MIB)
    lab.check(answer == {}, f"balloon: {answer}")
    lab.wait_until(lambda: abs(guest.qmp("query-balloon")["actual"] - mib * MIB) < MIB, 60, f"the guest makes do with {mib} MiB")


def reporting(lab, guest):
    """What the guest frees comes back to the host without being asked for."""
    before = guest.shmem_mib()
    guest.run("mkdir -p /tmp/t && mount -t tmpfs none /tmp/t && dd if=/dev/zero of=/tmp/t/f bs=1M count=48 2>/dev/null")
    held = guest.shmem_mib()
    lab.check(held >= before + 24, f"48 MiB written in the guest made {before} MiB {held}")
    guest.run("umount /tmp/t")
    lab.wait_until(lambda: guest.shmem_mib() <= held - 24, 60, f"the host gets back free pages (it has {held} MiB in use)")
    lab.log(f"free-page reporting: {before} MiB, with a file {held} MiB, afterwards {guest.shmem_mib()} MiB")


def press(lab, guest):
    """ACPI's power button: the guest's acpid powers it off."""
    lab.log(guest.run("ls /dev/input; grep -i power /proc/bus/input/devices; grep acpi /proc/interrupts; pidof acpid"))
    guest.reprise("powerdown vm")
    lab.check(guest.job.wait(90) == 0, f"the power button ended the monitor with {guest.job.rc}:\n{guest.job.output[-1000:]}")


def run(lab):
    lab.need_reprise("run")
    cpus = lab.word("cpus", 2)
    (a,) = lab.hosts("a")
    guest = UserGuest(lab, kernel="vmlinux", initrd="guest-base.cpio", mode="idle", memory_mib=256, cpus=cpus)
    guest.warm(a)
    guest.start(a)
    lab.log(f"userland after {guest.wait_for('UP'):.1f} s")
    lab.check(guest.run("nproc").strip() == str(cpus), f"the guest has {guest.run('nproc').strip()} CPUs")
    if lab.word("only", "") == "button":
        press(lab, guest)
        return
    console(lab, guest)
    entropy(lab, guest)
    reporting(lab, guest)
    balloon(lab, guest, 192)
    stats = guest.qmp("query-balloon")["stats"]
    lab.check(stats.get("stat-total-memory", 0) > 100 * MIB or guest.qmp("query-balloon")["stats"], f"statistics: {stats}")

    lab.log(f"clocks in the guest: {guest.clocks_must_be_monotonic()}; the host's: "
            f"{a.run('cat /sys/devices/system/clocksource/clocksource0/current_clocksource').output.strip()}")
    guest.reprise("pause vm")
    guest.reprise("checkpoint vm file:/tmp/user/image")
    guest.reprise("quit vm")
    lab.check(guest.job.wait(30) == 0, f"quit ended the monitor with {guest.job.rc}:\n{guest.job.output[-1000:]}")
    guest.launch(a, shlex.join(["reprise", "restore", "file:/tmp/user/image", "--name", guest.name, *guest.host_side()]))
    lab.wait_until(lambda: guest.reprise("status vm", check=False).rc == 0, 60, "restored")
    lab.check(guest.run("nproc").strip() == str(cpus), "vCPUs are lost")
    for cpu in range(cpus):
        guest.run(f"taskset {1 << cpu:x} sh -c 'i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done'")
    console(lab, guest)
    entropy(lab, guest)
    lab.check(abs(guest.qmp("query-balloon")["actual"] - 192 * MIB) < MIB, "the balloon lost its size")
    balloon(lab, guest, 256)
    lab.log(f"statistics: {guest.qmp('query-balloon')['stats']}")
    lab.log(f"clocks in the guest: {guest.clocks_must_be_monotonic()}")
    guest.kernel_log_must_be_clean()

    press(lab, guest)
    a.kernel_log_must_be_clean()
