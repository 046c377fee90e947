"""What the recording of the wire says about a guest that moves between hosts."""
import collections

Reign = collections.namedtuple("Reign", "host first last frames")


def reigns(lab, mac, network="lan"):
    """Who spoke as this MAC address, in the order of time: a Reign for each uninterrupted run of frames from one host.

    Frames that met a cut wire count, too: that they did not arrive does not make it right to have sent them.
    """
    address = bytes.fromhex(mac.replace(":", ""))
    found = []
    for frame in lab.frames():
        if frame.network != network or frame.data[6:12] != address:
            continue
        if found and found[-1].host == frame.host:
            found[-1] = found[-1]._replace(last=frame.time, frames=found[-1].frames + 1)
        else:
            found.append(Reign(frame.host, frame.time, frame.time, 1))
    return found


def one_active(lab, guest, hosts):
    """INV-3 as the wire saw it: the guest spoke from these hosts, in this order, and never from an earlier one again.

    Returns the gaps between one host's last frame and the next one's first, in seconds.
    """
    seen = reigns(lab, guest.mac)
    order = [reign.host for reign in seen]
    story = ", ".join(f"{reign.host} {reign.last - reign.first:.1f} s ({reign.frames} frames)" for reign in seen)
    lab.check(order == [str(host) for host in hosts],
              f"guest {guest.name} spoke from {' then '.join(order)}, expected {' then '.join(str(h) for h in hosts)}: {story}")
    lab.log(f"the wire's witness: {story}")
    return [after.first - before.last for before, after in zip(seen, seen[1:])]
