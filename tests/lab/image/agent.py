"""The agent in a lab host: runs what the driver asks for over a virtio-serial port.

One JSON object per line, both ways. From the driver:
  {"op": "hello", "nonce": N, "now": T}   answer {"hello": N}; set the clock to T
  {"op": "run", "id": I, "script": S}     start S with bash; answer {"id": I, "out": TEXT}... {"id": I, "rc": RC}
  {"op": "signal", "id": I, "sig": N}     signal the script's process group
The port is the only thing that it waits on besides its children's output, so it goes on
where it was when a snapshot of the host is loaded.
"""
import errno
import json
import os
import select
import signal
import subprocess
import sys
import time

PORT_NAME = "lab.agent"
CHUNK = 65536


def port_path():
    """The device node of our port: without udev, by the name that sysfs gives it."""
    base = "/sys/class/virtio-ports"
    while True:
        for entry in os.listdir(base) if os.path.isdir(base) else []:
            try:
                with open(f"{base}/{entry}/name", encoding="ascii") as name:
                    if name.read().strip() == PORT_NAME:
                        return "/dev/" + entry
            except OSError:
                pass
        time.sleep(0.1)


class Agent:
    def __init__(self, fd):
        self.fd = fd
        self.inbox = b""
        self.outbox = b""
        self.jobs = {}          # id -> (process, read end of its output)

    def send(self, message):
        self.outbox += json.dumps(message).encode() + b"\n"

    def flush(self):
        while self.outbox:
            try:
                self.outbox = self.outbox[os.write(self.fd, self.outbox[:CHUNK]):]
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EPIPE, errno.EIO):
                    return
                raise

    def receive(self):
        try:
            data = os.read(self.fd, CHUNK)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EPIPE):
                raise
            return
        self.inbox += data
        *lines, self.inbox = self.inbox.split(b"\n")
        for line in lines:
            try:
                message = json.loads(line)
            except ValueError:
                continue        # half a line from before a snapshot
            if isinstance(message, dict):
                self.handle(message)

    def handle(self, message):
        if message["op"] == "hello":
            self.outbox = b""   # whoever asked before is gone
            time.clock_settime(time.CLOCK_REALTIME, message["now"])
            self.send({"hello": message["nonce"]})
        elif message["op"] == "run":
            self.start(message["id"], message["script"])
        elif message["op"] == "signal" and message["id"] in self.jobs:
            try:
                os.killpg(self.jobs[message["id"]][0].pid, message["sig"])
            except ProcessLookupError:
                pass

    def start(self, job, script):
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        process = subprocess.Popen(["bash", "-c", script], stdin=subprocess.DEVNULL, stdout=write_end,
                                   stderr=write_end, start_new_session=True, cwd="/root")
        os.close(write_end)
        self.jobs[job] = (process, read_end)

    def drain(self, job):
        """Forward what the job has written; False once its output has ended."""
        try:
            data = os.read(self.jobs[job][1], CHUNK)
        except BlockingIOError:
            return True
        if data:
            self.send({"id": job, "out": data.decode("utf-8", "replace")})
        return bool(data)

    def reap(self):
        """Report the jobs that have exited, whoever else still holds their output."""
        for job, (process, read_end) in list(self.jobs.items()):
            if process.poll() is None:
                continue
            while select.select([read_end], [], [], 0)[0] and self.drain(job):
                pass
            os.close(read_end)
            del self.jobs[job]
            self.send({"id": job, "rc": process.returncode})

    def serve(self):
        wake, wake_write = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        ended = set()           # outputs at end of file whose job has not exited yet
        while True:
            poll = select.poll()
            poll.register(self.fd, select.POLLIN | (select.POLLOUT if self.outbox else 0))
            poll.register(wake, select.POLLIN)
            outputs = {read_end: job for job, (_, read_end) in self.jobs.items() if read_end not in ended}
            for read_end in outputs:
                poll.register(read_end, select.POLLIN)
            events = dict(poll.poll(1000))
            port = events.get(self.fd, 0)
            if port & select.POLLIN:
                self.receive()
            elif port & select.POLLHUP:
                time.sleep(0.02)        # no driver is connected
            if wake in events:
                os.read(wake, CHUNK)
            for read_end, job in outputs.items():
                if read_end in events and not self.drain(job):
                    ended.add(read_end)
            self.reap()
            ended &= {read_end for _, read_end in self.jobs.values()}
            if not port & select.POLLHUP:
                self.flush()


if __name__ == "__main__":
    port = os.open(port_path(), os.O_RDWR | os.O_NONBLOCK)
    print("lab: agent ready", file=open("/dev/console", "w", encoding="ascii"))
    sys.exit(Agent(port).serve())
