"""Loads that a client puts on what runs in the hosts, and their verdicts."""
import json
import pathlib
import signal

REDISLOAD = pathlib.Path(__file__).resolve().parent / "redisload.py"


class RedisLoad:
    """redisload.py on a client: start it, do something to the hosts, end it and hear whether anything was lost."""

    def __init__(self, lab, client, address, options="", out="latencies"):
        self.lab = lab
        self.client = client
        self.job = client.background(f"exec python3 {client.file(REDISLOAD)} {address} {options} --out {client.file(client.result / out)}")
        self.job.wait_for_output("writing", 30)

    def acknowledged(self):
        """How many pairs of writes have been acknowledged, as the client last said."""
        lines = [line for line in self.job.output.splitlines() if line.startswith("acknowledged")]
        return int(lines[-1].split()[1]) if lines else 0

    def must_advance(self, pairs=20, timeout_s=60):
        """Wait until this many more pairs are acknowledged: what serves the client is alive."""
        goal = self.acknowledged() + pairs
        self.lab.wait_until(lambda: self.acknowledged() >= goal or self.job.rc is not None, timeout_s,
                            f"{pairs} more writes acknowledged (at {self.acknowledged()})")
        if self.job.rc is not None:
            self.finish()

    def finish(self, timeout_s=120):
        """End the load, let it read everything back, fail the scenario if anything is wrong; returns its figures."""
        if self.job.rc is None:
            self.job.kill(signal.SIGTERM)
        self.job.wait(timeout_s)
        try:
            figures = json.loads(self.job.output.splitlines()[-1])
        except (ValueError, IndexError) as error:
            raise self.lab.Failure(f"the load broke:\n{self.job.output[-2000:]}") from error
        self.lab.check(not figures["wrong"], "the client saw: " + "; ".join(figures["wrong"]))
        return figures
