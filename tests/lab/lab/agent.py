"""The driver's side of the agent in a host (tests/lab/image/agent.py): scripts, their output and exit codes."""
import json
import signal
import socket
import threading
import time


class HostDied(Exception):
    """The host went away while something was asked of it."""


class Job:
    """A script that runs in a host. `output` grows while it runs; `rc` is None until it has ended."""

    def __init__(self, agent, number, script):
        self.agent = agent
        self.number = number
        self.script = script
        self.output = ""
        self.rc = None
        self.lost = False
        self.changed = agent.changed

    def wait(self, timeout_s):
        """Wait for the end. Returns the exit code; TimeoutError when it takes longer, HostDied when it never comes."""
        with self.changed:
            self.changed.wait_for(lambda: self.rc is not None or self.lost, timeout_s)
        if self.rc is not None:
            return self.rc
        if self.lost:
            raise HostDied(f"the host died while it ran: {self.script.strip()[:200]}")
        raise TimeoutError(f"not done in {timeout_s} s: {self.script.strip()[:200]}\n{self.output[-2000:]}")

    def wait_for_output(self, text, timeout_s):
        """Wait until the output contains text; returns the output. Fails like wait(), also when the script ends first."""
        with self.changed:
            self.changed.wait_for(lambda: text in self.output or self.rc is not None or self.lost, timeout_s)
        if text in self.output:
            return self.output
        if self.lost:
            raise HostDied(f"the host died before {text!r} was printed by: {self.script.strip()[:200]}")
        reason = f"ended with {self.rc}" if self.rc is not None else f"not in {timeout_s} s"
        raise TimeoutError(f"{text!r} not printed ({reason}) by: {self.script.strip()[:200]}\n{self.output[-2000:]}")

    def kill(self, sig=signal.SIGKILL):
        """Signal the script's whole process group."""
        self.agent.send({"op": "signal", "id": self.number, "sig": int(sig)})


class Agent:
    """A connection to one host's agent; a thread reads from it."""

    def __init__(self, path, log):
        self.log = log
        self.changed = threading.Condition()
        self.jobs = {}
        self.next_number = int(time.time() * 1000) % 1000000000 * 1000    # never one from before a snapshot
        self.answered = None
        self.closed = False
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def hello(self, timeout_s):
        """Wait until the agent answers; sets the host's clock. It may not be up yet: ask again and again."""
        deadline = time.monotonic() + timeout_s
        nonce = 0
        while time.monotonic() < deadline and not self.closed:
            nonce += 1
            self.send({"op": "hello", "nonce": nonce, "now": time.time()}, resync=True)
            with self.changed:
                if self.changed.wait_for(lambda n=nonce: self.answered == n or self.closed, 1.0) and not self.closed:
                    return
        raise HostDied("the host's agent does not answer")

    def start(self, script):
        with self.changed:
            self.next_number += 1
            job = self.jobs[self.next_number] = Job(self, self.next_number, script)
        self.log(f"[{job.number % 1000}] $ {script.strip()}")
        self.send({"op": "run", "id": job.number, "script": script})
        return job

    def send(self, message, resync=False):
        try:
            self.socket.sendall((b"\n" if resync else b"") + json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise HostDied(f"the host is gone: {error}") from error

    def _read(self):
        inbox = b""
        while True:
            try:
                data = self.socket.recv(65536)
            except OSError:
                data = b""
            if not data:
                break
            *lines, inbox = (inbox + data).split(b"\n")
            for line in lines:
                try:
                    self._handle(json.loads(line))
                except ValueError:
                    pass                # the rest of a line from before a snapshot
        with self.changed:
            self.closed = True
            for job in self.jobs.values():
                job.lost = job.rc is None
            self.changed.notify_all()

    def _handle(self, message):
        with self.changed:
            job = self.jobs.get(message.get("id"))
            if "hello" in message:
                self.answered = message["hello"]
            elif job and "out" in message:
                job.output += message["out"]
            elif job and "rc" in message:
                job.rc = message["rc"]
                del self.jobs[job.number]
            self.changed.notify_all()
        if job and "out" in message:
            self.log(f"[{job.number % 1000}] " + message["out"].rstrip("\n").replace("\n", f"\n[{job.number % 1000}] "))
        elif job and message.get("rc"):
            self.log(f"[{job.number % 1000}] exit code {message['rc']}")

    def close(self):
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.thread.join(5.0)
        self.socket.close()
