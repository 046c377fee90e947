"""Recordings of the wire: pcapng files, written by the switch, read by scenarios (and by tcpdump, Wireshark).

Every frame that a host emits is recorded when it arrives at the switch, under an interface named NETWORK.HOST; one
that was not passed on carries the reason as a comment. Format: IETF draft-ietf-opsawg-pcapng.
"""
import collections
import struct

SECTION, INTERFACE, PACKET = 0x0A0D0D0A, 1, 6
OPTION_END, OPTION_COMMENT, OPTION_NAME, OPTION_RESOLUTION = 0, 1, 2, 9
ETHERNET = 1

Frame = collections.namedtuple("Frame", "time network host data length dropped")


def _option(code, value):
    return struct.pack("<HH", code, len(value)) + value + b"\0" * (-len(value) % 4)


def _block(kind, body):
    length = 12 + len(body)
    return struct.pack("<II", kind, length) + body + struct.pack("<I", length)


class Recorder:
    """Writes a recording. Not thread-safe: the switch is its only user."""

    def __init__(self, path, snap_bytes):
        self.file = open(path, "wb", buffering=1 << 18)
        self.snap_bytes = snap_bytes
        self.interfaces = {}
        self.file.write(_block(SECTION, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)))

    def _interface(self, name):
        if name not in self.interfaces:
            self.interfaces[name] = len(self.interfaces)
            options = _option(OPTION_NAME, name.encode()) + _option(OPTION_RESOLUTION, b"\x09") + _option(OPTION_END, b"")
            self.file.write(_block(INTERFACE, struct.pack("<HHI", ETHERNET, 0, self.snap_bytes) + options))
        return self.interfaces[name]

    def frame(self, name, time_ns, data, dropped):
        interface = self._interface(name)
        kept = data[:self.snap_bytes]
        body = struct.pack("<IIIII", interface, time_ns >> 32, time_ns & 0xFFFFFFFF, len(kept), len(data))
        body += kept + b"\0" * (-len(kept) % 4)
        if dropped:
            body += _option(OPTION_COMMENT, dropped.encode()) + _option(OPTION_END, b"")
        self.file.write(_block(PACKET, body))

    def flush(self):
        self.file.flush()

    def close(self):
        self.file.close()


def read(path):
    """Yield every Frame of a recording, in the order in which the switch saw them; a torn last block ends it."""
    names = []
    with open(path, "rb") as file:
        while True:
            head = file.read(8)
            if len(head) < 8:
                return
            kind, length = struct.unpack("<II", head)
            body = file.read(length - 8)
            if len(body) < length - 8:
                return
            if kind == INTERFACE:
                names.append(_options(body[8:-4])[OPTION_NAME].decode())
            elif kind == PACKET:
                interface, high, low, kept, full = struct.unpack_from("<IIIII", body)
                data = body[20:20 + kept]
                options = _options(body[20 + kept + -kept % 4:-4])
                network, host = names[interface].split(".")
                dropped = options.get(OPTION_COMMENT, b"").decode()
                yield Frame(((high << 32) | low) / 1e9, network, host, data, full, dropped)


def _options(data):
    options, at = {}, 0
    while at + 4 <= len(data):
        code, length = struct.unpack_from("<HH", data, at)
        if code == OPTION_END:
            break
        options[code] = data[at + 4:at + 4 + length]
        at += 4 + length + -length % 4
    return options
