"""The grammar of server names, with a sentence for each way to get one wrong.

Source: Matrix specification, appendices, "Server name": `server_name = hostname [ ":" port ]`, `dns-name` of letters,
digits, `-` and `.`; a server name should not exceed 230 characters, so that user identifiers (255 bytes in all) have
room. Hearth allows less: DNS names only (no addresses, no port), lower case only, because the specification compares
names byte by byte, and labels as RFC 1035 (2.3.1) and RFC 5890 (2.3.1: no `--` in places 3 and 4 but in `xn--`) say.
"""

from __future__ import annotations

import ipaddress
import re

import idna

from tenants.errors import Refused

MAX_LENGTH = 230
MAX_LABEL = 63
LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")

# First labels that people would take for Hearth itself, or that software looks up by itself.
_MAILBOXES = """
    abuse admin administrator hostmaster info marketing noc postmaster root sales security support usenet webmaster www
"""  # RFC 2142; certificate authorities write to some of them
_SPECIAL = "invalid local localhost onion"  # RFC 6761, 6762, 7686
_LOOKED_UP = """
    autoconfig autodiscover ftp imap isatap mail mta-sts ns ns1 ns2 ns3 pop pop3 smtp webmail wpad
"""  # found by mail programs, browsers and name servers on their own
_OWN = """
    account accounts api app apps auth backup backups billing cdn console dashboard docs element federation
    hearth help home id identity internal login matrix metrics monitor oauth operator payment payments prod proxy
    register region server service signup sso staff staging static status synapse system turn well-known
"""  # Hearth's places, and words that a forged sign-in page would like
RESERVED = frozenset(f"{_MAILBOXES} {_SPECIAL} {_LOOKED_UP} {_OWN}".split())
HOSTS = re.compile(r"m-[0-9a-f]{32}")
"""Hosts that a region gives to servers on domains of their own: whoever had such a name would get another's traffic."""


def server_label(raw: str) -> str:
    """Return `raw` as the first label of a default server name, or refuse with what is wrong and what would do."""
    name = raw.strip()
    if not name:
        raise Refused("Give the server a name, such as “acme”.")
    if "." in name:
        raise Refused("A name has no dots. To use a domain of your own, prove it under Domains and choose it here.")
    name = _ascii_lower(name)
    _check_label(name)
    if name in RESERVED or HOSTS.fullmatch(name):
        raise Refused(f"“{name}” is kept free because people could take it for a part of Hearth. Choose another name.")
    return name


def domain_name(raw: str) -> str:
    """Return `raw` as a DNS name that can be a server name, or refuse with what is wrong and what would do."""
    name = raw.strip()
    if not name:
        raise Refused("Type the domain, such as “example.org”.")
    if "/" in name or "@" in name:
        raise Refused("Type the domain alone, such as “example.org”, without https://, a path or an @.")
    if _is_address(name):
        raise Refused("An IP address can't be a server name here: it can be neither moved nor proved. Type a domain.")
    if ":" in name:
        raise Refused("Type the domain without a port. Hearth takes care of ports.")
    name = _ascii_lower(name.removesuffix("."))
    labels = name.split(".")
    if len(labels) < 2:
        raise Refused(f"“{name}” has only one part. Type a whole domain, such as “example.org”.")
    for label in labels:
        _check_label(label)
    if labels[-1].isdigit():
        raise Refused(f"“{name}” ends in a number, which no domain does. Type a domain, such as “example.org”.")
    return check_length(name)


def check_length(name: str) -> str:
    """Return `name`, or refuse it when it leaves user identifiers too little room."""
    if len(name) > MAX_LENGTH:
        raise Refused(f"“{name[:40]}…” has {len(name)} characters; Matrix allows {MAX_LENGTH}. Choose a shorter name.")
    return name


def parents(name: str) -> list[str]:
    """Return `name` and every domain above it: `a.example.org`, `example.org`, `org`."""
    labels = name.split(".")
    return [".".join(labels[place:]) for place in range(len(labels))]


def _ascii_lower(name: str) -> str:
    if not name.isascii():
        raise Refused(_in_ascii(name))
    if name != name.lower():
        raise Refused(
            f"Server names are lower case, because Matrix takes “{name[:40]}” and “{name[:40].lower()}” for two "
            f"different servers. Write “{name[:40].lower()}”."
        )
    return name


def _in_ascii(name: str) -> str:
    try:
        form = idna.encode(name, uts46=True, std3_rules=True).decode("ascii")
    except (idna.IDNAError, UnicodeError):
        return f"“{name[:40]}” has characters that no domain can have. Use the letters a to z, digits and hyphens."
    if form.isascii() and "xn--" not in form:
        return f"“{name[:40]}” has characters that only look like plain letters. Write “{form[:80]}”."
    return (
        f"Matrix names are written in plain ASCII. The ASCII form of “{name[:40]}” is “{form[:80]}”: type that if you "
        "want it (people will see it in every user name), or choose a name with the letters a to z."
    )


def _check_label(label: str) -> None:
    if not label:
        raise Refused("There are two dots in a row, or a dot at the beginning. Remove the empty part.")
    if len(label) > MAX_LABEL:
        raise Refused(f"“{label[:20]}…” has {len(label)} characters; one part of a name has at most {MAX_LABEL}.")
    if not LABEL.fullmatch(label):
        raise Refused(
            f"“{label[:40]}” can't be a part of a server name. Use the letters a to z, digits, and hyphens inside."
        )
    if label[2:4] == "--":
        _check_ace(label)


def _check_ace(label: str) -> None:
    try:
        if not label.startswith("xn--"):
            raise idna.IDNAError
        idna.decode(label)
    except (idna.IDNAError, UnicodeError):
        raise Refused(
            f"“{label[:40]}” has two hyphens where only international names have them, and is not one. Remove a hyphen."
        ) from None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
