"""A Debian guest's vsock: the host and the guest reach each other; after a restore the guest hears that its connections are gone."""
from lab import Guest

TIMEOUT_S = 300
PATH = "/tmp/vsock"


def reach_guest(host, text):
    return host.run(f"{{ printf 'CONNECT 5000\\n{text}\\n'; sleep 2; }} | timeout 20 socat - UNIX-CONNECT:{PATH}").output


def reach_host(host, guest, text):
    job = host.background(f"exec timeout 60 socat UNIX-LISTEN:{PATH}_6000,unlink-early SYSTEM:'read line; echo heard $line'")
    host.run(f"for i in $(seq 100); do [ -S {PATH}_6000 ] && exit 0; sleep 0.1; done; exit 1")
    answer = guest.run(f"echo {text} | vsockcat 6000")
    job.wait(60)
    return answer


def both_ways(lab, host, guest, text):
    lab.check(f"\n{text}" in reach_guest(host, text), f"the guest did not echo {text}")
    lab.check(f"heard {text}" in reach_host(host, guest, text), f"the host did not hear {text}")


def run(lab):
    lab.need_reprise("run", "checkpoint", "restore")
    (a,) = lab.hosts("a")
    guest = Guest(lab, initrd="guest-base.cpio", mode="idle", options=["--vsock", f"{PATH},cid=7"])
    guest.warm(a)
    guest.start(a)
    guest.wait_for("UP")
    guest.run("vsockcat -l 5000 > /dev/null 2>&1 &")
    both_ways(lab, a, guest, "first")
    listener = a.background(f"exec socat -u UNIX-LISTEN:{PATH}_6001 CREATE:/tmp/came")
    a.run(f"for i in $(seq 100); do [ -S {PATH}_6001 ] && exit 0; sleep 0.1; done; exit 1")
    guest.run("(echo open; sleep 1000) | (vsockcat 6001; echo ended > /run/ended) > /dev/null 2>&1 &")
    lab.wait_until(lambda: "open" in a.run("cat /tmp/came", check=False).output, 30, "the guest's connection is open")
    a.run(f"reprise checkpoint {guest.name} file:/tmp/epoch --quit", timeout_s=120)
    listener.wait(30)
    guest.job.wait(30)
    guest.launch(a, f"reprise restore file:/tmp/epoch --vsock {PATH} " + " ".join(guest.host_side()))
    lab.wait_until(lambda: a.run(f"reprise status {guest.name}", check=False).rc == 0, 60, "restored")
    lab.wait_until(lambda: "ended" in guest.run("cat /run/ended 2> /dev/null || true"), 30, "the guest knows that its connection is gone")
    both_ways(lab, a, guest, "second")
    guest.kernel_log_must_be_clean()
