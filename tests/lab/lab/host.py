"""A lab host: a whole machine under QEMU's emulation, started from a boot snapshot."""
import collections
import fcntl
import os
import re
import shutil
import signal
import subprocess
import time

from . import process
from .agent import Agent, HostDied
from .examine import examine
from .qmp import Qmp, QmpError

# Position in addresses: 10.9.0.N on the replication network, 10.10.0.N on the one that clients use.
ROLES = {"a": 1, "b": 2, "client": 3}
NETWORKS = ("repl", "lan")
APPEND = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr random.trust_cpu=on net.ifnames=0"
# Without virtual GIF: with it, QEMU 7.2 sometimes (one in 40 starts of a VM) enters a guest with the global interrupt flag clear; a guest
# that never exits by itself then keeps the host's CPU for ever, and the host's kernel says that RCU stalls.
CPU = "max,-vgif"
# One processor: with two, QEMU 7.2 sometimes runs kernel code as it was before the other processor patched it. A breakpoint that Linux puts
# there for a moment is then met again and again, by both: nothing in the host goes on, and its kernel says nothing. (Each VM that starts or
# ends patches __schedule; starting VMs as fast as can be, that came within minutes. QEMU 8.1 locks what it translates.)
BOOT_TIMEOUT_S = 240
LOAD_TIMEOUT_S = 90

# Run once per role, before the snapshot is taken.
PREPARE = """
set -e
hostname {role}
ip link set eth0 mtu 9000 up
ip addr add 10.9.0.{number}/24 dev eth0
ip link add br0 type bridge forward_delay 0 stp_state 0
ip link set eth1 master br0 up
ip link set br0 address 52:54:00:0a:02:0{number} up
ip addr add 10.10.0.{number}/16 dev br0
rdma link add rxe0 type rxe netdev eth0
printf '127.0.0.1 localhost\\n10.10.0.1 a\\n10.10.0.2 b\\n10.10.0.3 client\\n10.9.0.1 a-repl\\n10.9.0.2 b-repl\\n' > /etc/hosts
sleep 2         # router solicitations, multicast joins and the like: not into every run
sync
echo 3 > /proc/sys/vm/drop_caches
"""

# Run after every start; 9p cannot be part of a snapshot. Images and build do not change during a run: they may be cached.
MOUNT = """
set -e
options=trans=virtio,version=9p2000.L,msize=524288
mount -t 9p -o $options,cache=loose,ro build /mnt/build
mount -t 9p -o $options,cache=loose,ro images /mnt/images
mount -t 9p -o $options,cache=none result /mnt/result
mount -t 9p -o $options,cache=none shared /mnt/shared
dmesg -C
"""

# What must never be in a kernel log: of a host, or of a guest on its console.
KERNEL_TROUBLE = re.compile(
    r"soft lockup|hard LOCKUP|rcu.*stall|hung_task|blocked for more than|Oops|BUG:|general protection|Call Trace|"
    r"clocksource.*unstable|clock.*backwards|Kernel panic|I/O error|EXT4-fs error", re.IGNORECASE)


class Result(collections.namedtuple("Result", "rc output")):
    """What a script printed (both streams) and its exit code."""


