"""KVM works inside a host: QEMU boots the guest image on it to userland, as bzImage and as PVH ELF."""
import time

GUEST = ("qemu-system-x86_64 -accel kvm -cpu host -M {machine} -m 256 -nodefaults -display none -no-reboot -serial stdio"
         " -kernel /mnt/images/{kernel} -initrd /mnt/images/guest-base.cpio -append 'console=ttyS0 quiet mode=poweroff'")


def run(lab):
    (a,) = lab.hosts("a")
    a.run("grep -q kvm_amd /proc/modules && test -w /dev/kvm")
    for machine, kernel in (("q35", "bzImage"), ("microvm", "vmlinux")):
        began = time.monotonic()
        guest = a.background("timeout 200 " + GUEST.format(machine=machine, kernel=kernel))
        guest.wait_for_output("REPRISE-GUEST-UP", 200)
        up = time.monotonic()
        lab.check(guest.wait(60) == 0, f"the guest on {machine} did not power off cleanly:\n{guest.output[-1000:]}")
        lab.log(f"{machine}, {kernel}: userland after {up - began:.1f} s, powered off {time.monotonic() - up:.1f} s later")
    a.kernel_log_must_be_clean()
