#!/usr/bin/env python3
"""Bad use gives one clear sentence and the right exit code, and leaves nothing behind.

bad_use.py REPRISE [GUESTS]: the command, and the folder of the test guests (default: beside it). Runs everywhere; what
needs /dev/kvm is skipped without, and so is what needs root; the lab scenario bad-use runs all of it.
"""
import contextlib
import fcntl
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading

DONE, FAILED, USAGE, NO_VM, HOST, REFUSED, DAMAGED = range(7)
INTERRUPTED = 130
KVM = os.access("/dev/kvm", os.R_OK | os.W_OK)
ROOT = os.geteuid() == 0


class Case:
    """One use: arguments of the command, what it must exit with, what its sentence must say."""

    def __init__(self, name, exit_code, says, *argv, needs_kvm=False, needs_root=False, without_kvm=False, setup=None, **popen):
        self.name = name
        self.exit_code = exit_code
        self.says = says
        self.argv = argv
        self.setup = setup              # a context manager, entered around the command
        self.popen = popen
        self.skip = ("there is no usable /dev/kvm" if needs_kvm and not KVM else "this is not root" if needs_root and not ROOT else
                     "everybody may use /dev/kvm here" if needs_root and os.stat("/dev/kvm").st_mode & 0o006 else
                     "there is a /dev/kvm" if without_kvm and os.path.exists("/dev/kvm") else None)

    def run(self, reprise):
        """None, or what is wrong."""
        with self.setup() if self.setup else contextlib.nullcontext():
            done = subprocess.run([reprise, *self.argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                  text=True, timeout=60, check=False, **self.popen)
        lines = done.stderr.strip().splitlines()
        if done.returncode != self.exit_code:
            return f"exit code {done.returncode}, not {self.exit_code}: {done.stderr}"
        if len(lines) != 1 or len(lines[0]) > 400:
            return f"not one sentence: {done.stderr}"
        if not re.search(self.says, lines[0]):
            return f"does not say /{self.says}/: {lines[0]}"
        if done.stdout:
            return f"speaks on standard output: {done.stdout}"
        return None


@contextlib.contextmanager
def locked(path):
    """Another VM's hold on a disk: the lock that reprise takes (an open file description's write lock over the whole file)."""
    with open(path, "r+b") as disk:
        fcntl.fcntl(disk, 37, fcntl_lock())      # F_OFD_SETLK
        yield


def fcntl_lock():
    return struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


@contextlib.contextmanager
def listening(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(1)
        try:
            yield server
        finally:
            os.unlink(path)


@contextlib.contextmanager
def answering(path, *answers):
    """A VM that greets, gives one answer to each command (a signal: the client gets that before), and is gone."""
    def serve():
        client, _ = server.accept()
        with client:
            client.sendall(b'{"QMP": {}}\r\n')
            pid, _, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            client.recv(4096)
            for answer in answers:
                if isinstance(answer, signal.Signals):
                    os.kill(pid, answer)
                    continue
                client.sendall(json.dumps(answer).encode() + b"\r\n")
                client.recv(4096)

    with listening(path) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


# A BEGIN record (docs/stream.md) of version 99, checksum and all: what nobody can read yet.
NEWER = bytes.fromhex("525001001100000000000000000000004ea2af5979f4b9866300000000000000070072657072697365")


def cases(folder, guests, golden):
    kernel = str(guests / "idle.elf")
    rt = folder / "rt"
    disk = folder / "disk"
    disk.write_bytes(bytes(1 << 20))
    text = folder / "text"
    text.write_text("no kernel\n" * 200)
    elf = folder / "elf"
    shutil.copy("/bin/true", elf)
    cut = folder / "cut"
    cut.write_bytes(pathlib.Path(kernel).read_bytes()[:100])
    run = ("run", "--name", "x", "--memory", "16M")
    boot = (*run, "--kernel", kernel)

    yield Case("no verb", USAGE, "which verb")
    yield Case("unknown verb", USAGE, "no such verb", "frob")
    yield Case("unknown option", USAGE, "no such option", *boot, "--frob")
    yield Case("no kernel given", USAGE, "--kernel is missing", *run)
    yield Case("kernel that is not there", USAGE, r"kernel /nowhere: No such file", *run, "--kernel", "/nowhere")
    yield Case("kernel that is a directory", USAGE, "not a regular file", *run, "--kernel", "/tmp")
    yield Case("not a kernel", USAGE, "not a kernel", *run, "--kernel", str(text))
    yield Case("an ELF that is no kernel", USAGE, "PVH entry", *run, "--kernel", str(elf))
    yield Case("half a kernel", USAGE, "beyond the end of the file", *run, "--kernel", str(cut))
    yield Case("initrd that is not there", USAGE, "initrd /nowhere: No such file", *boot, "--initrd", "/nowhere")
    yield Case("an empty initrd", USAGE, "--initrd: empty", *boot, "--initrd", "")
    yield Case("a name that is none", USAGE, "cannot be a VM's name", "run", "--name", "a/b", "--kernel", kernel)
    yield Case("a name in use", REFUSED, 'name "taken".*', "run", "--name", "taken", "--kernel", kernel,
               setup=lambda: listening(str(rt / "taken.sock")))
    yield Case("memory out of range", USAGE, "2M to 64G", "run", "--name", "x", "--kernel", kernel, "--memory", "65G")
    yield Case("memory that the host lacks", HOST, "the host has .* MiB of memory", "run", "--name", "x", "--kernel", kernel, "--memory",
               f"{more_than_there_is()}M") if more_than_there_is() <= 65536 else \
        Case("memory that the host lacks", USAGE, "2M to 64G", *boot, "--memory", "64T")
    yield Case("memory longer than a file may be", HOST, "guest RAM: .*File too large; .*raise ulimit -f", *boot, needs_kvm=True,
               preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 20, 8 << 20)))
    yield Case("no way of capturing", USAGE, "not one of auto, stop-and-copy, copy-on-write", "protect", "web", "unix:/x", "--capture", "cow")
    yield Case("a standby's place that is none", USAGE, '--protect: "tcp://b": there is no port', *boot, "--protect", "tcp://b", "--lease", "none")
    yield Case("a standby's standby at no place", USAGE, '--protect: "b": unknown kind of address', "standby", "--name", "x", "--listen",
               "unix:/nowhere/s", "--lease", "none", "--protect", "b")
    yield Case("a standby at no place", USAGE, '^reprise standby: --listen: "b": unknown kind of address', "standby", "--name", "x", "--listen", "b",
               "--lease", "none")
    yield Case("a standby with an initrd and no kernel", USAGE, "^reprise standby: --initrd needs --kernel, .*; give it", "standby", "--name", "x",
               "--listen", f"unix:{folder}/s", "--lease", "none", "--initrd", str(text))
    yield Case("a standby where nobody can listen", FAILED, "^reprise standby: cannot listen on unix:/nowhere/s: No such file", "standby", "--name", "x",
               "--listen", "unix:/nowhere/s", "--lease", "none")
    yield Case("a lease at no place", USAGE, "^reprise standby: --lease b: no lease's place; write file:DIRECTORY", "standby", "--name", "x", "--listen",
               "unix:/nowhere/s", "--lease", "b")
    yield Case("too many vCPUs", USAGE, "between 1 and 32", *boot, "--cpus", "33")
    yield Case("two on stdio", USAGE, "stdio", *boot, "--serial", "stdio", "--console", "stdio")
    yield Case("a descriptor that is not open", USAGE, "not open", *boot, "--net", "fd:77")
    yield Case("no VM of that name", NO_VM, rf'no VM "nobody" is running \(looked in {rt}\)', "status", "nobody")
    yield Case("no VM at that place", NO_VM, 'no VM answers on /nowhere/x', "status", "/nowhere/x")
    yield Case("nobody to pause", NO_VM, 'no VM "nobody"', "pause", "nobody")
    yield Case("nobody to checkpoint", NO_VM, 'no VM "nobody"', "checkpoint", "nobody", f"file:{folder}/image")
    old = folder / "old"
    old.write_text("an older checkpoint")
    yield Case("a VM that dies in a checkpoint over an older one", FAILED, 'VM "dies" closed the connection', "checkpoint", "dies", f"file:{old}", "--quit",
               setup=lambda: answering(str(rt / "dies.sock"), {"return": {}}, {"return": {"job-id": "checkpoint-1", "epoch": 2}}))
    yield Case("a checkpoint that is called off as it begins", INTERRUPTED, '^reprise checkpoint: VM "late": cancelled$', "checkpoint", "late", f"file:{folder}/late",
               setup=lambda: answering(str(rt / "late.sock"), {"return": {}}, signal.SIGTERM, {"return": {"job-id": "one", "epoch": 2}},
                                       {"return": [{"id": "one", "status": "running"}]}, {"return": {}},
                                       {"return": [{"id": "one", "status": "concluded", "error": "cancelled", "exit": 130}]}))
    yield Case("a protection that is called off as it begins", INTERRUPTED, "^reprise protect: interrupted; the VM is not protected$", "protect", "late", "unix:/x",
               "--lease", "none", setup=lambda: answering(str(rt / "late.sock"), {"return": {}}, signal.SIGTERM, {"return": {}},
                                                          {"return": {"state": "connecting"}}, {"return": {}}, {"return": {"state": "off"}}))
    yield Case("a lease's time and no lease", USAGE, "--lease-ttl needs --lease", *boot, "--lease-ttl", "2s")
    yield Case("a key and nobody to speak to", USAGE, "--key needs --protect or --listen", *boot, "--key", "/nowhere")
    yield Case("a goal and no standby", USAGE, "--epoch needs --protect; to protect the VM later, give it to `reprise protect`", *boot, "--epoch", "20ms")
    yield Case("a checkpoint that is a directory", USAGE, "^reprise restore: /tmp: is a directory; give the file of a checkpoint", "restore", "file:/tmp")
    yield Case("a directory to inspect", USAGE, "^reprise inspect: /tmp: is a directory", "inspect", "/tmp")
    yield Case("a checkpoint that is not there", USAGE, "No such file", "restore", "file:/nowhere")
    yield Case("a command line and no kernel, before all is read", USAGE, "^reprise restore: --append needs --kernel", "restore", f"file:{text}",
               "--append", "quiet")
    yield Case("not a checkpoint", DAMAGED, "not an epoch stream", "restore", f"file:{text}")
    if golden:
        newer, half, flipped = folder / "newer", folder / "half", folder / "flipped"
        data = golden.read_bytes()
        newer.write_bytes(NEWER)
        half.write_bytes(data[:len(data) // 2])
        flipped.write_bytes(data[:-1000] + bytes([data[-1000] ^ 1]) + data[-999:])
        yield Case("a command line and no kernel", USAGE, "^reprise restore: --append needs --kernel, .*; give it", "restore", f"file:{golden}",
                   "--append", "quiet")
        yield Case("a stream from a newer version", DAMAGED, "version 99.*version 1|99", "restore", f"file:{newer}")
        yield Case("half a stream", DAMAGED, "cut short", "restore", f"file:{half}")
        yield Case("a stream with a flipped bit", DAMAGED, "checksum", "restore", f"file:{flipped}")

    yield Case("no /dev/kvm", HOST, "/dev/kvm does not exist: .*load kvm_intel or kvm_amd", *boot, without_kvm=True)
    yield Case("no permission for /dev/kvm", HOST, "/dev/kvm: no permission: join its group", *boot, needs_kvm=True, needs_root=True,
               user=65534, group=65534, extra_groups=[], env={**os.environ, "REPRISE_RUNTIME_DIR": str(folder / "user")})
    yield Case("a disk that is not there", USAGE, "disk /nowhere: No such file", *boot, "--disk", "/nowhere", needs_kvm=True)
    (folder / "sector").write_bytes(bytes(100))
    (folder / "empty").touch()
    for name, says in (("/dev/zero", "neither a file nor a block device; give"), (folder / "sector", "is shorter than a sector of 512 bytes"),
                       (folder / "empty", r"is empty \(make one with: truncate")):
        yield Case(f"a disk that is none, {name}", USAGE, f"^reprise run: disk {name}: {says}", *boot, "--disk", str(name), needs_kvm=True)
    yield Case("a disk's descriptor that is for reading", USAGE, r"disk descriptor 0: is not open for .* writing; .*\(ro attaches", *boot, "--disk", "fd:0",
               needs_kvm=True, preexec_fn=lambda: os.dup2(os.open(disk, os.O_RDONLY), 0))
    long = "i" * 108
    for net, says in (("fd:0", "descriptor 0: neither a tap nor a socket; whoever"), (f"tap:{long}", f"tap {long}: .* has at most 15 bytes"),
                      (f"unix:{long}", f"network {long}: the path is longer than 107 bytes")):
        yield Case(f"a network that is none, {net[:8]}", USAGE, f"^reprise run: .*{says}", *boot, "--net", net, needs_kvm=True)
    yield Case("a disk that another VM has locked", REFUSED, "locked by another VM", *boot, "--disk", str(disk), needs_kvm=True,
               setup=lambda: locked(disk))
    yield Case("a tap that is gone", HOST, "tap gone0: .*", *boot, "--net", "tap:gone0", needs_kvm=True)
    for option, path in (("serial", f"unix:{folder}/s"), ("console", f"unix:{folder}/s"), ("vsock", f"{folder}/s"), ("qmp", f"{folder}/s")):
        yield Case(f"--{option} where something listens", REFUSED, rf"--{option} is in use: something answers on {folder}/s; take another or end", *boot,
                   f"--{option}", path, needs_kvm=True, setup=lambda: listening(f"{folder}/s"))
        yield Case(f"--{option} on a file", USAGE, rf"--{option}: {text} is there and is no socket; it is left alone", *boot, f"--{option}",
                   path.replace(f"{folder}/s", str(text)), needs_kvm=True)
    yield Case("a socket's folder that is not there", USAGE, "serial /nowhere/s: No such file", *boot, "--serial", "unix:/nowhere/s", needs_kvm=True)


def more_than_there_is():
    """MiB, a little more than memory and swap."""
    sizes = dict(line.split(":") for line in pathlib.Path("/proc/meminfo").read_text().splitlines())
    return sum(int(sizes[name].split()[0]) for name in ("MemTotal", "SwapTotal")) // 1024 + 1024


def main():
    reprise = pathlib.Path(sys.argv[1]).resolve()
    guests = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else reprise.parent / "guests"
    golden = next((p for p in (reprise.parent / "tests/golden/v1-machine.rps",
                               pathlib.Path(__file__).resolve().parent.parent / "golden/v1-machine.rps") if p.exists()), None)
    bad = ran = 0
    with tempfile.TemporaryDirectory(prefix="reprise-bad-use-") as name:
        folder = pathlib.Path(name)
        folder.chmod(0o755)
        (folder / "rt").mkdir()
        (folder / "user").mkdir()
        os.chmod(folder / "user", 0o777)
        os.environ["REPRISE_RUNTIME_DIR"] = str(folder / "rt")
        for case in cases(folder, guests.resolve(), golden):
            if case.skip:
                print(f"skip  {case.name}: {case.skip}")
                continue
            ran += 1
            wrong = case.run(reprise)
            if wrong is None and os.listdir(folder / "rt"):
                wrong = f"leaves {os.listdir(folder / 'rt')} behind"
            bad += wrong is not None
            print(f"{'FAIL' if wrong else 'ok   '} {case.name}{': ' + wrong if wrong else ''}")
    print(f"{ran} uses, {bad} wrong")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
