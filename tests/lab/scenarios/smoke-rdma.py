"""Soft-RoCE between two hosts: connection manager, messages, and RDMA WRITE with its figures."""
import re


# Without -R: who connects by that a second time does so a second after the first, ready or not, and crashes when refused.
BANDWIDTH = "ib_write_bw -d rxe0 -s {size} -n 40 -F --report_gbits"


def listening(lab, host, command, where):
    """Start a server and wait until it listens (its output would come too late: it is buffered)."""
    server = host.background(command)
    lab.wait_until(lambda: "LISTEN" in host.run(where).output or server.rc is not None, 30, f"{command} listens")
    return server


def run(lab):
    a, b = lab.hosts("a", "b")
    for host in (a, b):
        lab.check("state ACTIVE" in host.run("rdma link show").output, f"{host}: rxe0 is not active")

    server = listening(lab, b, "rping -s -a 10.9.0.2 -C 20 -S 4096 -v", "rdma resource show cm_id")
    a.run("rping -c -a 10.9.0.2 -C 20 -S 4096")
    server.wait(30)
    lab.check(server.output.count("ping data") == 20, "rping: not every ping arrived")

    for size in (4096, 1 << 20):
        command = BANDWIDTH.format(size=size)
        server = listening(lab, b, command, "ss -ltn sport = :18515")
        output = a.run(f"{command} 10.9.0.2", timeout_s=60).output
        server.wait(30)
        figures = re.findall(rf"^ *{size} +\d+ +([\d.]+) +([\d.]+)", output, re.MULTILINE)
        lab.check(figures, f"ib_write_bw printed no result:\n{output}")
        lab.log(f"RDMA WRITE of {size} bytes: {float(figures[-1][1]) * 125:.1f} MB/s")
    for host in (a, b):
        host.kernel_log_must_be_clean()
