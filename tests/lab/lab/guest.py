"""A guest inside a lab host: the lab's guest image under `reprise`, or under Debian's QEMU to compare with."""
import json
import pathlib
import shlex
import time

from .agent import HostDied
from .host import KERNEL_TROUBLE

IMAGES = "/mnt/images"
SHELL_PORT = 2323
REDIS_PORT = 6379
# A guest's kernel says only what is bad; a panic resets, which the monitor reports.
APPEND = "console=ttyS0 quiet loglevel=5 panic=-1 mitigations=off random.trust_cpu=on"

# argv: socket, command. Runs in the host.
QMP_CLIENT = """
import json, socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
f = s.makefile("rw")
f.readline()
for message in ('{"execute": "qmp_capabilities"}', sys.argv[2]):
    f.write(message)
    f.flush()
    line = f.readline()
    while "event" in json.loads(line):      # not in its text: an answer may speak of events
        line = f.readline()
print(line)
"""


class Guest:
    """What a guest is made of, and the monitor that runs it now. It may be started on several hosts, one after the other."""

    def __init__(self, lab, name="vm", monitor="reprise", kernel="bzImage", initrd="guest-redis.cpio", mode="redis",
                 memory_mib=160, cpus=1, number=1, net=True, disk=None, disk_mib=64,
                 append="", options=()):
        self.lab = lab
        self.name = name
        self.monitor = monitor
        self.kernel = kernel
        self.initrd = initrd
        self.memory_mib = memory_mib
        self.cpus = cpus
        self.address = f"10.10.1.{number}"
        self.mac = f"52:54:00:0a:10:{number:02x}"
        self.tap = f"tap{number}"
        self.net = net
        self.disk = disk                # path in the host, made by make_disk()
        self.disk_mib = disk_mib
        self.append = " ".join([APPEND, *([f"ip={self.address}/16"] if net else []), f"mode={mode}", append]).strip()
        self.options = list(options)    # further words of `reprise run`
        self.runtime = "/run/reprise"   # where its control socket is
        self.kernel_said = set()        # lines of its kernel's log that are no trouble
        self.host = None
        self.job = None                 # the monitor; its output is the guest's console
        self.began = 0.0

    # -- what a host must have -------------------------------------------------------------------------------------

    def prepare(self, host):
        """Make the tap and, unless it is there, the disk on a host that will run the guest."""
        if self.net:
            host.run(f"""
            [ -e /sys/class/net/{self.tap} ] && exit 0
            ip tuntap add {self.tap} mode tap vnet_hdr
            ip link set {self.tap} master br0 up""")
        if self.disk:
            host.run(f"[ -e {self.disk} ] || {{ truncate -s {self.disk_mib}M {self.disk} && mkfs.ext4 -qF {self.disk}; }}")

    def warm(self, host):
        """Read the images into the host's page cache, so that a time measured is not that of the share."""
        host.run(f"cat {IMAGES}/{self.kernel} {IMAGES}/{self.initrd} > /dev/null")

    # -- running ---------------------------------------------------------------------------------------------------

    def command(self):
        """The command line that boots the guest, its console on standard output."""
        return self._qemu() if self.monitor == "qemu" else self._reprise()

    def _reprise(self):
        words = ["reprise", "run", "--name", self.name, "--memory", f"{self.memory_mib}M", "--cpus", str(self.cpus),
                 "--kernel", f"{IMAGES}/{self.kernel}", "--initrd", f"{IMAGES}/{self.initrd}",
                 "--append", self.append, *self.options, *self.host_side()]
        return shlex.join(words)

    def host_side(self):
        """The options that say what of the host the guest uses: the same for `run`, `restore` and `standby`."""
        words = ["--serial", "stdio", *(["--net", f"tap:{self.tap},mac={self.mac}"] if self.net else [])]
        if self.disk:
            words += ["--disk", self.disk]
        return words

    def _qemu(self):
        words = ["qemu-system-x86_64", "-accel", "kvm", "-cpu", "host", "-M", "microvm,pit=off,rtc=on", "-m", str(self.memory_mib),
                 "-smp", str(self.cpus), "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio",
                 "-kernel", f"{IMAGES}/{self.kernel}", "-initrd", f"{IMAGES}/{self.initrd}", "-append", self.append]
        if self.net:
            words += ["-netdev", f"tap,id=net,ifname={self.tap},script=no,downscript=no,vhost=off",
                      "-device", f"virtio-net-device,netdev=net,mac={self.mac}"]
        if self.disk:
            words += ["-drive", f"if=none,id=disk,format=raw,cache=writeback,aio=io_uring,file={self.disk}",
                      "-device", "virtio-blk-device,drive=disk"]
        return shlex.join(words)

    def start(self, host):
        """Boot on this host; does not wait."""
        self.prepare(host)
        self.launch(host, self.command())

    def restore(self, host, image):
        """Enter a checkpoint on this host; does not wait."""
        self.launch(host, shlex.join(["reprise", "restore", image, "--name", self.name, *self.host_side()]))

    def launch(self, host, command):
        """Run a monitor on a host, whatever it does there: boot, restore, stand by."""
        self.host = host
        self.began = time.monotonic()
        self.job = host.background("exec " + command)

    def wait_for(self, marker, timeout_s=120):
        """Wait for a marker of the guest's init on the console; returns the seconds since the start."""
        try:
            self.job.wait_for_output(f"REPRISE-GUEST-{marker}", timeout_s)
        except TimeoutError as error:
            raise self.lab.Failure(f"guest {self.name} ({self.monitor}) on {self.host}: {error}") from error
        return time.monotonic() - self.began

    def run(self, script, timeout_s=60):
        """Run a shell script inside the guest, over its network; returns what it printed."""
        end = "REPRISE-END"
        job = self.host.background(f"printf '%s\\necho {end} $?\\nexit\\n' {shlex.quote(script)} |"
                                   f" timeout {timeout_s} socat -t {timeout_s} - TCP:{self.address}:{SHELL_PORT},retry=30,interval=0.2")
        job.wait(timeout_s + 10)
        if end not in job.output:
            raise HostDied(f"guest {self.name}: no answer to: {script}\n{job.output[-500:]}")
        text, rc = job.output.rsplit(end, 1)
        if rc.strip() != "0":
            raise self.lab.Failure(f"guest {self.name}: exit code {rc.strip()} from: {script}\n{text}")
        return text

    def qmp(self, command, **arguments):
        """One command to the VM's own control socket; its result, or the error's text as a string."""
        message = json.dumps({"execute": command, "arguments": {key.replace("_", "-"): value for key, value in arguments.items()}})
        output = self.host.run(f"python3 -c {shlex.quote(QMP_CLIENT)} {self.runtime}/{self.name}.sock {shlex.quote(message)}",
                               timeout_s=60).output
        answer = json.loads(output.strip().splitlines()[-1])
        return answer["return"] if "return" in answer else answer["error"]["desc"]

    def note_kernel_log(self):
        """What its kernel has said until now is of its boot: emulated processors make it warn then (clocksources, above all)."""
        self.kernel_said = set(self.run("dmesg").splitlines())

    def kernel_log_must_be_clean(self):
        """Fail if the guest's kernel has complained since it was up, or since note_kernel_log().

        In an emulated host not about its clocksources: the processor's TSC and KVM's clock drift apart there by a millisecond whenever the
        machine below stalls, also without any failover. That no clock goes backwards is clocks_must_be_monotonic()'s to say.
        """
        log = self.run("dmesg") + self.job.output.rpartition("REPRISE-GUEST-UP")[2]
        pathlib.Path(self.lab.directory / f"{self.name}.dmesg.log").write_text(log, encoding="utf-8")
        trouble = [line for line in log.splitlines() if line not in self.kernel_said and KERNEL_TROUBLE.search(line)
                   and (self.lab.native or "clocksource" not in line)]
        if trouble:
            raise self.lab.Failure(f"guest {self.name}: kernel log: " + "; ".join(trouble[:5]))

    def clocks_must_be_monotonic(self):
        """Fail if a clock inside the guest went backwards; returns what clockwatch saw."""
        seen = dict(word.split("=") for word in self.run("cat /run/clock").split())
        self.lab.check(seen["backwards"] == "0", f"guest {self.name}: a clock went backwards: {seen}")
        return seen

    def kill(self):
        """End the monitor at once."""
        self.job.kill()
        self.job.wait(20)


