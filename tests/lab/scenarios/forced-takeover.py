"""A VM that ran on unprotected and then died: its standby is behind and does not run it, except on demand.

Issue "the main job", after a double failure. One host, two sides: the standby hangs until it is given up, the primary dies, the standby comes back.
"""
import json

from lab import LedgerGuest
from lab.pair import Pair, Side

TIMEOUT_S = 120


def state(side, guest):
    return json.loads(side.run(f"reprise status {guest.name} --json").output)["standby"]["state"]


def force(lab, side, guest, exit_code, words, options=""):
    got = side.run(f"reprise failover {guest.name} --force {options}", check=False)
    lab.check(got.rc == exit_code and words in got.output, f"failover --force: exit code {got.rc}, not {exit_code} with \"{words}\":\n{got.output}")
    lab.log(f"failover --force: {got.output.strip()}")


def another_machine(lab, pair, guest, x, y):
    """A guest that is started anew, with the same id and one more vCPU, is protected by the standby that held the old one, and taken over."""
    pair.stand_by(x)
    pair.protect()
    x.hang()
    lab.wait_until(lambda: '"unprotected"' in pair.status(), 20, "the guest runs on unprotected")
    y.kill()
    x.resume()
    lab.wait_until(lambda: state(x, guest) == "behind", 20, "the standby sees that it is behind")
    guest.options = [*guest.options, "--cpus", "2"]
    guest.tap = y.tap
    guest.start(y)
    lab.wait_until(lambda: '"running"' in pair.status(), 20, "the guest runs, anew")
    pair.protect()
    y.kill()
    pair.taken_over()
    lab.log("another machine under the same id was protected and taken over")


def run(lab):
    lab.need_reprise("run", "standby", "protect", "failover", "status")
    (host,) = lab.hosts("a")
    x, y = Side(host, "x", 1), Side(host, "y", 2)
    guest = LedgerGuest(lab)
    guest.options = [*guest.options, "--uuid", "6f0c3a52-7d0f-4b8e-9d55-0c1a5e5f0a11"]
    pair = Pair(lab, guest, "unix")
    pair.boot(x)
    lab.wait_until(lambda: '"running"' in pair.status(), 20, "the guest runs")
    pair.stand_by(y)
    force(lab, y, guest, 5, "no whole epoch")
    pair.protect()
    force(lab, y, guest, 5, "its primary is connected")
    force(lab, x, guest, 5, "runs here")

    y.hang()
    lab.wait_until(lambda: '"unprotected"' in pair.status(), 20, "the guest runs on unprotected")
    x.kill()
    y.resume()
    lab.wait_until(lambda: state(y, guest) == "behind", 20, "the standby sees that it is behind")
    refused = y.run(f"reprise failover {guest.name}", check=False)
    lab.check(refused.rc == 5 and "--force" in refused.output, f"a failover that is not forced: exit code {refused.rc}:\n{refused.output}")
    force(lab, y, guest, 0, "runs here now")
    pair.taken_over()
    history = y.run(f"reprise history {guest.name}").output
    lab.check("TAKEOVER_FORCED" in history and "TAKEN_OVER" in history, f"the history does not tell of it:\n{history}")
    another_machine(lab, pair, guest, x, y)
    host.kernel_log_must_be_clean()
