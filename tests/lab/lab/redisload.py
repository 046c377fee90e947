"""redisload.py HOST [--connections N] [--pause S] [--out FILE]: writes to a redis, and remembers what was acknowledged.

Each connection sends INCR and SET together, over and over, on one TCP connection for its whole life. INCR must answer
exactly one more than last time: a redis that went back, or did a request twice, is seen at once. Ends on SIGTERM or
SIGINT; then reads everything back, over new connections, and compares it with what was acknowledged. The last line of
output is a JSON object; exit code 0 if nothing was lost, doubled or broken.
"""
import argparse
import json
import random
import signal
import socket
import sys
import threading
import time


TCP_RTO_MAX_MS = 44     # Linux 6.15; ms


class Reply(Exception):
    """An error reply of redis."""


class Redis:
    """One connection, speaking RESP."""

    def __init__(self, host, port, timeout_s):
        self.socket = socket.create_connection((host, port), timeout_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A guest that is up for seconds between minutes of being moved would not meet a connection that has backed off to two minutes. With
        # a try each second the usual number of tries is over in 15: it is the time that counts.
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(timeout_s * 1000))
        try:
            self.socket.setsockopt(socket.IPPROTO_TCP, TCP_RTO_MAX_MS, 1000)
        except OSError:
            pass
        self.stream = self.socket.makefile("rb")

    def send(self, *words):
        parts = [b"*%d\r\n" % len(words)]
        for word in words:
            data = str(word).encode()
            parts.append(b"$%d\r\n%s\r\n" % (len(data), data))
        return b"".join(parts)

    def ask(self, *commands):
        """Send commands in one write, return their replies."""
        self.socket.sendall(b"".join(self.send(*command) for command in commands))
        return [self._reply() for _ in commands]

    def _reply(self):
        line = self.stream.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the connection was closed")
        kind, text = line[:1], line[1:-2].decode()
        if kind == b"-":
            raise Reply(text)
        if kind == b":":
            return int(text)
        if kind == b"$":
            if text == "-1":
                return None
            return self.stream.read(int(text) + 2)[:-2].decode()
        return text


class Writer(threading.Thread):
    """One connection's writes. `acknowledged` is the number of the last pair that was answered."""

    def __init__(self, number, options, stop):
        super().__init__(daemon=True)
        self.number = number
        self.options = options
        self.stop = stop
        self.acknowledged = 0
        self.latencies = []             # (time of the reply, seconds it took)
        self.error = None

    def value(self, index):
        return random.Random(f"{self.number}:{index}").randbytes(32).hex()

    def run(self):
        try:
            redis = Redis(self.options.host, self.options.port, self.options.patience)
            while not self.stop.is_set():
                index = self.acknowledged + 1
                began = time.monotonic()
                counted, said = redis.ask(("INCR", f"count:{self.number}"),
                                          ("SET", f"value:{self.number}:{index % self.options.keys}", f"{index} {self.value(index)}"))
                took = time.monotonic() - began
                if counted != index or said != "OK":
                    raise ValueError(f"INCR answered {counted} instead of {index}, SET {said}")
                self.acknowledged = index
                self.latencies.append((time.time(), took))
                if self.options.pause:
                    time.sleep(self.options.pause)
        except (OSError, Reply, ValueError) as error:
            self.error = f"connection {self.number}, after {self.acknowledged} acknowledged: {type(error).__name__}: {error}"


def verify(writer, options):
    """Compare what redis holds with what was acknowledged to this writer; returns what is wrong. A pair that was sent
    and never answered may be there or not."""
    redis = Redis(options.host, options.port, options.patience)
    wrong = []
    (count,) = redis.ask(("GET", f"count:{writer.number}"))
    count = int(count or 0)
    if not writer.acknowledged <= count <= writer.acknowledged + 1:
        wrong.append(f"connection {writer.number}: {writer.acknowledged} acknowledged, {count} counted")
    first = max(1, writer.acknowledged - options.keys + 1)
    for index in range(first, writer.acknowledged + 1):
        (held,) = redis.ask(("GET", f"value:{writer.number}:{index % options.keys}"))
        later = index + options.keys
        if held not in (f"{index} {writer.value(index)}", f"{later} {writer.value(later)}" if later == writer.acknowledged + 1 else None):
            wrong.append(f"connection {writer.number}: pair {index} acknowledged, redis holds {held!r}")
    return wrong


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("host")
    parser.add_argument("--port", type=int, default=6379)
    parser.add_argument("--connections", type=int, default=2)
    parser.add_argument("--keys", type=int, default=500, help="per connection, written round and round")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between a connection's writes")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds without an answer after which a connection is lost")
    parser.add_argument("--seconds", type=float, help="end by itself")
    parser.add_argument("--out", help="file for every latency: time, seconds")
    options = parser.parse_args()

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    writers = [Writer(number, options, stop) for number in range(options.connections)]
    for writer in writers:
        writer.start()
    began = time.monotonic()
    print("writing", flush=True)
    while not stop.wait(0.5):
        print(f"acknowledged {sum(w.acknowledged for w in writers)}", flush=True)
        if all(w.error for w in writers) or (options.seconds and time.monotonic() - began > options.seconds):
            stop.set()
    for writer in writers:
        writer.join(options.patience)
    seconds = time.monotonic() - began
    wrong = [w.error for w in writers if w.error]
    for writer in writers:
        try:
            wrong += verify(writer, options)
        except (OSError, Reply) as error:
            wrong.append(f"reading back: {type(error).__name__}: {error}")
    samples = sorted(sample for w in writers for sample in w.latencies)
    took = sorted(seconds for _, seconds in samples) or [0.0]
    if options.out:
        with open(options.out, "w", encoding="ascii") as out:
            out.writelines(f"{at:.6f} {seconds:.6f}\n" for at, seconds in samples)
    print(json.dumps({"acknowledged": sum(w.acknowledged for w in writers), "per_second": round(len(samples) / seconds, 1),
                      "p50_ms": round(took[len(took) // 2] * 1000, 2), "p99_ms": round(took[len(took) * 99 // 100] * 1000, 2),
                      "longest_ms": round(took[-1] * 1000, 1), "wrong": wrong[:20]}), flush=True)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
