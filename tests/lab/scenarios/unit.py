"""The unit and component tests, in a host: with a kernel that has RDMA and hardware KVM.

tests=A,B: the names of the programs in build/tests/unit, as shell patterns; all of them unless given. filter=PATTERN: only
the tests that match it (Criterion's SUITE/TEST). cuts=N: RP_CUTS, how often a guest is cut. each=S: seconds per program (280).
tap=DIR: where PROGRAM.tap with the result of each test is left.
"""
import fnmatch
import os
import shlex
import shutil

TIMEOUT_S = 3600


def run_program(host, command, each_s):
    """Its exit code and output. One that comes to no end is looked at and killed: the others have results of their own."""
    try:
        return host.run(command, timeout_s=each_s, check=False)
    except TimeoutError as error:
        return 124, str(error)


def run(lab):
    folder = lab.build / "tests" / "unit"
    patterns = lab.word("tests", "*").split(",")
    programs = sorted(path.name for path in folder.glob("*") if path.suffix == "" and os.access(path, os.X_OK) and
                      any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns))
    if not programs:
        raise lab.Skip(f"no test program in {folder} ('make unit' builds them)")
    (a,) = lab.hosts("a", cpus=2)
    each = lab.word("each", 280)
    settings = {"RP_GUESTS": "/mnt/build/guests", "RP_LINUX_KERNEL": "/mnt/images/vmlinux",
                "RP_LINUX_INITRD": "/mnt/images/guest-base.cpio", "RP_RDMA_ADDRESS": a.repl_address}
    if lab.word("cuts", ""):
        settings["RP_CUTS"] = lab.word("cuts", "")
    env = shlex.join(f"{name}={value}" for name, value in settings.items())
    tap = lab.word("tap", "")
    failed = []
    for program in programs:
        options = f"--filter {shlex.quote(lab.word('filter', ''))}" if lab.word("filter", "") else ""
        rc, output = run_program(a, f"cd /tmp && {env} /mnt/build/tests/unit/{program} -j2 --tap=/mnt/result/{program}.tap {options}", each)
        if tap and (a.result / f"{program}.tap").exists():
            shutil.copy(a.result / f"{program}.tap", tap)
        last = [line for line in output.splitlines() if "Synthesis" in line][-1:]
        lab.log(f"{program}: {'passed' if rc == 0 else f'exit code {rc}'} {''.join(last)}")
        for line in output.splitlines():
            if "SKIP" in line or "RP_SEED=" in line or "figures: " in line:
                lab.log(f"  {line}")
        if rc:
            failed.append(program)
            lab.log(output[-1500:])
    lab.check(not failed, f"failed in a host: {' '.join(failed)}")
    a.kernel_log_must_be_clean()
