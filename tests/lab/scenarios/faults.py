"""Power loss, hangs, cuts, delays and loss really happen: streams of pings and the wire's recording see each one."""
import re
import time

PING = "ping -D -i 0.1 -W 1 {address}"


def replies(job):
    """The times at which replies came, from ping -D's output, as the host's clock has them."""
    return [float(stamp) for stamp in re.findall(r"^\[([\d.]+)\] \d+ bytes from", job.output, re.MULTILINE)]


def longest_gap(times):
    return max((after - before for before, after in zip(times, times[1:])), default=0.0)


def round_trip_ms(host, address):
    output = host.run(f"ping -c 10 -i 0.1 -q {address}", check=False).output
    return float(re.search(r"= [\d.]+/([\d.]+)/", output).group(1))


def cut_is_seen(lab, a, network, address, other_address):
    cut, other = a.background(PING.format(address=address)), a.background(PING.format(address=other_address))
    time.sleep(1.5)
    lab.cut("a", "b", network)
    time.sleep(2)
    lab.restore("a", "b", network)
    time.sleep(2)
    for job in (cut, other):
        job.kill(2)
        job.wait(10)
    gap, untouched = longest_gap(replies(cut)), longest_gap(replies(other))
    lab.log(f"cut of {network} for 2 s: gap {gap:.2f} s there, {untouched:.2f} s on the other network")
    lab.check(gap > 1.7, f"the {network} wire was cut for 2 s, yet pings only stopped for {gap:.2f} s")
    lab.check(untouched < 1.5, f"cutting {network} stopped pings on the other network for {untouched:.2f} s")


def hang_is_seen(lab, a, b):
    job = a.background(PING.format(address=b.lan_address))
    counter = b.background("while :; do date +%s.%N; sleep 0.1; done")
    time.sleep(1.5)
    b.hang()
    before = len(counter.output)
    time.sleep(2)
    lab.check(len(counter.output) == before, "a hung host still printed something")
    b.resume()
    time.sleep(2)
    lab.check(len(counter.output) > before, "a host that went on does not run")
    for stopped in (job, counter):
        stopped.kill(2)
        stopped.wait(10)
    gap = longest_gap(replies(job))
    lab.log(f"hang of 2 s: gap {gap:.2f} s")
    lab.check(gap > 1.7, f"host b hung for 2 s, yet pings only stopped for {gap:.2f} s")


def run(lab):
    a, b = lab.hosts("a", "b")
    lab.record()
    base = round_trip_ms(a, b.lan_address)
    lab.delay("a", "b", 0.1)
    slow = round_trip_ms(a, b.lan_address)
    lab.restore("a", "b")
    lab.log(f"round trip {base:.1f} ms, with 100 ms of delay each way {slow:.1f} ms")
    lab.check(slow - base > 150, "a delay of 100 ms each way is not in the round trip")

    lab.lose("a", "b", 0.5)
    output = a.run(f"ping -c 40 -i 0.05 -W 1 -q {b.lan_address}", check=False).output
    lab.restore("a", "b")
    lost = float(re.search(r"([\d.]+)% packet loss", output).group(1))
    lab.log(f"half of the frames lost each way: {lost:.0f} % of the pings")
    lab.check(40 <= lost <= 98, f"with 50 % loss each way, {lost:.0f} % of the pings were lost (75 expected)")

    cut_is_seen(lab, a, "lan", b.lan_address, b.repl_address)
    cut_is_seen(lab, a, "repl", b.repl_address, b.lan_address)
    hang_is_seen(lab, a, b)

    dropped = [frame for frame in lab.frames() if frame.dropped]
    lab.check(any("cut" in frame.dropped for frame in dropped), "the recording shows no frame that met the cut")
    lab.check(any("lost" in frame.dropped for frame in dropped), "the recording shows no lost frame")

    job = a.background(PING.format(address=b.lan_address))
    job.wait_for_output("bytes from", 20)
    killed = time.time()
    b.kill()
    time.sleep(1)
    late = [frame for frame in lab.frames() if frame.host == "b" and frame.time > killed + 0.5]
    lab.check(not late, f"{len(late)} frames from a host without power")
    seen = len(replies(job))
    time.sleep(1)
    lab.check(len(replies(job)) == seen, "pings are answered by a host without power")
    b.start()
    lab.wait_until(lambda: len(replies(job)) > seen, 30, "pings answered again after the host was switched on")
    lab.log("power loss: no frame from the host, and it came back freshly booted")
    job.kill(2)
    a.kernel_log_must_be_clean()
