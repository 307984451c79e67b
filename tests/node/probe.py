"""What a machine must be able to do to carry a real node. Each is tried, and named in the run's output."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.node.namespaces import CONTROL_GROUPS, UNSHARE

PROGRAMS = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "buildah": "buildah",
    "debootstrap": "debootstrap",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "gcc": "gcc",
}
"""What must be installed, and Debian's package that has it."""
FILES = {
    "containernetworking-plugins": "/usr/lib/cni/ptp",
    "debian-archive-keyring": "/usr/share/keyrings/debian-archive-keyring.gpg",
    "libc6-dev": "/usr/include/stdlib.h",
}
"""Packages that have no program, each with a file of its own."""
NETWORK = """
ip link set lo up
ip link add probe0 type bridge
ip link add one type veth peer name two
ip link set one master probe0
iptables -t nat -A OUTPUT -p tcp -d 10.0.0.1 -m comment --comment c -m statistic --mode random --probability 0.5
iptables -t nat -A POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE
"""
MOUNTS = """
place="$(mktemp -d)"
mount -t tmpfs tmpfs "$place"
cd "$place"
mkdir lower upper work over
mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work over
cd /
umount -l "$place"
rmdir "$place"
"""


def faults(*, say: Callable[[str], None]) -> list[str]:
    """Try all; say each result, and return what failed."""
    found = []
    for name, probe in PROBES.items():
        fault = probe()
        say(f"  {name}: {fault or 'yes'}")
        if fault:
            found.append(f"{name}: {fault}")
    return found


def _missing() -> list[str]:
    found = [package for program, package in PROGRAMS.items() if shutil.which(program) is None]
    found += [package for package, file in FILES.items() if not Path(file).exists()]
    return list(dict.fromkeys(found))


def _root() -> str:
    return "" if os.geteuid() == 0 else "no, this is not root"


def _programs() -> str:
    missing = _missing()
    return f"no. Install Debian's packages {' '.join(missing)}" if missing else ""


def _debian() -> str:
    text = Path("/etc/os-release").read_text() if Path("/etc/os-release").exists() else ""
    return "" if "VERSION_CODENAME=bookworm" in text else "no, its packages would not fit the images"


def _groups() -> str:
    try:
        roots = [CONTROL_GROUPS] if (CONTROL_GROUPS / "cgroup.controllers").exists() else [CONTROL_GROUPS / "memory"]
        for root in roots:
            place = root / f"hearth-probe-{os.getpid()}"
            place.mkdir()
            place.rmdir()
    except OSError as error:
        return f"no: {error}"
    return ""


def _script(script: str) -> Callable[[], str]:
    def probe() -> str:
        try:
            done = subprocess.run(
                [*UNSHARE, "sh", "-ec", script], capture_output=True, text=True, check=False, timeout=60
            )
        except OSError as error:
            return f"no: {error}"
        return "" if done.returncode == 0 else f"no: {done.stderr.strip() or done.stdout.strip()}"

    return probe


OF_PROGRAMS = "bridges, pairs of interfaces and address translation"
"""The probe that needs some of the programs itself."""
PROBES: dict[str, Callable[[], str]] = {
    "root": _root,
    "Debian 12": _debian,
    "programs": _programs,
    "namespaces of its own": _script("true"),
    OF_PROGRAMS: _script(NETWORK),
    "overlay mounts": _script(MOUNTS),
    "control groups": _groups,
}
