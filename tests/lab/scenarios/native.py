"""Scenarios run with --native, too: in a host that has KVM, with namespaces as its hosts. names=N,N: which (smoke-ledger)."""
import shutil

from lab.images import LAB

TIMEOUT_S = 900


def run(lab):
    lab.need_reprise("run")
    (a,) = lab.hosts("a")
    shutil.copytree(LAB, a.result / "lab", ignore=shutil.ignore_patterns("__pycache__"))
    for name in lab.word("names", "smoke-ledger").split(","):
        answer = a.run("cd /tmp && REPRISE_LAB_IMAGES=/mnt/images python3 /mnt/result/lab/run --native --build /mnt/build "
                       f"{name.replace('+', ' ')}; cat /tmp/reprise-lab-*/log > /mnt/result/log 2> /dev/null", timeout_s=600, check=False)
        lab.log(answer.output.strip())
        lab.check(f"PASS {name.split('+')[0]}" in answer.output, f"{name}: not passed:\n{answer.output[-2000:]}")
    a.kernel_log_must_be_clean()
