"""The switch between the hosts: a process that forwards every frame, and cuts, delays, loses and records them.

Each network is one learning Ethernet switch; a port is a unix socket that a QEMU `-netdev stream` connects to (frames
with a 4-byte big-endian length). Rules belong to a pair of ports in one direction. The process is its own, so that the
driver's threads never slow the wire; it ends when the driver's end of the control socket closes.
"""
import collections
import heapq
import json
import os
import random
import selectors
import socket
import struct
import sys
import time

if __package__:
    from . import process
    from .wire import Recorder
else:                                   # started as the switch's process
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from wire import Recorder

# A port whose host does not read (hung, or slow) loses frames beyond this, as a real switch's port would.
QUEUE_BYTES = 64 << 20
READ_BYTES = 1 << 18
NO_RULE = {"cut": False, "delay_s": 0.0, "jitter_s": 0.0, "loss": 0.0}


class Switch:
    """The driver's handle on the switch process."""

    def __init__(self, directory, seed):
        self.directory = directory
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = process.spawn(
                [sys.executable, os.path.abspath(__file__), str(theirs.fileno()), str(directory), str(seed)],
                pass_fds=[theirs.fileno()])
        self.control = ours.makefile("rw", encoding="utf-8")

    def ask(self, **message):
        self.control.write(json.dumps(message) + "\n")
        self.control.flush()
        answer = self.control.readline()
        if not answer:
            raise RuntimeError("the lab's switch process has died")
        return json.loads(answer)

    def port(self, network, host):
        """Make a port; returns the path of its socket."""
        return self.ask(op="port", network=network, host=host)["path"]

    def rule(self, network, source, target, **changes):
        """Change what happens to frames from one host to another: cut, delay_s, jitter_s, loss."""
        self.ask(op="rule", network=network, source=source, target=target, changes=changes)

    def record(self, path, snap_bytes):
        """Record every frame from now on into a new file; None ends the recording."""
        self.ask(op="record", path=path and str(path), snap_bytes=snap_bytes)

    def statistics(self):
        """{"NETWORK.SOURCE>TARGET": {"frames": N, "bytes": N, "dropped": N}}; a recording is flushed, too."""
        return self.ask(op="statistics")

    def close(self):
        self.control.close()
        process.end(self.process, 2.0)


class Port:
    """One host's end: at most one connection at a time, the newest wins."""

    def __init__(self, network, host, listener):
        self.network = network
        self.host = host
        self.listener = listener
        self.connection = None
        self.inbox = bytearray()
        self.outbox = collections.deque()
        self.out_bytes = 0
        self.waiting = False            # for the connection to become writable

    @property
    def name(self):
        return f"{self.network}.{self.host}"


