"""A protected guest: who runs it, who stands by, and the lease between them. The words of the command live here only."""
import shlex

PORT = 4100
KEY = "/mnt/shared/key"
HEARTBEAT = "500ms"     # a lab host stalls for longer than a real one


class Pair:
    """A guest on `primary`, protected by a standby on the other host."""

    def __init__(self, lab, guest, transport="rdma", lease="file"):
        self.lab = lab
        self.guest = guest
        self.transport = transport
        self.lease = self._lease(lease)
        self.primary = self.standby = None
        self.standby_job = None
        self.path = []                  # hosts on which the guest has run, in order
        (lab.shared / "lease").mkdir(exist_ok=True)
        key = lab.shared / "key"
        if not key.exists():
            key.write_text(f"{lab.seed:032x}")
            key.chmod(0o600)

    def _lease(self, kind):
        return {"file": "file:/mnt/shared/lease", "etcd": f"etcd:http://{ETCD_ADDRESS}:2379", "none": "none"}[kind]

    def uri(self, host):
        return f"{self.transport}://{host.repl_address}:{PORT}"

    def stand_by(self, host, fault=None):
        """Start a standby on this host, with this fault point armed (core/fault.h), and wait until it listens."""
        self.guest.prepare(host)
        self.standby = host
        self.standby_job = host.background((f"export RP_FAULT={fault}; " if fault else "") + "exec " + shlex.join(
            ["reprise", "standby", "--listen", self.uri(host), "--name", self.guest.name, "--key", KEY, "--lease", self.lease,
             *self.guest.host_side()]))
        self.lab.wait_until(lambda: self.standby_job.rc is not None or self._listens(host), 30, f"a standby listens on {host}")
        if self.standby_job.rc is not None:
            raise self.lab.Failure(f"standby on {host} ended with {self.standby_job.rc}:\n{self.standby_job.output[-1000:]}")

    def _listens(self, host):
        return str(PORT) in host.run("rdma resource show cm_id; ss -Hltn").output

    def boot(self, host):
        """Boot the guest, unprotected."""
        self.primary = host
        self.path = [host]
        self.guest.start(host)

    def protect_command(self):
        return shlex.join(["reprise", "protect", self.guest.name, self.uri(self.standby), "--key", KEY, "--lease", self.lease,
                           "--heartbeat", HEARTBEAT])

    def protect(self):
        """Protect the running guest by the standby; returns when it is protected."""
        self.primary.run(self.protect_command(), timeout_s=180)
        self.lab.wait_until(lambda: '"protected"' in self.status(), 120, "the guest is protected")

    def status(self):
        return self.primary.run(f"reprise status {self.guest.name} --json", check=False).output

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


ETCD_ADDRESS = "10.10.0.3"


def start_etcd(lab, client):
    """A real etcd on the client's address, for leases; ends with the run."""
    client.background(f"exec etcd --data-dir {client.file(client.result / 'etcd')} --listen-client-urls http://{ETCD_ADDRESS}:2379"
                      f" --advertise-client-urls http://{ETCD_ADDRESS}:2379 --listen-peer-urls http://127.0.0.1:2380 --log-level error")
    lab.wait_until(lambda: client.run(f"etcdctl --endpoints http://{ETCD_ADDRESS}:2379 endpoint health 2>&1 || true").output.count("is healthy"),
                   30, "etcd answers")
