"""The unit and component tests, in hosts: with a kernel that has RDMA and hardware KVM.

tests=A,B: the names of the programs in build/tests/unit, as shell patterns; all of them unless given. filter=PATTERN: only
the tests that match it (Criterion's SUITE/TEST). cuts=N: RP_CUTS, how often a guest is cut. each=S: seconds per program (280).
tap=DIR: where PROGRAM.tap with the result of each test is left. Two hosts take the programs from one row.
"""
import collections
import concurrent.futures
import fnmatch
import os
import shlex
import shutil

TIMEOUT_S = 3600
# Those that take longest go first.
LONG = ("test_machine", "test_no_lost_page", "test_rdma", "test_resync")


def programs(lab):
    folder = lab.build / "tests" / "unit"
    patterns = lab.word("tests", "*").split(",")
    found = [path.name for path in folder.glob("*") if path.suffix == "" and os.access(path, os.X_OK) and
             any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns)]
    if not found:
        raise lab.Skip(f"no test program in {folder} ('make unit' builds them)")
    return sorted(found, key=lambda name: (LONG.index(name) if name in LONG else len(LONG), name))


def run_program(lab, host, program):
    """Run one and tell what came of it; True unless it failed. One that comes to no end is looked at and killed."""
    settings = {"RP_GUESTS": "/mnt/build/guests", "RP_LINUX_KERNEL": "/mnt/images/vmlinux",
                "RP_LINUX_INITRD": "/mnt/images/guest-base.cpio", "RP_RDMA_ADDRESS": host.repl_address}
    if lab.word("cuts", ""):
        settings["RP_CUTS"] = lab.word("cuts", "")
    options = f"--filter {shlex.quote(lab.word('filter', ''))}" if lab.word("filter", "") else ""
    env = shlex.join(f"{name}={value}" for name, value in settings.items())
    try:
        rc, output = host.run(f"cd /tmp && {env} /mnt/build/tests/unit/{program} -j2 --tap=/mnt/result/{program}.tap {options}",
                              timeout_s=lab.word("each", 280), check=False)
    except TimeoutError as error:
        rc, output = 124, str(error)
    if lab.word("tap", "") and (host.result / f"{program}.tap").exists():
        shutil.copy(host.result / f"{program}.tap", lab.word("tap", ""))
    last = [line for line in output.splitlines() if "Synthesis" in line][-1:]
    lab.log(f"{host}: {program}: {'passed' if rc == 0 else f'exit code {rc}'} {''.join(last)}")
    for line in output.splitlines():
        if "SKIP" in line or "RP_SEED=" in line or "figures: " in line:
            lab.log(f"  {line}")
    if rc:
        lab.log(output[-1500:])
    return rc == 0


def run(lab):
    row, failed = collections.deque(programs(lab)), []
    hosts = lab.hosts("a", "b") if len(row) > 1 else lab.hosts("a")

    def work(host):
        while True:
            try:
                program = row.popleft()
            except IndexError:
                return
            if not run_program(lab, host, program):
                failed.append(program)

    with concurrent.futures.ThreadPoolExecutor(len(hosts)) as pool:
        for done in [pool.submit(work, host) for host in hosts]:
            done.result()
    lab.check(not failed, f"failed in a host: {' '.join(failed)}")
    for host in hosts:
        host.kernel_log_must_be_clean()
