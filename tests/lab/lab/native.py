"""A lab host at native speed: namespaces of this machine, with its own /dev/kvm, where that is allowed.

Scenarios see what they see of an emulated host: eth0 on "repl", eth1 in the bridge br0 on "lan", both plugged into the lab's
switch; /mnt/build, /mnt/images, /mnt/result, /mnt/shared; /tmp and /run of its own; a power switch and a hang. What such a
host has not is a kernel of its own: no RDMA device is made for it, and kernel logs are this machine's.
"""
import os
import pathlib
import signal
import subprocess
import sys

from . import process
from .agent import HostDied
from .client import LocalAgent, PLUG
from .host import NETWORKS, ROLES, Host

INIT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "native_init.py")

PREPARE = """
set -e
ip addr add 10.9.0.{number}/24 dev eth0
ip link set eth0 mtu 9000
ip link add br0 type bridge forward_delay 0 stp_state 0
ip link set eth1 master br0 up
ip link set br0 address 52:54:00:0a:02:0{number} up
ip addr add 10.10.0.{number}/16 dev br0
"""


class NativeHost:
    """The interface of Host; see there."""

    def __init__(self, lab, role, memory_mib=0):    # pylint: disable=unused-argument
        self.lab = lab
        self.role = role
        self.number = ROLES[role]
        self.repl_address = f"10.9.0.{self.number}"
        self.lan_address = f"10.10.0.{self.number}"
        self.directory = lab.directory / role
        self.directory.mkdir()
        self.result = self.directory / "result"
        self.result.mkdir(mode=0o777)
        self.rootless = os.geteuid() != 0
        self.process = self.agent = None
        self.plugs = []

    def __str__(self):
        return self.role

    # -- power -----------------------------------------------------------------------------------------------------

    def power_on(self):
        """Make the namespaces; PermissionError where this user may not."""
        shares = [f"{name}={path}" for name, path in (("build", self.lab.build), ("images", self.lab.images.path),
                                                      ("result", self.result), ("shared", self.lab.shared))]
        command = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", *(["--user", "--map-root-user"] if self.rootless else []),
                   sys.executable, INIT, *shares]
        with open(self.directory / "init.log", "ab") as log:
            self.process = process.spawn(command, stdout=subprocess.PIPE, stderr=log)
        if self.process.stdout.readline() != b"up\n":
            process.end(self.process, 1.0)
            raise PermissionError((self.directory / "init.log").read_text()[-500:])
        self.lab.note_process(self.process.pid, f"host {self.role}")
        self.agent = LocalAgent(self._first(), self.rootless, lambda text: self.lab.log_host(self, text), ["--mount", "--pid"])
        for index, network in enumerate(NETWORKS):
            self._plug(index, network)
        self.agent.enter += ["env", "-C", "/tmp", f"PATH=/mnt/build:{os.environ['PATH']}"]

    def _plug(self, index, network):
        """The cable of one interface: a process outside of the host, so that a host without power is silent at once."""
        mac = f"52:54:00:0a:{index + 1:02x}:{self.number:02x}"
        with open(self.directory / "plug.log", "ab") as log:
            plug = process.spawn([*(word for word in self.agent.enter if word not in ("--mount", "--pid")),
                                  sys.executable, PLUG, self.lab.switch.port(network, self.role), "-", mac, f"eth{index}"],
                                 stdout=subprocess.PIPE, stderr=log)
        self.plugs.append(plug)
        if plug.stdout.readline() != b"up\n":
            raise HostDied(f"{self}: {(self.directory / 'plug.log').read_text()[-500:]}")

    def wait_ready(self):
        self.run(PREPARE.format(number=self.number))

    def start(self):
        self.power_on()
        self.wait_ready()

    def kill(self):
        """Power loss: first the cables, so that no socket says goodbye, then everything in the host."""
        self.lab.log(f"{self}: power loss")
        self.close()

    def hang(self):
        """Freeze every process of the host, and its cables, until resume()."""
        self.lab.log(f"{self}: hangs")
        self._signal_all(signal.SIGSTOP)

    def resume(self):
        self.lab.log(f"{self}: goes on")
        self._signal_all(signal.SIGCONT)

    @property
    def alive(self):
        return self.process is not None and self.process.poll() is None

    def close(self):
        for plug in self.plugs:
            process.end(plug)
        self.plugs = []
        if self.process:
            os.kill(self._first(), signal.SIGKILL)      # the kernel ends the whole process namespace with it
            process.end(self.process, 5.0)
            self.lab.note_process(self.process.pid, None)
        if self.agent:
            self.agent.close()
        self.process = self.agent = None

    # -- scripts ---------------------------------------------------------------------------------------------------

    run = Host.run
    background = Host.background
    file = Host.file

    def kernel_log_must_be_clean(self):
        """Its kernel is this machine's, which is not the lab's to judge."""

    # -- inside ----------------------------------------------------------------------------------------------------

    def _first(self):
        """The host's process 1, as this machine numbers it."""
        pid = self.process.pid
        return int(pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    def _signal_all(self, number):
        own = os.readlink(f"/proc/{self._first()}/ns/pid")
        for entry in pathlib.Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and os.readlink(entry / "ns/pid") == own:
                    os.kill(int(entry.name), number)
            except OSError:
                pass            # it has ended meanwhile
        for plug in self.plugs:
            plug.send_signal(number)
