"""The kernel that lessons run in: an ordinary IPython kernel that cannot reach the network.

`medvlp run` starts it as ``python -m medvlp_kit.kernel`` with the interpreter that runs the kit, whatever kernels are
registered on the machine. Connections to this machine itself stay allowed, since the kernel needs them.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys

from medvlp_kit.errors import KitError

RECORD = "MEDVLP_NETWORK_RECORD"  # the file that keeps attempts, also those whose error a library swallows
LOOKUPS = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")  # the host is the first argument
SENDS = ("socket.connect", "socket.sendto", "socket.sendmsg")  # the address is the second


def is_local(host: object) -> bool:
    """Whether a host is this machine. Addresses that are no host (Unix paths, netlink numbers) are local."""
    if isinstance(host, (bytes, bytearray)):
        host = host.decode(errors="replace")
    if not isinstance(host, str) or host in ("", "localhost", "0.0.0.0", "::", socket.gethostname()):
        return True
    try:
        return ipaddress.ip_address(host.split("%")[0]).is_loopback
    except ValueError:
        return host.startswith("/")


def forbid_network(record: str | None = None) -> None:
    """Make every attempt to reach another machine a KitError, for the rest of this process.

    An audit hook (PEP 578) sees the calls of every library and cannot be taken out again. Attempts are appended to the
    file `record`, because many libraries catch the error and go on.
    """

    def hook(event: str, arguments: tuple) -> None:
        if not event.startswith("socket."):
            return
        if event in LOOKUPS:
            host = arguments[0]
        elif event in SENDS:
            host = arguments[1][0] if isinstance(arguments[1], tuple) else "localhost"
        else:
            return
        if is_local(host):
            return
        if record:
            with open(record, "a", encoding="utf-8") as stream:
                stream.write(f"{host}\n")
        raise KitError(f"lessons run without a network, but a cell asked for {host!r}: use phantoms or files at hand")

    sys.addaudithook(hook)


def main() -> None:
    """Start the kernel (arguments as for ipykernel_launcher)."""
    if sys.path[0] in ("", os.getcwd()):  # a file of the same name beside the notebook must not hide a library
        del sys.path[0]
    from ipykernel.kernelapp import launch_new_instance

    forbid_network(os.environ.get(RECORD))
    launch_new_instance()


if __name__ == "__main__":
    main()
