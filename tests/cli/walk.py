#!/usr/bin/env python3
"""A user's walk through the command: VMs that run, stand by and wait, and what is seen of them.

walk.py REPRISE [GUESTS] [NAME...]: the command, the folder of the test guests (default: beside it), some of the walks. Needs /dev/kvm;
each walk has a folder of its own, and the processes that it starts end with it.
"""
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

DONE, FAILED, USAGE, NO_VM, HOST, REFUSED, DAMAGED, INTERRUPTED = 0, 1, 2, 3, 4, 5, 6, 130
WAIT_S = 30


class Wrong(Exception):
    """What is not as it should be."""


def check(true, what):
    if not true:
        raise Wrong(what)


class Skip(Exception):
    """What is missing here."""


class Monitor:
    """A process that runs a VM or stands by, and what it says."""

    def __init__(self, walk, words, env):
        self.said = walk.folder / f"said-{len(walk.monitors)}"
        self.at_once = time.monotonic()
        with open(self.said, "wb") as out:
            self.process = subprocess.Popen([walk.reprise, *words], stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env, cwd=walk.folder)

    def text(self):
        return self.said.read_text(errors="replace")

    def end(self, number=signal.SIGKILL):
        """Its exit code, after a signal (0: none) was sent."""
        if number and self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise Wrong(f"does not end: {self.text()}") from None


