"""A run of one scenario: its directory, its hosts, its wires, and the end of all of them."""
import os
import pathlib
import random
import shutil
import subprocess
import tempfile
import time

from . import images as lab_images
from . import wire
from .client import Client
from .host import NETWORKS, ROLES, Host
from .native import NativeHost
from .switch import Switch


class Failure(Exception):
    """What the scenario checks does not hold."""


class Skip(Exception):
    """The scenario cannot run here; the text says why."""


class Lab:
    """What a scenario's run(lab) gets. Attributes worth knowing: random (seeded), directory, build, images."""

    Failure = Failure
    Skip = Skip

    def __init__(self, name, seed, build=None, words=None, native=False):
        self.name = name
        self.native = native            # hosts are namespaces of this machine, with its KVM
        self.seed = seed
        self.random = random.Random(seed)
        self.words = words or {}
        self.words_asked = set()
        self.started = time.monotonic()
        self.build = pathlib.Path(build or os.environ.get("REPRISE_BUILD") or lab_images.TREE / "build").resolve()
        self.build.mkdir(exist_ok=True)
        self.images = lab_images.build()
        # Short: unix socket paths end at 107 bytes.
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix=f"reprise-lab-{name}-"))
        self.shared = self.directory / "shared"     # /mnt/shared in every host: storage that all of them see
        self.shared.mkdir(mode=0o777)
        self.log_file = open(self.directory / "log", "w", encoding="utf-8", buffering=1)
        self.host_by_role = {}
        self.pids = {}
        self.switch = Switch(self.directory, seed)
        self.note_process(self.switch.process.pid, "switch")

    # -- hosts -----------------------------------------------------------------------------------------------------

    def hosts(self, *roles, **options):
        """Start hosts ("a", "b", "client") side by side; options as Host takes them (memory_mib)."""
        began = time.monotonic()
        hosts = []
        for role in roles:
            host = self.host_by_role[role] = (NativeHost if self.native else Host)(self, role, **options)
            host.power_on()
            hosts.append(host)
        for host in hosts:
            host.wait_ready()
        self.log(f"{', '.join(roles)}: up in {time.monotonic() - began:.1f} s")
        return hosts

    def host(self, role, **options):
        return self.hosts(role, **options)[0]

    def client(self):
        """The client: a namespace of this machine where that is allowed, else an emulated host like the others."""
        client = self.host_by_role["client"] = Client(self)
        try:
            client.start()
        except PermissionError as error:
            self.log(f"client: emulated, because a namespace with a tap is not to be had: {error}")
            client.close()
            client.directory.rename(self.directory / "client-namespace")
            client = self.host("client")
        return client

    @property
    def transport(self):
        """The best transport between two hosts."""
        return "tcp" if self.native else "rdma"

    def make_snapshots(self):
        """Make the boot snapshots that are missing, one role after the other."""
        for role in ROLES:
            host = self.host_by_role[role] = Host(self, role)
            host.make_snapshot()

    # -- wires -----------------------------------------------------------------------------------------------------

    def cut(self, one, other, network=None, both_ways=True):
        """Pull the cable between two hosts: on one network ("repl" or "lan") or on all; or only from one to other."""
        self.log(f"wire {one}-{other}{' ' + network if network else ''}: cut")
        self._rule(one, other, network, both_ways, cut=True)

    def restore(self, one, other, network=None):
        """Undo cut, delay and loss between two hosts."""
        self.log(f"wire {one}-{other}: restored")
        self._rule(one, other, network, True, cut=False, delay_s=0.0, jitter_s=0.0, loss=0.0)

    def delay(self, one, other, delay_s, jitter_s=0.0, network=None, both_ways=True):
        """Let every frame arrive delay_s later, plus up to jitter_s (which reorders), each way."""
        self.log(f"wire {one}-{other}: {delay_s * 1000:.0f} ms delay")
        self._rule(one, other, network, both_ways, delay_s=delay_s, jitter_s=jitter_s)

    def lose(self, one, other, share, network=None, both_ways=True):
        """Drop this share (0 to 1) of the frames, by the run's seed."""
        self.log(f"wire {one}-{other}: {share * 100:.1f} % loss")
        self._rule(one, other, network, both_ways, loss=share)

    def _rule(self, one, other, network, both_ways, **changes):
        for name in [network] if network else NETWORKS:
            self.switch.rule(name, str(one), str(other), **changes)
            if both_ways:
                self.switch.rule(name, str(other), str(one), **changes)

    def record(self, snap_bytes=512):
        """Record every frame on every network from now on, its first snap_bytes, into wire.pcapng."""
        self.switch.record(self.directory / "wire.pcapng", snap_bytes)

    def frames(self):
        """The frames recorded so far (wire.Frame: time, network, host that sent it, data, length, dropped)."""
        self.switch.statistics()        # flushes
        return wire.read(self.directory / "wire.pcapng")

    # -- saying and checking ---------------------------------------------------------------------------------------

    def log(self, text):
        line = f"{time.monotonic() - self.started:7.2f}  {text}"
        print(line, flush=True)
        self.log_file.write(line + "\n")

    def log_host(self, host, text):
        """What a host was told and what it said: into the log only."""
        stamp = f"{time.monotonic() - self.started:7.2f}  {host}: "
        for line in text.split("\n"):
            self.log_file.write(stamp + (line if len(line) < 1000 else line[:1000] + "...") + "\n")

    def word(self, name, default):
        """The VALUE of name=VALUE on the command line, in the type of the default."""
        self.words_asked.add(name)
        return type(default)(self.words.get(name, default))

    def check(self, condition, text):
        """Fail the scenario with this sentence unless the condition holds."""
        if not condition:
            raise Failure(text)

    def wait_until(self, condition, timeout_s, what):
        """Ask again and again; returns the first true answer, or fails the scenario."""
        deadline = time.monotonic() + timeout_s
        while True:
            answer = condition()
            if answer:
                return answer
            if time.monotonic() > deadline:
                raise Failure(f"not within {timeout_s} s: {what}")
            time.sleep(0.05)

    def need_reprise(self, *verbs):
        """Skip the scenario unless build/reprise exists and knows these verbs."""
        program = self.build / "reprise"
        if not os.access(program, os.X_OK):
            raise Skip(f"{program} is not built")
        for verb in verbs:
            if subprocess.run([program, verb, "--help"], capture_output=True, timeout=20, check=False).returncode:
                raise Skip(f"{program} does not know '{verb}' yet")

    # -- the end ---------------------------------------------------------------------------------------------------

    def note_process(self, pid, what):
        """Keep the list of our processes in the directory's `pids` file, for whoever has to clean up after us."""
        if what:
            self.pids[pid] = what
        else:
            self.pids.pop(pid, None)
        (self.directory / "pids").write_text("".join(f"{p} {w}\n" for p, w in self.pids.items()))

    def close(self, keep):
        """End everything; with keep, the directory stays (without the sockets)."""
        for host in self.host_by_role.values():
            host.close()
        self.switch.close()
        self.log_file.close()
        if keep:
            for path in self.directory.rglob("*"):
                if path.is_socket():
                    path.unlink()
        else:
            shutil.rmtree(self.directory, ignore_errors=True)
