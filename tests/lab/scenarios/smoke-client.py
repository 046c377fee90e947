"""The native client reaches a host: ping, a redis under a real load, and the wire's recording of it."""


def run(lab):
    client = lab.client()
    (b,) = lab.hosts("b")
    lab.record(snap_bytes=128)
    client.run(f"busybox ping -c 5 -W 2 {b.lan_address}")
    b.run("redis-server --bind 0.0.0.0 --protected-mode no --daemonize yes --save '' &&"
          "until redis-cli ping; do sleep 0.1; done")
    output = client.run(f"redis-benchmark -h {b.lan_address} -q -n 300 -c 4 -t set").output
    lab.log("redis in a host, from the client: " + output.replace("\r", "\n").strip().splitlines()[-1])
    hosts = {frame.host for frame in lab.frames() if frame.network == "lan" and not frame.dropped}
    lab.check({"client", "b"} <= hosts, f"the recording shows frames from {hosts} only")
    b.kernel_log_must_be_clean()
