"""Where the lab's images are, and building them when they are missing."""
import functools
import hashlib
import os
import pathlib
import subprocess

LAB = pathlib.Path(__file__).resolve().parent.parent
TREE = LAB.parent.parent


class Images:
    """Paths of the built images; see tests/lab/build for what each one is."""

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.cache = self.path.parent
        self.root = self.path / "root.squashfs"
        self.kernel = self.path / "vmlinuz"
        self.initramfs = self.path / "host.cpio"

    def snapshot(self, description):
        """The place of the boot snapshot of a host with this description (any text that determines it)."""
        key = hashlib.sha256("\n".join([(self.path / "host-id").read_text(), _machine(), description]).encode()).hexdigest()[:12]
        return self.cache / f"lab-snapshot-{key}"


@functools.cache
def _machine():
    """What a saved machine state depends on besides its description: the emulator and the TSC behind it."""
    version = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True).stdout
    with open("/proc/cpuinfo", encoding="ascii") as cpuinfo:
        model = [line for line in cpuinfo if line.startswith(("model name", "cpu MHz"))][:1]
    return version.splitlines()[0] + "".join(model)


def build():
    """Build what is missing (instant when nothing is); SystemExit with a sentence when that cannot be."""
    if os.environ.get("REPRISE_LAB_IMAGES"):        # somebody else has built them: no emulated host may be needed
        return Images(os.environ["REPRISE_LAB_IMAGES"])
    done = subprocess.run([LAB / "build"], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    return Images(done.stdout.strip())


def environment():
    """For messages: which cache is used, and why."""
    return os.environ.get("REPRISE_CACHE") or "the default cache"
