"""What a host was at when something in it never ended: every thread's call and stack, every CPU's registers."""
import time

from .agent import HostDied
from .qmp import QmpError

THREADS = """
ps -eLo pid,tid,psr,stat,time,pcpu,wchan:24,comm --sort=-pcpu
for task in /proc/[0-9]*/task/*; do
  grep -q . $task/cmdline || continue       # a kernel's thread has none; test -s finds every file of /proc empty
  echo "$task $(cat $task/comm) syscall $(cat $task/syscall)"; cat $task/stack
done
cat /proc/interrupts
dmesg | tail -20
"""
CPUS = ("info registers -a", "info lapic", "info pic")
LOOKS = 3       # at the CPUs: one that moves differs between them


def _threads(host):
    job = host.background(THREADS)
    try:
        job.wait(30)
    except TimeoutError:
        job.kill()
        return f"{job.output}\n(the host did not get further in 30 s)"
    return job.output


def _cpus(host):
    found = []
    with host.monitor() as qmp:
        for _ in range(LOOKS):
            for line in CPUS:
                found.append(f"(qemu) {line}\n" + qmp.command("human-monitor-command", command_line=line))
            time.sleep(0.3)
    return "\n".join(found)


def examine(host):
    """Write examined-N.log into the host's directory. Takes a minute at most, and never fails."""
    found = []
    for look in [_threads] + ([_cpus] if hasattr(host, "monitor") else []):
        try:
            found.append(look(host))
        except (HostDied, QmpError, OSError) as error:
            found.append(f"no answer: {error}")
    path = host.directory / f"examined-{len(list(host.directory.glob('examined-*')))}.log"
    path.write_text("\n".join(found))
    host.lab.log(f"{host}: what it was at: {path}")
