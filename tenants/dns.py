"""Proof of a domain: ask DNS for the TXT record that its owner was told to set."""

from __future__ import annotations

import dns.exception
import dns.nameserver
import dns.resolver
from django.conf import settings

from tenants.errors import Refused
from tenants.models import Domain

LABEL = "_hearth-challenge"
PREFIX = "hearth-verify="
TRY_S, TOTAL_S = 2.0, 5.0
NOTHING_LOST = "Nothing was changed; check again later."


def record_name(domain: Domain) -> str:
    """Return the name of the TXT record that proves the domain."""
    return f"{LABEL}.{domain.name}"


def record_value(domain: Domain) -> str:
    """Return the content of the TXT record that proves the domain."""
    return f"{PREFIX}{domain.token}"


def check(domain: Domain) -> None:
    """Return when DNS holds the proof, or refuse with what was found instead. Takes at most 5 seconds."""
    name = record_name(domain)
    found = _texts(name, domain.name)
    if record_value(domain) in found:
        return
    ours = [text for text in found if text.startswith(PREFIX)]
    if ours:
        raise Refused(
            f"The TXT record at {name} has another value ({ours[0][:80]}). It may be an old one that name servers "
            f"still remember. Set it to exactly the value below. {NOTHING_LOST}"
        )
    raise Refused(
        f"There is a TXT record at {name}, but none that begins with {PREFIX} Add the record below. {NOTHING_LOST}"
    )


def _texts(name: str, domain: str) -> list[str]:
    try:
        answer = _resolver().resolve(name, "TXT", search=False)
    except dns.resolver.NXDOMAIN:
        raise Refused(
            f"DNS knows no {name}. If you have just added the record, it can take some minutes to be seen; else check "
            f"that it was added to {domain}. {NOTHING_LOST}"
        ) from None
    except dns.resolver.NoAnswer:
        raise Refused(f"{name} exists in DNS but has no TXT record. Add the record below. {NOTHING_LOST}") from None
    except dns.resolver.NoNameservers:
        raise Refused(
            f"The name servers of {domain} answered with an error. This says nothing about your record. Check the "
            f"domain's name servers, and try again in some minutes. {NOTHING_LOST}"
        ) from None
    except (dns.exception.DNSException, OSError):
        raise Refused(
            "DNS could not be asked: no resolver answered in time. This says nothing about your record. Try again in a "
            f"minute; if it stays so, tell whoever runs this Hearth. {NOTHING_LOST}"
        ) from None
    # A long TXT record comes in pieces of at most 255 bytes that belong together.
    return [b"".join(record.strings).decode("utf-8", "replace").strip() for record in answer]


def _resolver() -> dns.resolver.Resolver:
    addresses: list[str] = settings.HEARTH["HEARTH_DNS_RESOLVERS"]
    resolver = dns.resolver.Resolver(configure=not addresses)
    if addresses:
        resolver.nameservers = [_server(address) for address in addresses]
    resolver.timeout, resolver.lifetime = TRY_S, TOTAL_S
    resolver.cache = None
    return resolver


def _server(address: str) -> dns.nameserver.Nameserver:
    host, colon, port = address.rpartition(":")
    if not colon or (":" in host and not address.startswith("[")):
        host, port = address, "53"
    return dns.nameserver.Do53Nameserver(host.strip("[]"), int(port))
