"""A client at native speed: a network namespace of this machine, its tap plugged into the lab's switch.

It stands for the people who use what runs in the hosts: it is never emulated, so its clocks and its load are real.
Scripts run in it as in a Host (run, background), with the files of this machine.
"""
import os
import signal
import subprocess
import sys
import threading

from . import process
from .agent import Agent, Job
from .host import Host

ROLE, ADDRESS = "client", "10.10.0.3"
PLUG = os.path.join(os.path.dirname(os.path.abspath(__file__)), "plug.py")


class LocalAgent(Agent):
    """Runs scripts in the namespaces of a process; the interface is that of a host's agent."""

    def __init__(self, pid, rootless, log, namespaces=()):      # pylint: disable=super-init-not-called
        self.log = log
        self.changed = threading.Condition()
        self.next_number = 0
        self.running = {}
        self.enter = ["nsenter", f"--target={pid}", "--net", *namespaces]
        if rootless:
            self.enter += ["--user", "--preserve-credentials"]

    def start(self, script):
        self.next_number += 1
        job = Job(self, self.next_number, script)
        self.log(f"[{job.number}] $ {script.strip()}")
        child = process.spawn([*self.enter, "bash", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.running[job.number] = child
        threading.Thread(target=self._follow, args=(job, child), daemon=True).start()
        return job

    def _follow(self, job, child):
        for line in child.stdout:
            text = line.decode("utf-8", "replace")
            with self.changed:
                job.output += text
                self.changed.notify_all()
            self.log(f"[{job.number}] " + text.rstrip("\n"))
        child.wait()
        with self.changed:
            job.rc = child.returncode
            self.changed.notify_all()

    def send(self, message, resync=False):
        try:
            os.killpg(self.running[message["id"]].pid, message["sig"])
        except ProcessLookupError:
            pass

    def close(self):
        for number, child in self.running.items():
            if child.poll() is None:
                self.send({"id": number, "sig": signal.SIGKILL})    # it may end by itself just now


class Client:
    """The native client. Made by Lab.client()."""

    def __init__(self, lab):
        self.lab = lab
        self.role = ROLE
        self.lan_address = ADDRESS
        self.directory = lab.directory / ROLE
        self.directory.mkdir()
        self.result = self.directory
        self.process = self.agent = None

    def __str__(self):
        return self.role

    def start(self):
        """Make the namespace and plug it in; PermissionError where this user may not."""
        port = self.lab.switch.port("lan", self.role)
        rootless = os.geteuid() != 0
        command = ["unshare", "--net", *(["--user", "--map-root-user"] if rootless else []),
                   sys.executable, PLUG, port, f"{ADDRESS}/16", "52:54:00:0a:02:03"]
        with open(self.directory / "plug.log", "ab") as log:
            self.process = process.spawn(command, stdout=subprocess.PIPE, stderr=log)
        if self.process.stdout.readline() != b"up\n":
            process.end(self.process, 1.0)
            raise PermissionError((self.directory / "plug.log").read_text()[-500:])
        self.lab.note_process(self.process.pid, "client")
        self.agent = LocalAgent(self.process.pid, rootless, lambda text: self.lab.log_host(self, text))

    def file(self, path):
        """The name that a file of the tests, or of self.result, has for scripts here: its own."""
        return str(path)

    run = Host.run
    background = Host.background

    def close(self):
        if self.agent:
            self.agent.close()
        if self.process:
            process.end(self.process)
        self.process = self.agent = None
