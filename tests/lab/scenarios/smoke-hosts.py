"""Two hosts come up from their snapshots, share files with the driver, and reach each other on both networks."""


def run(lab):
    a, b = lab.hosts("a", "b")
    for network in ("10.9.0.2", "10.10.0.2"):
        a.run(f"ping -c 3 -i 0.2 -W 2 {network}")
    lab.check(b.run("hostname").output.strip() == "b", "host b does not know its name")

    server = b.background("echo listening; socat -u TCP-LISTEN:4000,reuseaddr OPEN:/tmp/got,creat,trunc")
    server.wait_for_output("listening", 20)
    sent = a.run("head -c 4M /dev/urandom > /tmp/sent; sha256sum < /tmp/sent;"
                 "socat -u OPEN:/tmp/sent TCP:b-repl:4000,retry=50,interval=0.1").output.split()[0]
    server.wait(60)
    lab.check(b.run("sha256sum < /tmp/got").output.split()[0] == sent, "4 MiB over TCP arrived damaged")

    a.run("echo from-a > /mnt/result/note; ls /mnt/images/bzImage")
    lab.check((a.result / "note").read_text() == "from-a\n", "the result share does not show what the host wrote")
    result = a.run("echo out; echo err >&2; exit 7", check=False)
    lab.check(result.rc == 7 and sorted(result.output.split()) == ["err", "out"], f"output or exit code lost: {result}")
    try:
        a.run("sleep 60", timeout_s=1)
    except TimeoutError:
        found = (a.directory / "examined-0.log").read_text()
        lab.check(" sleep syscall " in found, "what came to no end is not in what was examined")
    else:
        raise lab.Failure("60 s are over in one")
    clock = float(a.run("date +%s.%N").output)
    lab.check(abs(clock - __import__("time").time()) < 10, f"host a's wall clock is stale: {clock}")
    for host in (a, b):
        host.kernel_log_must_be_clean()