class Fabric:
    """The switch process itself: one thread, one selector."""

    def __init__(self, control, directory, seed):
        self.control = control
        self.directory = directory
        self.random = random.Random(seed)
        self.selector = selectors.DefaultSelector()
        self.ports = {}                 # (network, host) -> Port
        self.macs = {}                  # (network, mac) -> Port
        self.rules = {}                 # (network, source, target) -> rule
        self.counts = collections.defaultdict(lambda: {"frames": 0, "bytes": 0, "dropped": 0})
        self.delayed = []               # heap of (due, sequence, port, frame)
        self.sequence = 0
        self.recorder = None
        self.commands = b""

    # -- control ---------------------------------------------------------------------------------------------------

    def on_control(self):
        data = self.control.recv(65536)
        if not data:
            raise SystemExit(0)
        *lines, self.commands = (self.commands + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            answer = getattr(self, "do_" + message.pop("op"))(**message) or {}
            self.control.sendall(json.dumps(answer).encode() + b"\n")

    def do_port(self, network, host):
        path = os.path.join(self.directory, f"{network}-{host}.sock")
        if (network, host) not in self.ports:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(path)
            listener.listen(4)
            port = Port(network, host, listener)
            self.ports[network, host] = port
            self.selector.register(listener, selectors.EVENT_READ, lambda _: self.on_connect(port))
        return {"path": path}

    def do_rule(self, network, source, target, changes):
        self.rules[network, source, target] = self.rules.get((network, source, target), NO_RULE) | changes

    def do_record(self, path, snap_bytes):
        if self.recorder:
            self.recorder.close()
        self.recorder = Recorder(path, snap_bytes) if path else None

    def do_statistics(self):
        if self.recorder:
            self.recorder.flush()
        return dict(self.counts)

    # -- frames ----------------------------------------------------------------------------------------------------

    def on_connect(self, port):
        connection, _ = port.listener.accept()
        self.disconnect(port)
        connection.setblocking(False)
        port.connection = connection
        self.selector.register(connection, selectors.EVENT_READ, lambda mask: self.on_ready(port, connection, mask))

    def disconnect(self, port):
        if port.connection:
            self.selector.unregister(port.connection)
            port.connection.close()
        port.connection, port.waiting, port.out_bytes = None, False, 0
        port.inbox.clear()
        port.outbox.clear()

    def on_ready(self, port, connection, mask):
        if connection is not port.connection:
            return
        try:
            if mask & selectors.EVENT_READ:
                self.receive(port)
            if mask & selectors.EVENT_WRITE:
                self.transmit(port)
        except (ConnectionError, EOFError):
            self.disconnect(port)

    def receive(self, port):
        data = port.connection.recv(READ_BYTES)
        if not data:
            raise EOFError
        inbox = port.inbox
        inbox += data
        at, touched = 0, set()
        while len(inbox) - at >= 4:
            (length,) = struct.unpack_from(">I", inbox, at)
            if len(inbox) - at - 4 < length:
                break
            touched |= self.forward(port, bytes(inbox[at:at + 4 + length]))
            at += 4 + length
        del inbox[:at]
        for target in touched:
            self.transmit(target)

    def forward(self, port, frame):
        """Pass one frame (with its length in front) on to whom it concerns; returns the ports that got output."""
        touched, fates = set(), []
        destination, source = frame[4:10], frame[10:16]
        if not source[0] & 1:
            self.macs[port.network, source] = port
        known = None if destination[0] & 1 else self.macs.get((port.network, destination))
        if known is port:
            return touched
        for target in [known] if known else [p for p in self.ports.values() if p.network == port.network and p is not port]:
            fate = self.pass_on(port, target, frame, touched)
            if fate:
                fates.append(f"{fate} to {target.host}")
        if self.recorder:
            self.recorder.frame(port.name, time.time_ns(), frame[4:], ", ".join(fates))
        return touched

    def pass_on(self, port, target, frame, touched):
        """Apply the pair's rule; returns why the frame was dropped, or None."""
        rule = self.rules.get((port.network, port.host, target.host), NO_RULE)
        count = self.counts[f"{port.name}>{target.host}"]
        fate = None
        if rule["cut"]:
            fate = "cut"
        elif rule["loss"] and self.random.random() < rule["loss"]:
            fate = "lost"
        elif not target.connection:
            fate = "down"
        elif target.out_bytes > QUEUE_BYTES:
            fate = "full"
        elif rule["delay_s"] or rule["jitter_s"]:
            self.sequence += 1
            due = time.monotonic() + rule["delay_s"] + self.random.random() * rule["jitter_s"]
            heapq.heappush(self.delayed, (due, self.sequence, target, frame))
        else:
            self.enqueue(target, frame)
            touched.add(target)
        count["frames"] += 1
        count["bytes"] += len(frame) - 4
        count["dropped"] += fate is not None
        return fate

    @staticmethod
    def enqueue(target, frame):
        if target.connection:
            target.outbox.append(frame)
            target.out_bytes += len(frame)

    def transmit(self, port):
        """Write what the connection takes; ask the selector for the rest."""
        while port.outbox:
            batch = []
            size = 0
            while port.outbox and size < READ_BYTES:
                batch.append(port.outbox.popleft())
                size += len(batch[-1])
            data = batch[0] if len(batch) == 1 else b"".join(batch)
            try:
                sent = port.connection.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.disconnect(port)
                return
            port.out_bytes -= sent
            if sent < len(data):
                port.outbox.appendleft(data[sent:])
                break
        if bool(port.outbox) != port.waiting:
            port.waiting = bool(port.outbox)
            interest = selectors.EVENT_READ | (selectors.EVENT_WRITE if port.waiting else 0)
            self.selector.modify(port.connection, interest, self.selector.get_key(port.connection).data)

    def release(self):
        """Deliver delayed frames that are due; returns the seconds until the next one, or None."""
        now = time.monotonic()
        touched = set()
        while self.delayed and self.delayed[0][0] <= now:
            _, _, target, frame = heapq.heappop(self.delayed)
            self.enqueue(target, frame)
            touched.add(target)
        for target in touched:
            if target.connection:
                self.transmit(target)
        return max(0.0, self.delayed[0][0] - time.monotonic()) if self.delayed else None

    def serve(self):
        self.selector.register(self.control, selectors.EVENT_READ, lambda _: self.on_control())
        while True:
            for key, mask in self.selector.select(self.release()):
                key.data(mask)


if __name__ == "__main__":
    Fabric(socket.socket(fileno=int(sys.argv[1])), sys.argv[2], int(sys.argv[3])).serve()
