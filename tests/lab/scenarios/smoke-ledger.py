"""The ledger guest under reprise counts requests of the client, over TCP and over UDP, and loses none."""
from lab import LedgerGuest, LedgerLoad

TIMEOUT_S = 200


def run(lab):
    lab.need_reprise("run")
    (a,) = lab.hosts("a")
    client = lab.client()
    guest = LedgerGuest(lab)
    guest.start(a)
    for options in ("-i 2000", "-u -i 2000"):
        load = LedgerLoad(lab, client, guest.address, options)
        load.must_advance(50)
        lab.log(f"{options}: {load.finish()}")
    a.kernel_log_must_be_clean()