class Walk:
    """A folder, a runtime directory in it, and monitors."""

    def __init__(self, reprise, guests, folder):
        self.reprise, self.guests, self.folder = reprise, guests, folder
        self.monitors = []
        self.env = {**{k: v for k, v in os.environ.items() if not k.startswith("REPRISE_")}, "REPRISE_RUNTIME_DIR": str(folder / "rt")}
        for name in ("rt", "rt2", "lease"):
            (folder / name).mkdir()

    def there(self):
        """The environment of the pair's other side."""
        return {**self.env, "REPRISE_RUNTIME_DIR": str(self.folder / "rt2")}

    def start(self, *words, env=None):
        self.monitors.append(Monitor(self, words, env or self.env))
        return self.monitors[-1]

    def boot(self, name, *words, guest="idle", append=None, env=None, wait=True, memory="16M"):
        vm = self.start("run", "--name", name, "--memory", memory, "--kernel", str(self.guests / f"{guest}.elf"), "--rng", "off", "--balloon", "off",
                        *(["--append", append] if append else []), *words, env=env)
        if wait:
            self.until(lambda: self.status(name, env).get("status") == "running", f"{name} runs", vm)
        return vm

    def stand_by(self, name, uri, *words, wait=True):
        standby = self.start("standby", "--name", name, "--listen", uri, "--lease", f"file:{self.folder}/lease", *words, env=self.there())
        if wait:
            self.until(lambda: self.status(name, self.there()).get("standby"), "a standby waits", standby)
        return standby

    def ask(self, *words, env=None, code=DONE):
        """What the command says, both streams, when it ends with `code`."""
        done = subprocess.run([self.reprise, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              timeout=60, check=False, env=env or self.env, cwd=self.folder)
        check(code is None or done.returncode == code, f"{' '.join(words)}: exit code {done.returncode}, not {code}: {done.stdout}")
        return done.stdout

    def status(self, name, env=None):
        text = self.ask("status", name, "--json", env=env, code=None)
        return json.loads(text) if text.startswith("{") else {}

    def until(self, true, what, monitor=None):
        end = time.monotonic() + WAIT_S
        while not true():
            check(time.monotonic() < end, f"not in {WAIT_S} s: {what}{': ' + monitor.text() if monitor else ''}")
            check(not monitor or monitor.process.poll() is None, f"{what}: it has ended: {monitor.text() if monitor else ''}")
            time.sleep(0.02)

    def close(self):
        for monitor in self.monitors:
            if monitor.process.poll() is None:
                monitor.process.kill()
                monitor.process.wait()


def must_say(text, *patterns):
    for pattern in patterns:
        check(re.search(pattern, text, re.M), f"does not say /{pattern}/: {text}")


def must_not_say(text, *patterns):
    for pattern in patterns:
        check(not re.search(pattern, text, re.M), f"says /{pattern}/: {text}")


def walk_foreign_disk(w):
    """A standby does not copy over a file that is somebody's"""
    disk = w.folder / "disk"
    disk.write_bytes(b"somebody's" * 100)
    standby = w.stand_by("vm", f"unix:{w.folder}/link", "--disk", str(disk), wait=False)
    check(standby.end(0) == REFUSED, f"exit code {standby.process.returncode}: {standby.text()}")
    must_say(standby.text(), f"disk {disk}: holds data, .*--disk F,overwrite")
    check(disk.read_bytes() == b"somebody's" * 100, "it was changed")
    w.stand_by("vm", f"unix:{w.folder}/link", "--disk", f"{disk},overwrite")


def walk_one_place(w):
    """A refusal names the VM once"""
    vm = w.boot("vm", "--stop-timeout", "10m")
    w.boot("early", "--paused", wait=False)
    w.until(lambda: w.status("early").get("status") == "prelaunch", "a VM that was not started")
    for words in (("unprotect", "vm"), ("failover", "vm"), ("protect", "vm", "unix:/nowhere/s"), ("checkpoint", "early", f"file:{w.folder}/image")):
        said = w.ask(*words, code=None)
        check(re.match(rf'reprise {words[0]}: VM "{words[1]}": ', said) and said.count("VM \"") == 1, said)
    w.ask("pause", "vm")
    must_say(w.ask("powerdown", "vm", code=REFUSED), '^reprise powerdown: VM "vm": it is paused and cannot notice')
    must_say(w.ask("explain", "vm"), "  paused$")
    must_say(w.ask("checkpoint", "vm", "file:/nowhere/image", code=USAGE), "/nowhere/image.partial: its folder is not there; make it or give another path")
    check(vm.end(signal.SIGTERM) == DONE, "who stands still is asked to power off, which takes until --stop-timeout")


def walk_many_clients(w):
    """Idle clients of --qmp leave the command its place"""
    w.boot("vm", "--qmp", str(w.folder / "qmp"))
    idle = [socket.socket(socket.AF_UNIX) for _ in range(40)]
    said = []
    for client in idle:
        client.settimeout(WAIT_S)
        client.connect(str(w.folder / "qmp"))
        said.append(client.recv(4096))
    check(sum(b'"QMP"' in text for text in said) == 24 and b"QMP clients are connected" in said[-1], f"{said[-1]}")
    must_say(w.ask("status", "vm"), "^vm: running")
    must_say(w.ask("status"), "^vm +running")
    said = w.ask("status", str(w.folder / "qmp"), code=REFUSED)
    must_say(said, "no place for one more")
    for client in idle:
        client.close()
    must_say(w.ask("status", str(w.folder / "qmp")), "^vm: running")


TWO_DIRECTORIES = """
mount -t tmpfs none /run && mkdir -p /run/login || exit 77
run() { reprise run --memory 16M --kernel "$GUESTS/idle.elf" "$@" & }
up() { for i in $(seq 300); do reprise status $1 > /dev/null 2>&1 && return; sleep 0.05; done; echo "$1 is not found"; }
unset XDG_RUNTIME_DIR
run --name unit; run --name both; up unit; up both
reprise status nobody
export XDG_RUNTIME_DIR=/run/login
run --name login; run --name both; up login
for i in $(seq 300); do [ -e /run/login/reprise/both.sock ] && break; sleep 0.05; done
reprise status; reprise status unit; reprise status nobody; echo "exit code $?"
REPRISE_RUNTIME_DIR=/run/login/reprise reprise status unit; echo "exit code $?"
reprise quit unit; reprise quit both; reprise quit login; reprise quit both; reprise top --rounds 1
"""


def walk_two_directories(w):
    """A unit's VM is found from a login, and the places looked in are said"""
    done = subprocess.run(["unshare", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", TWO_DIRECTORIES], text=True, check=False,
                          env={**w.env, "REPRISE_RUNTIME_DIR": "", "PATH": f"{w.reprise.parent}:{os.environ['PATH']}", "GUESTS": str(w.guests)},
                          cwd=w.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
    if done.returncode == 77:
        raise Skip("no /run of its own can be made here")
    must_say(done.stdout, r'no VM "nobody" is running \(looked in /run/reprise and /run/user/0/reprise\)', r"^both +running(.*\n)both +running(.*\n)"
             r"login +running(.*\n)unit +running", "^unit: running", r'no VM "nobody" is running \(looked in /run/login/reprise and /run/reprise\);.*\nexit '
             r"code 3", r'no VM "unit" is running \(looked in /run/login/reprise\);.*\nexit code 3', r"  0 VMs$")
    must_not_say(done.stdout, "is not found")


TTL, HEARTBEAT = "2s", "500ms"      # a machine that does other things stalls for long


def protect(w, name, uri, *words, env=None):
    w.ask("protect", name, uri, "--lease", f"file:{w.folder}/lease", "--lease-ttl", TTL, "--heartbeat", HEARTBEAT, *words, env=env)


def protected(w, name="vm", uri=None, env=None, words=()):
    """A VM and its standby, protected under a lease in the folder."""
    vm = w.boot(name, env=env)
    uri = uri or f"unix:{w.folder}/link"
    standby = w.stand_by(name, uri, "--lease-ttl", TTL)
    protect(w, name, uri, *words, env=env)
    return vm, standby


def once(text, pattern):
    found = re.findall(pattern, text, re.M)
    check(len(found) == 1, f"says /{pattern}/ {len(found)} times: {text}")


def walk_lines(w):
    """Who reads standard error sees what happens to a pair, once, with its reason"""
    vm, standby = protected(w)
    w.ask("unprotect", "vm")
    protect(w, "vm", f"unix:{w.folder}/link")
    vm.process.send_signal(signal.SIGSTOP)
    w.until(lambda: w.status("vm", w.there()).get("status") == "running", "the standby has taken over", standby)
    vm.process.send_signal(signal.SIGCONT)
    check(vm.end(0) == REFUSED, f"the old primary: exit code {vm.process.returncode}: {vm.text()}")
    check(standby.end(signal.SIGINT) == INTERRUPTED, f"the new one: exit code {standby.process.returncode}: {standby.text()}")
    vm, standby = vm.text(), standby.text()
    check(len(re.findall(r'^reprise: notice: VM "vm": PROTECTED at epoch \d+: protected from here on ', vm, re.M)) == 2, vm)
    once(vm, r'^reprise: notice: VM "vm": UNPROTECTED at epoch \d+: protection ended \(asked true\)$')
    once(vm, r'^reprise: warn: VM "vm": LEASE_LOST: the lease was lost, outputs were shut \(lease file:.*\): .*\w')
    once(vm, r'^reprise run: VM "vm" goes on elsewhere')
    check(len(re.findall(r'^reprise: notice: VM "vm": STANDBY_READY at epoch \d+ ', standby, re.M)) == 2, standby)
    once(standby, r'^reprise: notice: VM "vm": PRIMARY_LEFT at epoch \d+: the primary parted from its standby \(how stopped\)$')
    once(standby, r'^reprise: notice: VM "vm": STANDBY_FORGOT: the standby forgot what it held: the primary ended the protection$')
    once(standby, r'^reprise: warn: VM "vm": PRIMARY_LOST at epoch \d+: the standby lost its primary \(how lost\): .*\w')
    once(standby, r'^reprise: notice: VM "vm": TAKEN_OVER at epoch \d+: taken over from a primary that was lost \(term \d+, ')
    must_not_say(vm + standby, "LEASE_HELD", "JOB_STATUS")

    quiet = w.start("standby", "--name", "quiet", "--listen", f"unix:{w.folder}/quiet", "--lease", "none", env={**w.env, "REPRISE_LOG": "warn"})
    w.until(lambda: w.status("quiet").get("standby"), "a standby waits", quiet)
    w.boot("quiet", env=w.there())
    w.ask("protect", "quiet", f"unix:{w.folder}/quiet", "--lease", "none", "--heartbeat", HEARTBEAT, env=w.there())
    check(not quiet.text(), quiet.text())


class Qmp:
    """A QMP client, as a tool made for QEMU is one."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(WAIT_S)
        self.socket.connect(str(path))
        self.file = self.socket.makefile("rw")
        self.file.readline()
        self.ask("qmp_capabilities")

    def ask(self, command, **arguments):
        """What is returned, or the error's sentence."""
        self.file.write(json.dumps({"execute": command, "arguments": {k.replace("_", "-"): v for k, v in arguments.items()}}))
        self.file.flush()
        answer = json.loads(self.file.readline())
        while "event" in answer:
            answer = json.loads(self.file.readline())
        return answer["return"] if "return" in answer else answer["error"]["desc"]


def walk_standby_qmp(w):
    """A standby that waits answers what it can, and says why it cannot"""
    w.stand_by("vm", f"unix:{w.folder}/link")
    qmp = Qmp(w.folder / "rt2" / "vm.sock")
    check(qmp.ask("query-status") == {"status": "inmigrate", "running": False, "singlestep": False}, qmp.ask("query-status"))
    must_say(qmp.ask("query-uuid"), "^query-uuid: this is a standby that waits: ")
    check(qmp.ask("query-name") == {"name": "vm"} and qmp.ask("query-kvm")["enabled"] and qmp.ask("query-version")["package"], "who it is")
    check(qmp.ask("query-jobs") == [] and qmp.ask("query-commands") and qmp.ask("query-events") and qmp.ask("query-history") == [], "what there is")
    for command in ("query-block", "query-blockstats", "query-cpus-fast", "query-memory-size-summary", "query-balloon", "query-protect", "stop", "cont",
                    "system_reset", "system_powerdown", "unprotect"):
        check(qmp.ask(command) == f"{command}: the VM does not run here: this is its standby, which waits", f"{command}: {qmp.ask(command)}")
    must_say(qmp.ask("failover"), "^the VM does not run here: .* one that is behind does with --force")
    w.boot("vm")
    protect(w, "vm", f"unix:{w.folder}/link")
    uuid = Qmp(w.folder / "rt" / "vm.sock").ask("query-uuid")
    check(qmp.ask("query-uuid") == uuid and qmp.ask("query-vm")["uuid"] == uuid["UUID"], f"{qmp.ask('query-uuid')}, not {uuid}")
    check(qmp.ask("query-standby")["primary"], "its primary is not named")
    w.ask("unprotect", "vm")
    w.until(lambda: qmp.ask("query-standby")["state"] == "waiting", "the standby has forgotten the VM")
    must_say(qmp.ask("query-uuid"), "^query-uuid: this is a standby that waits: ")
    check(not qmp.ask("query-standby")["primary"] and not qmp.ask("query-standby")["last-primary"], f"a primary that is gone: {qmp.ask('query-standby')}")
    answer = Qmp(w.folder / "rt" / "vm.sock").ask("protect", uri=f"unix:{w.folder}/nowhere", streams=0, heartbeat_ms=0, patient=True)
    check(answer == {}, answer)
    goal = w.status("vm")["protect"]["goal"]
    check(goal["streams"] == 1 and goal["heartbeat-ms"] == 20, f"0 is not as if it were not given: {goal}")


def walk_status_of_a_pair(w):
    """`status` says by whom a VM is protected, how, and how well, and what a standby waits for"""
    uri = f"unix:{w.folder}/link"
    vm, standby = protected(w, words=("--epoch", "40ms", "--latency", "8ms", "--bandwidth", "100M", "--cpu", "70", "--on-loss", "run"))
    w.until(lambda: w.status("vm")["protect"]["committed"] > 2, "some epochs", vm)
    goal = w.status("vm")["protect"]["goal"]
    check(goal == {"epoch-us": 40000, "latency-us": 8000, "bandwidth": 100 << 20, "cpu": 70, "streams": 1, "heartbeat-ms": 500, "capture": "auto",
                   "on-loss": "run"}, goal)
    must_say(w.ask("status"), "^NAME +STATUS .* PROTECTED$", f"^vm +running .*  by {uri}$")
    must_say(w.ask("status", env=w.there()), "^vm +inmigrate .*  standby: ready, primary ")
    said = w.ask("status", "vm")
    must_say(said, rf"^  protection +protected by {uri}, for \d", r"^  goal +epochs of 40.0 ms, outputs wait 8.0 ms, at most 100.0 MiB/s, at most 70 % of a core; "
             r"heartbeats every 500 ms, 1 stream, capture auto; without a standby the VM runs$", r"^  lease .* held, term 1, \d+ ms of 2000 ms left",
             r"^  outputs +held until committed; waited p50 .* p99 .* longest ", r"^  epochs +\d+ cut, \d+ committed \(\d+ behind, \d+ ms ago\), \d+ dirty pages/s$",
             r"^  pause +p50 .* p99 .* longest ", r"^  link +unix, 1 stream, ", r"^  pages .* lz4 \d+ \(\d+ KiB, [\d.]+ to 1\), .*together [\d.]+ to 1$")
    must_not_say(said, "^  sync ", "^  losses ")
    check("by " + uri in w.ask("top", "--rounds", "1"), "top")

    standby.end()
    w.until(lambda: w.status("vm")["protect"]["state"] == "unprotected", "the standby is missed", vm)
    must_say(w.ask("status"), f"^vm +running .*  unprotected, looking for {uri}$")
    said = w.ask("status", "vm")
    must_say(said, f"^  protection +unprotected, looking for {uri}, for ", "^  losses +1, the last: ", "until the standby was lost$")
    must_not_say(said, "protected by", "^  link ", "^  pressure ")
    check(w.status("vm")["protect"]["connected"] is False, "it is connected to nobody")
    w.ask("unprotect", "vm")
    must_say(w.ask("status"), "^vm +running .*  -$")
    said = w.ask("status", "vm")
    must_say(said, "^  protection +off$")
    must_not_say(said, uri, "^  epochs ", "^  goal ")
    check("standby" not in w.status("vm")["protect"], "a standby is named")

    standby = w.stand_by("vm", uri, "--lease-ttl", TTL)
    must_say(w.ask("status", env=w.there()), rf"^vm +inmigrate .*  standby: waiting for a primary at {uri}$")
    protect(w, "vm", uri)
    w.ask("unprotect", "vm")
    w.until(lambda: w.status("vm", w.there())["standby"]["state"] == "waiting", "the VM is forgotten", standby)
    must_say(w.ask("status", "vm", env=w.there()), rf"^  standby +waiting for a primary at {uri}, for ")
    must_not_say(w.ask("status", "vm", env=w.there()), "primary unix")
    protect(w, "vm", uri)
    vm.process.send_signal(signal.SIGSTOP)
    w.until(lambda: w.status("vm", w.there()).get("standby", {}).get("state") != "ready", "the standby misses its primary", standby)
    must_say(w.ask("status", env=w.there()), r"standby: (alone: has lost its primary \(unix socket\), waiting for the lease|taking over)$|running .* -$")


def walk_progress(w):
    """A sync says how far it is"""
    w.boot("vm", guest="dirtier", append="ws=160M rate=1 fill=random", memory="256M")
    standby = w.stand_by("vm", f"unix:{w.folder}/link")
    qmp = Qmp(w.folder / "rt" / "vm.sock")
    w.until(lambda: int(re.search(r"^Rss:\s+(\d+)", pathlib.Path(f"/proc/{w.monitors[0].process.pid}/smaps_rollup").read_text(), re.M)[1]) > 160 << 10,
            "the guest has filled its memory")
    protect = w.start("protect", "vm", f"unix:{w.folder}/link", "--lease", f"file:{w.folder}/lease", "--lease-ttl", "20s", "--heartbeat", "10s")
    w.until(lambda: qmp.ask("query-protect").get("sync", {}).get("percent"), "the sync has begun", protect)
    standby.process.send_signal(signal.SIGSTOP)
    time.sleep(0.3)
    sync = w.status("vm")["protect"]["sync"]
    check(0 < sync["percent"] < 100 and sync["bytes-per-second"] > 0 and sync["eta-ms"] > 0 and sync["to-look-at-bytes"] >= 100 << 20, sync)
    must_say(w.ask("status", "vm"), f"^  protection +syncing to unix:{w.folder}/link, \\d+ %, for ", r"^  sync +full: [\d.]+ %, \d+ of \d+ MiB of memory; "
             r"[\d.]+ MiB/s, [\d.]+ s to go$")
    must_say(w.ask("status"), f"^vm +running .*  syncing to unix:{w.folder}/link, \\d+ %$")
    must_say(w.ask("top", "--rounds", "1"), r"^  sync +full: [\d.]+ %")
    standby.process.send_signal(signal.SIGCONT)
    check(protect.end(0) == DONE, protect.text())
    check("percent" not in w.status("vm")["protect"]["sync"], "it is over")


def stop_in_a_checkpoint(w, vm, image, partial):
    """The command that asked for it; the VM's process stands still while it writes."""
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        job = w.start("checkpoint", "vm", f"file:{image}")
        while job.process.poll() is None:
            if partial.exists():
                vm.process.send_signal(signal.SIGSTOP)
                time.sleep(0.05)
                if partial.exists():
                    return job
                vm.process.send_signal(signal.SIGCONT)
        check(job.end(0) == DONE, job.text())
    raise Wrong(f"not in {WAIT_S} s: a checkpoint that is seen while it is written")


def walk_a_button_and_a_switchover(w):
    """Who was asked to end does not stay as a standby"""
    uri = f"unix:{w.folder}/link"
    vm = w.boot("vm", "--then", "standby", "--listen", f"unix:{w.folder}/back", "--lease", f"file:{w.folder}/lease", "--lease-ttl", TTL,
                "--stop-timeout", "10m")
    w.stand_by("vm", uri, "--lease-ttl", TTL)
    protect(w, "vm", uri)
    vm.process.send_signal(signal.SIGTERM)
    w.until(lambda: "POWERDOWN" in w.ask("history", "vm"), "the guest is asked to power off, and does not care", vm)
    w.ask("failover", "vm")
    check(vm.end(0) == DONE, vm.text())
    check(w.status("vm", w.there()).get("status") == "running", "the VM does not run on the other side")


def walk_one_checkpoint_at_a_place(w):
    """Two VMs do not write one checkpoint, and one that is cancelled is not there"""
    image, partial = w.folder / "image", w.folder / "image.partial"
    vm = w.boot("vm", guest="dirtier", append="ws=160M rate=1 fill=random", memory="256M")
    w.boot("second")
    w.until(lambda: int(re.search(r"^Rss:\s+(\d+)", pathlib.Path(f"/proc/{vm.process.pid}/smaps_rollup").read_text(), re.M)[1]) > 160 << 10,
            "the guest has filled its memory")
    job = stop_in_a_checkpoint(w, vm, image, partial)
    job.process.send_signal(signal.SIGTERM)
    vm.process.send_signal(signal.SIGCONT)
    check(job.end(0) == 130 and 'VM "vm": cancelled' in job.text(), f"exit code {job.process.returncode}: {job.text()}")
    check(not partial.exists() and not image.exists(), "a checkpoint that was cancelled is there")
    job = stop_in_a_checkpoint(w, vm, image, partial)
    must_say(w.ask("checkpoint", "second", f"file:{image}", code=REFUSED), f"checkpoint: {partial}: another checkpoint is being written there; wait")
    vm.process.send_signal(signal.SIGCONT)
    check(job.end(0) == DONE, job.text())
    check(image.stat().st_size > 160 << 20 and not partial.exists(), f"{image.stat().st_size} bytes")
    w.ask("inspect", str(image))
    w.ask("checkpoint", "second", f"file:{image}")
    check(image.stat().st_size < 160 << 20 and image.stat().st_mode & 0o777 == 0o600, f"{image.stat()}")


def walk_foreign_partial(w):
    """A checkpoint is not written over what no checkpoint left"""
    image, partial, disk = w.folder / "image", w.folder / "image.partial", w.folder / "disk"
    disk.write_bytes(b"a disk's" * 1024)
    vm = w.boot("vm", "--disk", str(disk))
    os.mkfifo(partial)
    must_say(w.ask("checkpoint", "vm", f"file:{image}", code=USAGE), f"{partial}: is there and is no regular file")
    partial.unlink()
    os.link(disk, partial)
    must_say(w.ask("checkpoint", "vm", f"file:{image}", code=REFUSED), f"{partial} is the VM's disk 0")
    partial.unlink()
    foreign = w.folder / "foreign"
    foreign.write_bytes(b"somebody's")
    os.link(foreign, partial)
    must_say(w.ask("checkpoint", "vm", f"file:{image}", code=USAGE), f"{partial}: is there and has other names")
    partial.unlink()
    check(disk.read_bytes() == b"a disk's" * 1024 and foreign.read_bytes() == b"somebody's" and not image.exists(), "something was written over")
    for target in ("/dev/null", foreign, "nowhere"):
        image.symlink_to(target)
        must_say(w.ask("checkpoint", "vm", f"file:{image}", code=USAGE), f"{image} is there and is a symbolic link, .*; give another path")
        check(os.readlink(image) == str(target), f"{image} was replaced")
        image.unlink()
    partial.write_bytes(b"half a checkpoint")
    partial.chmod(0o666)
    w.ask("checkpoint", "vm", f"file:{image}")
    check(image.stat().st_mode & 0o777 == 0o600 and not partial.exists(), f"mode {image.stat().st_mode:o}")
    check(vm.end(signal.SIGTERM) == DONE, vm.text())


def leave_a_lease(w):
    """The lease's holder dies; whoever wants it next would wait for a minute."""
    holder = w.boot("vm", "--lease", f"file:{w.folder}/lease", "--lease-ttl", "60s")
    holder.end(signal.SIGKILL)
    (w.folder / "rt" / "vm.sock").unlink()


def walk_signals_while_waiting(w):
    """A start that waits for a lease ends with a signal"""
    leave_a_lease(w)
    for number, code in ((signal.SIGINT, INTERRUPTED), (signal.SIGTERM, DONE)):
        vm = w.boot("vm", "--lease", f"file:{w.folder}/lease", "--lease-ttl", "60s", wait=False)
        w.until((w.folder / "rt" / "vm.sock").exists, "the start has begun", vm)
        vm.process.send_signal(signal.SIGHUP)
        time.sleep(0.2)
        check(vm.process.poll() is None, f"a hangup ends it: {vm.text()}")
        check(vm.end(number) == code, f"{number.name}: exit code {vm.process.returncode}, not {code}: {vm.text()}")
        check(not (w.folder / "rt" / "vm.sock").exists(), f"{number.name}: it leaves its socket behind")
        check(not vm.text(), f"{number.name}: it says {vm.text()}")


def walk_protection_while_waiting(w):
    """Protection that waits for a lease ends when it is asked to"""
    leave_a_lease(w)
    vm = w.boot("vm")
    for end in (lambda: job.end(signal.SIGINT) == INTERRUPTED, lambda: not w.ask("unprotect", "vm")):
        job = w.start("protect", "vm", f"unix:{w.folder}/link", "--lease", f"file:{w.folder}/lease", "--lease-ttl", "60s")
        w.until(lambda: w.status("vm")["protect"]["state"] == "leasing", "it waits for the lease")
        check(end(), f"exit code {job.process.returncode}: {job.text()}")
        w.until(lambda: w.status("vm")["protect"]["state"] == "off", "the protection has ended")
    w.start("protect", "vm", f"unix:{w.folder}/link", "--lease", f"file:{w.folder}/lease", "--lease-ttl", "60s")
    w.until(lambda: w.status("vm")["protect"]["state"] == "leasing", "it waits for the lease")
    check(vm.end(signal.SIGINT) == INTERRUPTED, f"exit code {vm.process.returncode}: {vm.text()}")
    must_not_say(vm.text(), "PROTECT_LOST")


def walk_a_protection_that_failed(w):
    """An attempt to protect a VM that failed leaves its reason behind, and nothing else"""
    vm = w.boot("vm")
    qmp = Qmp(w.folder / "rt" / "vm.sock")
    answer = qmp.ask("protect", uri=f"unix:{w.folder}/nowhere", lease=f"file:{w.folder}/lease", on_loss="pause")
    check(answer == {}, answer)
    w.until(lambda: qmp.ask("query-protect")["state"] == "off", "the attempt is over", vm)
    must_say(qmp.ask("query-protect")["reason"], "nowhere")
    w.until(lambda: w.status("vm")["status"] == "running", "the VM goes on without a standby that it never had", vm)
    w.ask("checkpoint", "vm", f"file:{w.folder}/image")
    vm.process.send_signal(signal.SIGSTOP)
    time.sleep(3)
    vm.process.send_signal(signal.SIGCONT)
    w.until(lambda: "  LEASE_REGAINED " in w.ask("history", "vm"), "nobody has had the lease", vm)
    w.until(lambda: w.status("vm")["status"] == "running", "it goes on", vm)
    check(w.status("vm")["protect"]["state"] == "off", f"it is protected unasked: {w.status('vm')['protect']}")
    w.ask("unprotect", "vm")
    check("reason" not in w.status("vm")["protect"], "its reason stays")


def walk_pidfile(w):
    """A VM's --pidfile goes with it, however it ends, and another's stays"""
    pidfile = w.folder / "pid"
    vm = w.boot("vm", "--pidfile", str(pidfile), append="run=1s end=reset")
    check(pidfile.read_text() == f"{vm.process.pid}\n", f"{pidfile.read_text()}, not {vm.process.pid}")
    w.ask("checkpoint", "vm", f"file:{w.folder}/image")
    w.ask("run", "--name", "vm", "--kernel", str(w.guests / "idle.elf"), "--pidfile", str(pidfile), code=REFUSED)
    check(pidfile.exists(), "a refused start removes another's")
    w.ask("quit", "vm")
    check(vm.end(0) == DONE and not pidfile.exists(), "it is there after the VM was quit")
    vm = w.start("restore", f"file:{w.folder}/image", "--name", "vm", "--pidfile", str(pidfile))
    check(vm.end(0) == FAILED, f"a guest that resets itself, without --kernel: exit code {vm.process.returncode}: {vm.text()}")
    must_say(vm.text(), "reset: .*no kernel was given")
    check(not pidfile.exists(), "it is there after the VM has failed")


def walk_reset(w):
    """A guest that resets itself is reset once, whatever it tries until it stands still"""
    said = w.folder / "serial"
    vm = w.boot("vm", "--serial", f"file:{said}", append="log=1 run=200ms end=reset", env={**w.env, "RP_FAULT": "guest-asks:1:stall"})
    w.until(lambda: said.exists() and said.read_text().count("guest: done") >= 3, "three resets", vm)
    w.ask("pause", "vm")
    resets, done = w.ask("history", "vm").count("  RESET "), said.read_text().count("guest: done")
    check(resets <= done, f"{resets} resets of a guest that was done {done} times")


def walk_a_button_while_no_standby_is_there(w):
    """A VM that stands still until it has a standby again is not ended by the first SIGTERM, and notices its button then"""
    vm = w.boot("vm", "--stop-timeout", "10m")
    standby = w.stand_by("vm", f"unix:{w.folder}/link", "--lease-ttl", TTL)
    protect(w, "vm", f"unix:{w.folder}/link", "--on-loss", "pause")
    standby.end()
    w.until(lambda: w.status("vm")["paused-by"] == ["standby"], "it stands still", vm)
    vm.process.send_signal(signal.SIGTERM)
    w.until(lambda: w.ask("history", "vm").count("  POWERDOWN ") == 1, "its button is pressed", vm)
    check(w.status("vm")["paused-by"] == ["standby"], "it was to stand still")
    check(vm.end(signal.SIGTERM) == DONE, "the second one")


def walk_empty_command_line(w):
    """A kernel's command line may be empty"""
    w.boot("vm", "--append", "")


def walk_devices_that_are_not_the_vms(w):
    """A VM is not restored with a console that it does not have"""
    for name, words in (("bare", ()), ("full", ("--console", "null"))):
        w.boot(name, *words)
        w.ask("checkpoint", name, f"file:{w.folder}/{name}", "--quit")
    for option in (("--console", "null"), ("--vsock", f"{w.folder}/v")):
        must_say(w.ask("restore", f"file:{w.folder}/bare", *option, code=USAGE), f"^reprise restore: {w.folder}/bare: {option[0]}.*: the VM has no ")
    vm = w.start("restore", f"file:{w.folder}/full", "--console", f"file:{w.folder}/said")
    w.until(lambda: w.status("full").get("status") == "running", "it runs", vm)


def walk_a_disk_that_does_not_answer(w):
    """A start that waits for an NBD server ends with a signal, and by itself"""
    server = socket.create_server(("127.0.0.1", 0))
    uri = f"nbd://127.0.0.1:{server.getsockname()[1]}/disk"
    for number, code in ((signal.SIGINT, INTERRUPTED), (signal.SIGTERM, DONE), (0, HOST)):
        vm = w.boot("vm", "--disk", uri, wait=False)
        server.settimeout(WAIT_S)
        client, _ = server.accept()
        check(vm.end(number) == code, f"signal {number}: exit code {vm.process.returncode}, not {code}: {vm.text()}")
        check(not (w.folder / "rt" / "vm.sock").exists(), f"signal {number}: it leaves its socket behind")
        check(not number or not vm.text(), f"signal {number}: it says {vm.text()}")
        client.close()
    check(vm.text() == f"reprise run: disk {uri}: the server does not answer within 5 s; see that it runs\n", vm.text())


def walk_a_takeover_whose_disk_does_not_answer(w):
    """A takeover that waits for an NBD server says so, and ends with a signal"""
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(WAIT_S)
    disk = w.folder / "disk"
    disk.write_bytes(bytes(1 << 20))
    vm = w.boot("vm", "--disk", f"{disk},shared")
    standby = w.stand_by("vm", f"unix:{w.folder}/link", "--lease-ttl", TTL, "--disk", f"nbd://127.0.0.1:{server.getsockname()[1]}/disk")
    protect(w, "vm", f"unix:{w.folder}/link")
    vm.end()
    first, _ = server.accept()
    must_say(w.ask("status", "vm", env=w.there()), "^  standby +taking over, for ", "the server does not answer within 5 s")
    second, _ = server.accept()
    check(standby.end(signal.SIGTERM) == DONE, f"exit code {standby.process.returncode}")
    check(standby.text().count("it is tried again every 1 s") == 1, f"it is not tried again: {standby.text()}")
    first.close()
    second.close()


def walk_closed_streams(w):
    """Standard streams that are closed are not taken for something else"""
    vm = w.boot("vm")
    w.ask("checkpoint", "vm", f"file:{w.folder}/image", "--quit")
    check(vm.end(0) == DONE, vm.text())
    closed = ["sh", "-c", 'exec "$0" "$@" <&- >&- 2>&-', str(w.reprise)]
    vm = subprocess.Popen([*closed, "restore", f"file:{w.folder}/image", "--serial", "stdio"], env=w.env, cwd=w.folder)
    try:
        w.until(lambda: w.status("vm").get("status") == "running", "vm runs")
        links = [os.readlink(f"/proc/{vm.pid}/fd/{n}") for n in range(3)]
        check(links == ["/dev/null"] * 3, f"they are {links}")
    finally:
        vm.kill()
        vm.wait()
    done = subprocess.run([*closed[:2], 'exec "$0" "$@" >&-', str(w.reprise), "help"], stderr=subprocess.PIPE, text=True, check=False)
    check(done.returncode == FAILED, f"exit code {done.returncode}")
    must_say(done.stderr, "^reprise help: standard output: Bad file descriptor$")


def main():
    reprise = pathlib.Path(sys.argv[1]).resolve()
    guests = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else reprise.parent / "guests").resolve()
    walks = {name: walk for name, walk in globals().items() if name.startswith("walk_")}
    bad = ran = 0
    for name, walk in walks.items():
        title = walk.__doc__.split("\n")[0].rstrip(".")
        if sys.argv[3:] and name.removeprefix("walk_") not in sys.argv[3:]:
            continue
        if not os.access("/dev/kvm", os.R_OK | os.W_OK):
            print(f"skip  {title}: there is no usable /dev/kvm")
            continue
        ran += 1
        wrong = None
        with tempfile.TemporaryDirectory(prefix="reprise-walk-") as folder:
            w = Walk(reprise, guests, pathlib.Path(folder))
            try:
                walk(w)
            except Wrong as why:
                wrong = str(why).strip().replace("\n", "\n      ")
            except Skip as why:
                print(f"skip  {title}: {why}")
                continue
            except (KeyError, ValueError, OSError, subprocess.TimeoutExpired) as why:     # an answer that is not as expected at all
                wrong = f"{type(why).__name__}: {why}"
            finally:
                w.close()
        bad += wrong is not None
        print(f"{'FAIL' if wrong else 'ok   '} {title}{': ' + wrong if wrong else ''}", flush=True)
    print(f"{ran} walks, {bad} wrong")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