class LedgerGuest(Guest):
    """The freestanding ledger guest (tests/guests/ledger.c), which counts requests; LedgerLoad is its client."""

    def __init__(self, lab, name="ledger", **options):
        super().__init__(lab, name, memory_mib=options.pop("memory_mib", 64), **options)
        self.append = f"ip={self.address} {options.get('append', '')}".strip()

    def warm(self, host):
        host.run("cat /mnt/build/guests/ledger.elf > /dev/null")

    def _reprise(self):
        return shlex.join(["reprise", "run", "--name", self.name, "--memory", f"{self.memory_mib}M", "--kernel", "/mnt/build/guests/ledger.elf",
                           "--append", self.append, "--rng", "off", "--balloon", "off", *self.options, *self.host_side()])

    def wait_for(self, marker, timeout_s=120):
        """Its client is what tells that it is up."""
        return time.monotonic() - self.began

    def clocks_must_be_monotonic(self):
        """What its vCPU saw of kvmclock is in its status page (tests/guests/status.h)."""
        return "not asked"

    def kernel_log_must_be_clean(self):
        """It has no kernel."""


class BlkGuest(Guest):
    """The freestanding block writer (tests/guests/blkwriter.c), which knows what its disk must hold."""

    def __init__(self, lab, name="blk", disk="/root/disk", disk_mib=16, append="", **options):
        super().__init__(lab, name, memory_mib=options.pop("memory_mib", 32), net=False, disk=disk, disk_mib=disk_mib, **options)
        self.append = append
        self.disk_file = disk.partition(",")[0]     # where a host finds the disk's bytes

    def warm(self, host):
        host.run("cat /mnt/build/guests/blkwriter.elf > /dev/null")

    def prepare(self, host):
        host.run(f"[ -e {self.disk_file} ] || truncate -s {self.disk_mib}M {self.disk_file}")

    def _reprise(self):
        return shlex.join(["reprise", "run", "--name", self.name, "--memory", f"{self.memory_mib}M", "--kernel", "/mnt/build/guests/blkwriter.elf",
                           "--append", self.append, "--rng", "off", "--balloon", "off", *self.options, *self.host_side()])

    def probe(self, options=""):
        """What the guest's status area says, as a dict of strings (guest-probe)."""
        found = self.host.run(f"""
        for p in $(pgrep -x reprise); do
            [ "$(readlink /proc/$p/exe)" ] && tr '\\0' ' ' < /proc/$p/cmdline | grep -q -e '--name {self.name} ' || continue
            [ "$(tr '\\0' '\\n' < /proc/$p/environ | sed -n 's/^REPRISE_RUNTIME_DIR=//p')" = "$REPRISE_RUNTIME_DIR" ] || continue
            exec /mnt/build/tests/tools/guest-probe {options} -p $p
        done
        echo "no monitor of {self.name}" >&2; exit 1""", check=False, timeout_s=120)
        if found.rc:
            raise self.lab.Failure(f"guest {self.name} on {self.host}: {found.output[-500:]}")
        return dict(line.split(" ", 1) for line in found.output.splitlines() if " " in line)

    def must_write(self, writes, timeout_s=120):
        """Wait until the guest has done so many more writes."""
        goal = int(self.probe()["writes"]) + writes
        self.lab.wait_until(lambda: int(self.probe()["writes"]) >= goal, timeout_s, f"the guest has written {writes} more blocks")

    def disk_must_agree(self):
        """The guest reads its whole disk and compares; then, while it stands, its disk file is compared with its RAM from outside."""
        before = int(self.probe("-c 2")["verifies"])
        self.lab.wait_until(lambda: int(self.probe()["verifies"]) > before, 180, "the guest has read all of its disk")
        self.host.run(f"reprise pause {self.name}")
        seen = self.probe(f"-V -d {self.disk_file}")
        self.host.run(f"reprise resume {self.name}")
        return int(seen["verified_blocks"])
