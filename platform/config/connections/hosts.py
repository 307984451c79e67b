"""Which addresses stay on this machine."""

from __future__ import annotations

import ipaddress


def is_local(host: str) -> bool:
    """Tell whether `host` names a Unix socket, `localhost` or a loopback address. Nothing is looked up.

    No host stands for the local socket. Any other name counts as another machine, also where it happens to lead here:
    what it leads to may change.
    """
    if host in {"", "localhost"} or host.startswith(("/", "@")):
        return True
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
