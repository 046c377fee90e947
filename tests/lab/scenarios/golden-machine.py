"""Checkpoints that an earlier reprise wrote (tests/golden/v1-*machine*.rps) are entered and go on; makes a new one.

The new one, of a native guest with two vCPUs and every device that there is, stays in a/result/new-machine.rps with --keep.
"""
import json
import pathlib

GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "golden"
DEVICES = "--disk /tmp/golden.disk --net tap:tapg"
OTHERS = "--rng on --balloon on --console null --vsock /tmp/golden.vsock,cid=9"     # which an epoch brings along


def status(host):
    return json.loads(host.run("reprise status golden --json").output)


def run(lab):
    lab.need_reprise("run", "checkpoint", "restore", "status", "quit", "inspect")
    (a,) = lab.hosts("a")
    a.run("truncate -s 1M /tmp/golden.disk; ip tuntap add tapg mode tap vnet_hdr; ip link set tapg up")
    # The first cut fails (a fault point): the VM runs on, and the next one succeeds.
    vm = a.background("RP_FAULT=cut:1 exec reprise run --name golden --memory 8M --cpus 2 --kernel /mnt/build/guests/idle.elf"
                      f" --append smp=2 {OTHERS} {DEVICES},mac=52:54:00:67:6f:6c")
    lab.wait_until(lambda: vm.rc is not None or a.run("reprise status golden", check=False).rc == 0, 60, "the guest runs")
    lab.check(vm.rc is None, f"run ended with {vm.rc}: {vm.output[-500:]}")
    failed = a.run("reprise checkpoint golden file:/mnt/result/new-machine.rps", check=False)
    lab.check(failed.rc == 1 and "fault point cut" in failed.output, f"a cut that fails: exit code {failed.rc}: {failed.output}")
    lab.check(status(a)["status"] == "running", f"a cut that failed left it {status(a)}")
    a.run("[ ! -e /mnt/result/new-machine.rps ]")
    a.run("reprise checkpoint golden file:/mnt/result/new-machine.rps --quit", timeout_s=60)
    # An epoch that fails at a device leaves nothing.
    failed = a.run(f"RP_FAULT=load-section:3 reprise restore file:/mnt/result/new-machine.rps --name golden {DEVICES}", check=False)
    lab.check(failed.rc == 1 and "fault point load-section" in failed.output, f"a device that fails: exit code {failed.rc}: {failed.output}")
    streams = [a.file(path) for path in sorted(GOLDEN.glob("v1-*machine*.rps"))] + ["/mnt/result/new-machine.rps"]
    for stream in streams:
        a.run(f"reprise inspect --json {stream} > {stream}.json")
        vm = a.background(f"exec reprise restore file:{stream} --name golden {DEVICES}")
        lab.wait_until(lambda: vm.rc is not None or a.run("reprise status golden", check=False).rc == 0, 60, f"{stream} is entered")
        lab.check(vm.rc is None, f"restore {stream} ended with {vm.rc}: {vm.output[-500:]}")
        lab.check(status(a)["status"] == "running", f"{stream}: it does not run: {status(a)}")
        # Two checkpoints of what was entered differ in the heartbeat of each vCPU: both go on.
        for number in (1, 2):
            a.run(f"reprise checkpoint golden file:/tmp/beat.{number}", timeout_s=60)
        pages = json.loads(a.run("reprise inspect --json --diff /tmp/beat.1 /tmp/beat.2").output)["page-ranges"]
        changed = {gfn for first, count in pages for gfn in range(first, first + count)}
        lab.check({0x110, 0x114} <= changed, f"{stream}: a vCPU stands still; pages {sorted(changed)} changed")
        a.run("reprise quit golden; rm -f /tmp/beat.*")
        vm.wait(30)
        lab.log(f"{pathlib.Path(stream).name}: entered and goes on")
    a.kernel_log_must_be_clean()
