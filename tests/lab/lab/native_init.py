"""native_init.py NAME=PATH...: process 1 of a native lab host (native.py): its mounts, then nothing but reaping.

Every PATH becomes /mnt/NAME there; /tmp and /run are empty and the host's own.
"""
import os
import signal
import subprocess
import sys

HOSTS = "127.0.0.1 localhost\n10.10.0.1 a\n10.10.0.2 b\n10.10.0.3 client\n10.9.0.1 a-repl\n10.9.0.2 b-repl\n"


def mount(*words):
    subprocess.run(["mount", *words], check=True)


def main(shares):
    mount("--make-rprivate", "/")
    mount("-t", "proc", "proc", "/proc")
    # Held open: a share may itself lie below /mnt or /tmp, which are about to be covered.
    held = {name: os.open(path, os.O_PATH) for name, path in (share.split("=", 1) for share in shares)}
    mount("-t", "tmpfs", "tmpfs", "/mnt")
    for name, fd in held.items():
        os.mkdir(f"/mnt/{name}")
        mount("--no-canonicalize", "--bind", f"/proc/1/fd/{fd}", f"/mnt/{name}")
        os.close(fd)
    with open("/mnt/hosts", "w", encoding="ascii") as hosts:
        hosts.write(HOSTS)
    mount("--bind", "/mnt/hosts", "/etc/hosts")
    mount("-t", "tmpfs", "tmpfs", "/run")
    mount("-t", "tmpfs", "tmpfs", "/tmp")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    print("up", flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    while True:
        try:
            os.wait()
        except ChildProcessError:
            signal.sigwait({signal.SIGCHLD})


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    main(sys.argv[1:])
