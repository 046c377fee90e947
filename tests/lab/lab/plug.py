"""plug.py PORT ADDRESS MAC [NAME]: a cable of a namespace: a native client's (client.py) or a native host's (native.py).

Makes the tap NAME (eth1) there, with the address unless that is "-", and carries frames between it and a port of the switch until either end closes.
"""
import fcntl
import os
import selectors
import socket
import struct
import subprocess
import sys

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000     # linux/if_tun.h


def plug(port, address, mac, name="eth1"):
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    given = [] if address == "-" else [f"addr add {address} dev {name}"]
    for command in ("link set lo up", f"link set {name} address {mac}", *given, f"link set {name} up"):
        subprocess.run(["ip", *command.split()], check=True)
    wire = socket.socket(socket.AF_UNIX)
    wire.connect(port)
    print("up", flush=True)
    selector = selectors.DefaultSelector()
    selector.register(tap, selectors.EVENT_READ)
    selector.register(wire, selectors.EVENT_READ)
    inbox = b""
    while True:
        for key, _ in selector.select():
            if key.fd == tap:
                frame = os.read(tap, 65536)
                wire.sendall(struct.pack(">I", len(frame)) + frame)
                continue
            data = wire.recv(1 << 18)
            if not data:
                return
            inbox += data
            while len(inbox) >= 4 and len(inbox) - 4 >= (length := struct.unpack_from(">I", inbox)[0]):
                write_frame(tap, inbox[4:4 + length])
                inbox = inbox[4 + length:]


def write_frame(tap, frame):
    try:
        os.write(tap, frame)
    except BlockingIOError:
        pass                    # a full queue loses the frame, as a network card would
    except OSError as error:
        print(f"frame of {len(frame)} bytes: {error}", file=sys.stderr)


if __name__ == "__main__":
    plug(*sys.argv[1:])
