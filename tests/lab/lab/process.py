"""Start processes that cannot outlive the driver."""
import ctypes
import os
import signal
import subprocess

PR_SET_PDEATHSIG = 1
NICE = int(os.environ.get("REPRISE_LAB_NICE", "5"))
_libc = ctypes.CDLL(None, use_errno=True)


def spawn(argv, **options):
    """Popen in a session of its own, niced, killed by the kernel when the driver dies however it dies.

    The calling thread must be the main one: the kernel sends the signal when the *thread* that forked ends.
    """
    parent = os.getpid()

    def in_child():
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        os.nice(NICE)

    options.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.Popen(argv, preexec_fn=in_child, start_new_session=True, **options)


def end(process, patience_s=0.0):
    """Wait a little for a process to end by itself, then kill and reap it."""
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.send_signal(signal.SIGCONT)
        process.wait()
