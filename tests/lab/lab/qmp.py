"""A small QMP client: enough to save and load a host, and to talk to any QMP server in a test."""
import json
import socket
import time


class QmpError(Exception):
    """The server answered with an error, or not at all."""


class Qmp:
    def __init__(self, path, timeout_s=30.0):
        deadline = time.monotonic() + timeout_s
        while True:
            self.socket = socket.socket(socket.AF_UNIX)
            try:
                self.socket.connect(str(path))
                break
            except OSError as error:
                self.socket.close()
                if time.monotonic() > deadline:
                    raise QmpError(f"{path}: {error}") from error
                time.sleep(0.02)
        self.socket.settimeout(timeout_s)
        self.stream = self.socket.makefile("r", encoding="utf-8")
        self.events = []
        self.greeting = self._next()
        self.command("qmp_capabilities")

    def _next(self):
        line = self.stream.readline()
        if not line:
            raise QmpError("the QMP server hung up")
        return json.loads(line)

    def command(self, name, **arguments):
        """Execute a command and return its result; events that arrive meanwhile are kept in .events."""
        message = {"execute": name}
        if arguments:
            message["arguments"] = {key.replace("_", "-"): value for key, value in arguments.items()}
        self.socket.sendall(json.dumps(message).encode() + b"\n")
        while True:
            answer = self._next()
            if "event" in answer:
                self.events.append(answer)
            elif "error" in answer:
                raise QmpError(f"{name}: {answer['error'].get('desc')}")
            elif "return" in answer:
                return answer["return"]

    def migration_ended(self, timeout_s=120.0):
        """Wait until the migration that was started has completed; QmpError when it failed."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            state = self.command("query-migrate").get("status")
            if state == "completed":
                return
            if state in ("failed", "cancelled"):
                raise QmpError(f"migration {state}")
            time.sleep(0.005)
        raise QmpError(f"migration not done in {timeout_s} s")

    def close(self):
        self.stream.close()
        self.socket.close()
