"""How many times somebody may try something: counters in the cache, by address and by network."""

from __future__ import annotations

import hashlib
import ipaddress
import time
from dataclasses import dataclass

from django.core.cache import cache


@dataclass(frozen=True)
class Limit:
    """At most `amount` times in each window of `seconds`."""

    name: str
    amount: int
    seconds: int


SIGN_UP_ADDRESS = Limit("sign-up-address", 20, 3600)
SIGN_UP_NETWORK = Limit("sign-up-network", 60, 3600)
RESEND_CLIENT = Limit("resend-client", 10, 3600)
RESEND_MAILBOX = Limit("resend-mailbox", 3, 600)
CLAIM_CLIENT = Limit("claim-client", 10, 600)


def network_of(address: str) -> str:
    """Return the network that one customer of a provider usually has: /24 for IPv4, /56 for IPv6."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    prefix = 24 if ip.version == 4 else 56
    return str(ipaddress.ip_network(f"{ip}/{prefix}", strict=False))


def single_of(address: str) -> str:
    """Return what counts as one address: an IPv6 host owns its whole /64."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network(f"{ip}/64", strict=False)) if ip.version == 6 else str(ip)


def consume(limit: Limit, subject: str) -> int:
    """Count one try. Return 0 when it is within the limit, else the seconds until the window ends."""
    now = int(time.time())
    window = now // limit.seconds
    # Hashed, so that no address of a person stands in the cache's keys.
    key = f"limit:{limit.name}:{hashlib.sha256(subject.encode()).hexdigest()}:{window}"
    cache.add(key, 0, timeout=limit.seconds + 1)
    try:
        count = cache.incr(key)
    except ValueError:  # the cache was emptied between the two calls
        cache.set(key, 1, timeout=limit.seconds + 1)
        count = 1
    return 0 if count <= limit.amount else (window + 1) * limit.seconds - now
