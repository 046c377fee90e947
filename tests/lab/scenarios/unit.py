"""The unit and component tests, in a host: with a kernel that has RDMA and hardware KVM.

tests=A,B: the names of the programs in build/tests/unit, as shell patterns; all of them unless given.
"""
import fnmatch
import os

TIMEOUT_S = 1200


def run(lab):
    folder = lab.build / "tests" / "unit"
    patterns = lab.word("tests", "*").split(",")
    programs = sorted(path.name for path in folder.glob("*") if path.suffix == "" and os.access(path, os.X_OK) and
                      any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns))
    if not programs:
        raise lab.Skip(f"no test program in {folder} ('make unit' builds them)")
    (a,) = lab.hosts("a", cpus=2)
    failed = []
    for program in programs:
        result = a.run(f"cd /tmp && RP_GUESTS=/mnt/build/guests RP_RDMA_ADDRESS={a.repl_address} timeout 280 /mnt/build/tests/unit/{program} -j2",
                       timeout_s=300, check=False)
        last = [line for line in result.output.splitlines() if "Synthesis" in line][-1:]
        lab.log(f"{program}: {'passed' if result.rc == 0 else f'exit code {result.rc}'} {''.join(last)}")
        if result.rc:
            failed.append(program)
            lab.log(result.output[-1500:])
    lab.check(not failed, f"failed in a host: {' '.join(failed)}")
    a.kernel_log_must_be_clean()
