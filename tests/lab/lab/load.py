"""Loads that a client puts on what runs in the hosts, and their verdicts."""
import json
import pathlib
import signal
import time

REDISLOAD = pathlib.Path(__file__).resolve().parent / "redisload.py"


class Load:
    """A program on a client that writes, remembers what was acknowledged, and reads it back when it is ended with SIGTERM.

    While it writes it prints lines `acknowledged N`.
    """

    def __init__(self, lab, client, command):
        self.lab = lab
        self.client = client
        self.job = client.background("exec " + command)

    def acknowledged(self):
        """How many writes have been acknowledged, as the client last said."""
        lines = [line for line in self.job.output.splitlines() if line.startswith("acknowledged")]
        return int(lines[-1].split()[1]) if lines else 0

    def must_advance(self, writes=20, timeout_s=60):
        """Wait until this many more writes are acknowledged: what serves the client is alive."""
        goal = self.acknowledged() + writes
        self.lab.wait_until(lambda: self.acknowledged() >= goal or self.job.rc is not None, timeout_s,
                            f"{writes} more writes acknowledged (at {self.acknowledged()})")
        if self.job.rc is not None:
            self.finish()

    def finish(self, timeout_s=120):
        """End the load, let it read everything back, fail the scenario if anything is wrong; returns its figures."""
        if self.job.rc is None:
            self.job.kill(signal.SIGTERM)
        self.job.wait(timeout_s)
        return self._verdict()


class RedisLoad(Load):
    """redisload.py: INCR and SET against a redis; a write is a pair of them."""

    def __init__(self, lab, client, address, options="", out="latencies"):
        self.out = client.result / out
        super().__init__(lab, client, f"python3 {client.file(REDISLOAD)} {address} {options} --out {client.file(self.out)}")
        self.job.wait_for_output("writing", 30)

    def _verdict(self):
        try:
            figures = json.loads(self.job.output.splitlines()[-1])
        except (ValueError, IndexError) as error:
            raise self.lab.Failure(f"the load broke:\n{self.job.output[-2000:]}") from error
        self.lab.check(not figures["wrong"], "the client saw: " + "; ".join(figures["wrong"]))
        return figures

    def samples(self):
        """After finish(): (wall time of the answer, seconds it took) of every write, in order."""
        return [tuple(map(float, line.split())) for line in self.out.read_text().splitlines()]


class LedgerLoad(Load):
    """ledger-client: counts at the ledger guest (tests/guests/ledger.c), over TCP unless `options` has -u."""

    def __init__(self, lab, client, address, options="-i 5000", out="acks"):
        self.out = client.result / out
        super().__init__(lab, client, f"{client.file(lab.build / 'tests/tools/ledger-client')} -v -s 3600 -w 60 -t 60 {options} "
                                      f"-l {client.file(self.out)} {address}")
        self.wall_offset_s = time.time() - time.monotonic()
        self.job.wait_for_output("acknowledged", 90)

    def _verdict(self):
        self.lab.check(self.job.rc == 0, f"the client ended with {self.job.rc}:\n{self.job.output[-1000:]}")
        return dict(line.split() for line in self.job.output.splitlines())

    def samples(self):
        """Like RedisLoad.samples; the client's clock is this machine's, unless the client is an emulated host."""
        rows = [line.split() for line in self.out.read_text().splitlines()]
        return [((int(sent) + int(took)) / 1e9 + self.wall_offset_s, int(took) / 1e9) for sent, took, *_ in rows]