class Host:
    """One host of a lab. Made by Lab.host(); a killed one may be started again (it comes up as freshly booted)."""

    def __init__(self, lab, role, memory_mib=2048):
        self.lab = lab
        self.role = role
        self.number = ROLES[role]
        self.memory_mib = memory_mib
        self.process = None
        self.agent = None
        self.repl_address = f"10.9.0.{self.number}"
        self.lan_address = f"10.10.0.{self.number}"
        self.directory = lab.directory / role
        self.directory.mkdir()
        self.result = self.directory / "result"     # /mnt/result in the host
        self.result.mkdir(mode=0o777)
        self.starts = 0
        self.loading = False        # comes up from its snapshot

    def __str__(self):
        return self.role

    # -- power -----------------------------------------------------------------------------------------------------

    def start(self):
        """Power on and wait until scripts can run."""
        self.power_on()
        self.wait_ready()

    def power_on(self):
        """Start the machine without waiting: start several, then wait_ready() each."""
        snapshot = self.make_snapshot()
        self.loading = snapshot is not None
        self._spawn(incoming=self.loading)
        if self.loading:
            with self.monitor() as qmp:
                qmp.command("migrate-incoming", uri=f"exec:cat {snapshot}")

    def make_snapshot(self):
        """Make this host's boot snapshot unless it is there (another driver may be making it); returns its path or None."""
        path = self._snapshot()
        if path is not None and path.exists():
            if os.access(path, os.W_OK):
                os.utime(path)          # in use: tests/lab/build deletes what nobody uses
            return path
        if path is None:
            return None
        with open(path.parent / f".{path.name}.lock", "w", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                started = time.monotonic()
                self._boot_and_save(path)
                self.lab.log(f"{self}: boot snapshot made in {time.monotonic() - started:.0f} s ({path.stat().st_size >> 20} MiB)")
        return path

    def wait_ready(self):
        if self.loading:
            self._go_on()
        self._connect(LOAD_TIMEOUT_S if self.loading else BOOT_TIMEOUT_S)
        if not self.loading:
            self._prepare()
        self.run(MOUNT, timeout_s=60)

    def kill(self):
        """Power loss: SIGKILL. Nothing in the host gets to say goodbye."""
        self.lab.log(f"{self}: power loss")
        self._end()

    def hang(self):
        """Freeze the whole host (SIGSTOP): no instruction runs, no packet is answered, until resume()."""
        self.lab.log(f"{self}: hangs")
        self.process.send_signal(signal.SIGSTOP)

    def resume(self):
        """Let a hung host go on, as if no time had passed for it."""
        self.lab.log(f"{self}: goes on")
        self.process.send_signal(signal.SIGCONT)

    @property
    def alive(self):
        return self.process is not None and self.process.poll() is None

    def close(self):
        """End the host without ceremony; safe to call at any time."""
        self._end()

    # -- scripts ---------------------------------------------------------------------------------------------------

    def run(self, script, timeout_s=60, check=True):
        """Run a bash script to its end: Result. With check, an exit code other than 0 fails the scenario."""
        job = self.background(script)
        try:
            rc = job.wait(timeout_s)
        except TimeoutError:
            examine(self)
            job.kill()
            raise
        if check and rc:
            raise self.lab.Failure(f"{self}: exit code {rc} from: {script.strip()[:300]}\n{job.output[-2000:]}")
        return Result(rc, job.output)

    def background(self, script):
        """Start a bash script and return its Job (agent.py): output, rc, wait(), wait_for_output(), kill()."""
        if not self.agent:
            raise HostDied(f"{self} is not running")
        return self.agent.start(script)

    def file(self, path):
        """The name that a file has for scripts in the host: one outside self.result is copied into it first."""
        if self.result not in path.parents:
            shutil.copy(path, self.result)
        return f"/mnt/result/{path.name}"

    def kernel_log_must_be_clean(self):
        """Fail if the host's kernel has complained about lockups, clocks, I/O or itself."""
        log = self.run("dmesg").output
        (self.directory / "dmesg.log").write_text(log)
        trouble = [line for line in log.splitlines() if KERNEL_TROUBLE.search(line)]
        if trouble:
            raise self.lab.Failure(f"{self}: kernel log: " + "; ".join(trouble[:5]))

    # -- inside ----------------------------------------------------------------------------------------------------

    def _description(self):
        """What determines the machine, and with it whether a snapshot fits."""
        return f"role={self.role} " + " ".join(self._machine()) + PREPARE

    def _snapshot(self):
        """Path of this host's boot snapshot, or None where none can be kept."""
        path = self.lab.images.snapshot(self._description())
        return path if path.exists() or os.access(path.parent, os.W_OK) else None

    def _machine(self):
        """The arguments that shape the machine; paths that change from run to run are added by _spawn()."""
        arguments = ["-M", "q35,hpet=off", "-accel", "tcg,thread=multi", "-cpu", CPU, "-smp", "1",
                     "-m", str(self.memory_mib), "-nodefaults", "-display", "none", "-no-reboot",
                     "-device", "virtio-blk-pci,drive=root,addr=0x3", "-device", "virtio-rng-pci,addr=0x6",
                     "-device", "virtio-serial-pci,addr=0x7", "-device", "virtserialport,chardev=agent,name=lab.agent"]
        for index, network in enumerate(NETWORKS):
            mtu = ",host_mtu=9000" if network == "repl" else ""
            arguments += ["-device", f"virtio-net-pci,netdev={network},addr={0x4 + index:#x},"
                                     f"mac=52:54:00:0a:{index + 1:02x}:{self.number:02x}{mtu}"]
        for index, tag in enumerate(("build", "images", "result", "shared")):
            arguments += ["-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag},addr={0x8 + index:#x}"]
        return arguments

    def _spawn(self, incoming):
        assert not self.alive
        self.starts += 1
        images, directory = self.lab.images, self.directory
        for name in ("qmp", "agent"):
            (directory / name).unlink(missing_ok=True)
        arguments = ["qemu-system-x86_64", "-name", f"reprise-lab-{self.role}", *self._machine(),
                     "-kernel", images.kernel, "-initrd", images.initramfs, "-append", APPEND,
                     "-drive", f"if=none,id=root,format=raw,readonly=on,file={images.root}",
                     "-serial", f"file:{directory}/console-{self.starts}.log",
                     "-chardev", f"socket,id=agent,path={directory}/agent,server=on,wait=off",
                     "-qmp", f"unix:{directory}/qmp,server=on,wait=off"]
        for network in NETWORKS:
            port = self.lab.switch.port(network, self.role)
            arguments += ["-netdev", f"stream,id={network},server=off,addr.type=unix,addr.path={port}"]
        shares = {"build": (self.lab.build, ",readonly=on"), "images": (images.path, ",readonly=on"), "result": (self.result, ""),
                  "shared": (self.lab.shared, "")}
        for tag, (path, options) in shares.items():
            arguments += ["-fsdev", f"local,id={tag},path={path},security_model=none{options}"]
        if incoming:
            arguments += ["-incoming", "defer"]
        with open(directory / "qemu.log", "ab") as log:
            self.process = process.spawn([str(argument) for argument in arguments], stdout=log, stderr=subprocess.STDOUT)
        self.lab.note_process(self.process.pid, f"host {self.role}")

    def monitor(self):
        """The emulator's own monitor, for a with statement; it takes one client at a time."""
        try:
            return _Closing(Qmp(self.directory / "qmp"))
        except QmpError as error:
            raise self._dead(error) from error

    def _go_on(self):
        """Let the machine run once its snapshot is loaded: it was saved stopped, so it comes back stopped."""
        with self.monitor() as qmp:
            qmp.migration_ended(LOAD_TIMEOUT_S)
            qmp.command("cont")

    def _connect(self, timeout_s):
        deadline = time.monotonic() + timeout_s
        while not (self.directory / "agent").exists():
            if not self.alive or time.monotonic() > deadline:
                raise self._dead("no agent socket")
            time.sleep(0.02)
        self.agent = Agent(self.directory / "agent", lambda text: self.lab.log_host(self, text))
        try:
            self.agent.hello(timeout_s)
        except HostDied as error:
            raise self._dead(error) from error

    def _dead(self, reason):
        log = (self.directory / "qemu.log").read_text(errors="replace")[-1500:]
        return HostDied(f"{self}: {reason}\n{log}")

    def _prepare(self):
        self.run(PREPARE.format(role=self.role, number=self.number), timeout_s=60)

    def _boot_and_save(self, path):
        """Boot cold and keep the whole machine state as path."""
        part = path.with_name(f".{path.name}.part")
        self._spawn(incoming=False)
        try:
            self._connect(BOOT_TIMEOUT_S)
            self._prepare()
            self.agent.close()
            with self.monitor() as qmp:
                qmp.command("stop")
                qmp.command("migrate-set-parameters", max_bandwidth=1 << 40)
                qmp.command("migrate", uri=f"exec:cat > {part}")
                qmp.migration_ended()
                qmp.command("quit")
            process.end(self.process, 30)
            part.rename(path)
        finally:
            self._end()

    def _end(self):
        if self.process:
            process.end(self.process)
            self.lab.note_process(self.process.pid, None)
        if self.agent:
            self.agent.close()
        self.process = self.agent = None


class _Closing:
    """A QMP connection for the length of a with statement (the server takes one client at a time)."""

    def __init__(self, qmp):
        self.qmp = qmp

    def __enter__(self):
        return self.qmp

    def __exit__(self, *_):
        self.qmp.close()


