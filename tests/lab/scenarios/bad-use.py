"""Bad use gives one sentence and the right exit code, in a host that has KVM: tests/cli/bad_use.py, all of it."""
import pathlib

TIMEOUT_S = 240


def run(lab):
    lab.need_reprise("run")
    (a,) = lab.hosts("a")
    tests = pathlib.Path(__file__).resolve().parents[2]
    for path in (tests / "cli" / "bad_use.py", tests / "golden" / "v1-machine.rps"):
        (a.result / path.name).write_bytes(path.read_bytes())
    done = a.run("chmod 660 /dev/kvm; mkdir -p /tmp/cli /tmp/golden && cp /mnt/result/bad_use.py /tmp/cli/ && cp /mnt/result/v1-machine.rps /tmp/golden/ && "
                 "python3 /tmp/cli/bad_use.py /mnt/build/reprise /mnt/build/guests", timeout_s=200, check=False)
    skipped = [line for line in done.output.splitlines() if line.startswith("skip") and "there is a /dev/kvm" not in line]
    lab.check(done.rc == 0 and not skipped, f"{done.output}")
    lab.log(done.output.splitlines()[-1])
