"""A protected guest: who runs it, who stands by, and the lease between them. The words of the command live here only."""
import json
import shlex

from .guest import Guest, LedgerGuest
from .load import LedgerLoad, RedisLoad

PORT = 4100
KEY = "/mnt/shared/key"
HEARTBEAT = "500ms"     # a lab host stalls for longer than a real one; heartbeat=1s on a machine that does other things, too


class Side:
    """One of two sides on the same host, each with directories and a tap of its own: a pair without a second host.

    Enough for what processes do to each other; a host's power, its clock and the wires between two are not there.
    """

    def __init__(self, host, name, number):
        self.host = host
        self.name = name
        self.tap = f"tap{name}{number}"
        self.repl_address = host.repl_address

    def __str__(self):
        return self.name

    def _there(self, script):
        return f"export REPRISE_RUNTIME_DIR=/run/reprise-{self.name}; mkdir -p /root/{self.name}; cd /root/{self.name}; {script}"

    def run(self, script, **options):
        return self.host.run(self._there(script), **options)

    def background(self, script):
        return self.host.background(self._there(script))

    def _signal_monitors(self, name):
        self.host.run(f"""for p in $(pgrep -x reprise); do
            grep -qzx 'REPRISE_RUNTIME_DIR=/run/reprise-{self.name}' /proc/$p/environ && kill -{name} $p
        done; true""")

    def hang(self):
        """Freeze the side's monitors: what they have connected stays open and is silent."""
        self.host.lab.log(f"{self}: hangs")
        self._signal_monitors("STOP")

    def kill(self):
        self.host.lab.log(f"{self}: its monitors are killed")
        self._signal_monitors("KILL")

    def resume(self):
        self.host.lab.log(f"{self}: goes on")
        self._signal_monitors("CONT")

    def kernel_log_must_be_clean(self):
        self.host.kernel_log_must_be_clean()


def sides(lab):
    """The two places of a pair: hosts a and b, or with hosts=1 two sides of host a."""
    if lab.word("hosts", 2) == 2:
        return lab.hosts("a", "b")
    (host,) = lab.hosts("a")
    return Side(host, "x", 1), Side(host, "y", 2)


class Pair:
    """A guest on `primary`, protected by a standby on the other host."""

    def __init__(self, lab, guest, transport="rdma", lease="file"):
        self.lab = lab
        self.guest = guest
        self.transport = transport
        self.lease = self._lease(lease)
        self.heartbeat = lab.word("heartbeat", HEARTBEAT)
        self.primary = self.standby = None
        self.standby_job = None
        self.standby_options = []       # of `reprise standby`, besides those that every one needs
        self.path = []                  # hosts on which the guest has run, in order
        (lab.shared / "lease").mkdir(exist_ok=True)
        key = lab.shared / "key"
        if not key.exists():
            key.write_text(f"{lab.seed:032x}")
            key.chmod(0o600)

    def _lease(self, kind):
        return {"file": "file:/mnt/shared/lease", "etcd": f"etcd:http://{ETCD_ADDRESS}:2379", "none": "none"}[kind]

    def uri(self, host):
        return "unix:/run/reprise-standby" if self.transport == "unix" else f"{self.transport}://{host.repl_address}:{PORT}"

    def stand_by(self, host, fault=None):
        """Start a standby on this host and wait until it listens; one with a fault point armed (core/fault.h) may have fallen to it by then."""
        self._place(host)
        self.standby = host
        self.standby_job = host.background((f"export RP_FAULT={fault}; " if fault else "") + "exec " + shlex.join(
            ["reprise", "standby", "--listen", self.uri(host), "--name", self.guest.name, "--key", KEY, "--lease", self.lease,
             *self.standby_options, *self.guest.host_side()]))
        self.lab.wait_until(lambda: self.standby_job.rc is not None or self._listens(host), 30, f"a standby listens on {host}")
        if self.standby_job.rc is not None and not fault:
            raise self.lab.Failure(f"standby on {host} ended with {self.standby_job.rc}:\n{self.standby_job.output[-1000:]}")

    def _listens(self, host):
        look = {"unix": "ss -Hlx", "tcp": "ss -Hltn", "rdma": "rdma resource show cm_id"}[self.transport]
        return any(word in host.run(look).output for word in (f":{PORT}", "/run/reprise-standby"))

    def _place(self, host):
        if isinstance(host, Side):
            self.guest.tap = host.tap
        self.guest.prepare(host)

    def boot(self, host):
        """Boot the guest, unprotected."""
        self.primary = host
        self.path = [host]
        self.guest.warm(host)
        self._place(host)
        self.guest.start(host)

    def protect_command(self):
        return shlex.join(["reprise", "protect", self.guest.name, self.uri(self.standby), "--key", KEY, "--lease", self.lease,
                           "--heartbeat", self.heartbeat, "--on-loss", self.lab.word("on-loss", "run"), "--capture", self.lab.word("capture", "auto")])

    def protect(self):
        """Protect the running guest by the standby; returns when it is protected, be it at the second attempt: busy hosts stall."""
        self.primary.run(f"{self.protect_command()} --no-wait", timeout_s=180)
        self.lab.wait_until(lambda: '"protected"' in self.status(), 180, "the guest is protected")

    def status(self):
        return self.primary.run(f"reprise status {self.guest.name} --json", check=False).output

    def history(self):
        """The guest's events, oldest first; they have travelled with it."""
        return json.loads(self.primary.run(f"reprise history {self.guest.name} --json").output)

    def taken_over(self, timeout_s=60):
        """Wait until the standby runs the guest; from now on it is the primary, without a standby."""
        target = self.standby
        self.lab.wait_until(lambda: self.standby_job.rc is not None or
                            '"running"' in target.run(f"reprise status {self.guest.name} --json", check=False).output,
                            timeout_s, f"{target} has taken over")
        if self.standby_job.rc is not None:
            raise self.lab.Failure(f"standby on {target} ended with {self.standby_job.rc}:\n{self.standby_job.output[-1500:]}")
        self.primary, self.standby = target, None
        self.guest.host, self.guest.job = target, self.standby_job
        self.path.append(target)


def with_redis(lab, client, host, transport, lease="file"):
    """A pair of a stock Debian guest with redis, unprotected on this host, and the client's load on it. The wires are recorded."""
    lab.record(snap_bytes=64)
    pair = Pair(lab, Guest(lab, memory_mib=128), transport, lease)
    pair.boot(host)
    pair.guest.wait_for("REDIS-UP")
    pair.guest.note_kernel_log()
    load = RedisLoad(lab, client, pair.guest.address, "--pause 0.01 --connections 2")
    load.must_advance(20)
    return pair, load


def with_ledger(lab, client, host):
    """The same of the ledger guest, which is up in no time."""
    lab.record(snap_bytes=64)
    pair = Pair(lab, LedgerGuest(lab), lab.word("transport", "tcp"))
    pair.boot(host)
    load = LedgerLoad(lab, client, pair.guest.address, "-i 20000")
    load.must_advance(10)
    return pair, load


ETCD_ADDRESS = "10.10.0.3"


def start_etcd(lab, client):
    """A real etcd on the client's address, for leases; ends with the run."""
    client.background(f"exec etcd --data-dir {client.file(client.result / 'etcd')} --listen-client-urls http://{ETCD_ADDRESS}:2379"
                      f" --advertise-client-urls http://{ETCD_ADDRESS}:2379 --listen-peer-urls http://127.0.0.1:2380 --log-level error")
    lab.wait_until(lambda: "true" in client.run(f"curl -s http://{ETCD_ADDRESS}:2379/health || true").output,
                   30, "etcd answers")
