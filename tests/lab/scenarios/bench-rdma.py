"""What a lane carries over RDMA, beside what ib_write_bw writes in the same run (and tcp beside both): figures and their ratio.

seconds=8, lanes=1, rounds=2, hosts=2|1 (1: a host with itself). In the lab an emulated processor carries soft-RoCE and both programs:
read the ratio, not the figures.
"""
import re

TIMEOUT_S = 400
PORT = 4200
PEER = "/mnt/build/tests/bench/link-peer"


def ib_write_bw(lab, a, b, seconds, size):
    command = f"ib_write_bw -R -d rxe0 -s {size} -n {seconds * 12} -F"
    server = b.background(command)
    lab.wait_until(lambda: "LISTEN" in b.run("rdma resource show cm_id").output or server.rc is not None, 30, "ib_write_bw listens")
    output = a.run(f"{command} {b.repl_address}", timeout_s=seconds * 3 + 90).output
    server.wait(60)
    figures = re.findall(rf"^ *{size} +\d+ +([\d.]+) +([\d.]+)", output, re.MULTILINE)
    lab.check(figures, f"ib_write_bw printed no result:\n{output}")
    return float(figures[-1][1]) * 1.048576     # it prints MiB/s


def bulk(lab, a, b, scheme, seconds, lanes):
    uri = f"{scheme}://{b.repl_address}:{PORT}"
    standby = b.background(f"exec {PEER} standby {uri} timeout=20000")
    standby.wait_for_output("listening", 30)
    output = a.run(f"{PEER} bulk {uri} lanes={lanes} seconds={seconds} timeout=20000", timeout_s=seconds + 90).output
    standby.wait(30)
    line = re.search(r"bulk over (\w+), \d+ lanes: ([\d.]+) MB/s.*", output)
    lab.check(line and line.group(1) == scheme, f"no figure over {scheme}:\n{output}")
    lab.log(line.group(0))
    return float(line.group(2))


def run(lab):
    if not (lab.build / "tests" / "bench" / "link-peer").exists():
        raise lab.Skip("build/tests/bench/link-peer is not built")
    a, b = lab.hosts("a", "b") if lab.word("hosts", 2) == 2 else lab.hosts("a") * 2
    seconds, lanes = lab.word("seconds", 8), lab.word("lanes", 1)
    for _ in range(lab.word("rounds", 2)):
        base = ib_write_bw(lab, a, b, seconds, 262144)
        rdma = bulk(lab, a, b, "rdma", seconds, lanes)
        tcp = bulk(lab, a, b, "tcp", seconds, lanes)
        lab.log(f"ib_write_bw {base:.2f} MB/s, rdma lanes {rdma:.2f} MB/s: ratio {rdma / base:.2f}; tcp {tcp:.2f} MB/s")
