"""What the tests need beyond Python packages: programs, S3 servers, Synapse environments, a Kubernetes control plane.

`make test` runs it first. Everything is made once; with all of it there the network is not needed. Where something
can't be had the tests that need it are left out, loudly; with CI=true that is a failure.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from provisioning.providers.base import ProviderError
from provisioning.providers.local import environments
from tenants.releases import RELEASES
from tests.chart.s3 import s3_provider
from tests.cluster import definitions, tools
from tests.operator import render_helper

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "var" / "test"
VERSIONS = tuple(release.version for release in RELEASES[:2])
PACKAGE = "chromium"
HSM = "softhsm2"
POSTGRES = "postgresql"
REDIS = "redis-server"
PROMETHEUS = "prometheus"
INIT = Path("/run/systemd/system")
SOFTHSM = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
)


def main(arguments: list[str]) -> int:
    """Prepare, and return the exit code."""
    faults = [] if "--no-browser" in arguments else [_browser()]
    faults += [] if "--no-cluster" in arguments else [_cluster()]
    faults += [_stores()] if "--stores" in arguments or "--no-cluster" not in arguments else []
    faults += [_hsm(), _postgres_tls(), _redis_tls(), _promtool()]
    faults += [_environment(version) for version in VERSIONS] + [_s3_provider()]
    faults = [fault for fault in faults if fault]
    for fault in faults:
        _say(f"\n*** LEFT OUT: {fault}\n")
    if faults and os.environ.get("CI") == "true":
        _say("CI=true: nothing may be left out.")
        return 1
    return 0


def browser() -> str | None:
    """Return the path of Chromium, or None."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


def hsm() -> str | None:
    """Return the path of SoftHSM2's PKCS#11 library, or None."""
    program = shutil.which("softhsm2-util")
    return next((path for path in SOFTHSM if program and Path(path).exists()), None)


def postgres_tls() -> Path | None:
    """Return the folder of programs of a PostgreSQL with TLS, or None. The wheel's is built without."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return folders[-1].parent if folders else None


def redis_tls() -> Path | None:
    """Return the path of a Redis with TLS, or None. The wheel's is built without."""
    path = shutil.which("redis-server", path="/usr/bin:/usr/local/bin")
    return Path(path) if path else None


def promtool() -> str | None:
    """Return the path of promtool, which Prometheus checks and tries out its rules with, or None."""
    return shutil.which("promtool")


def _browser() -> str:
    return "" if browser() else install(PACKAGE, "the tests in the browser, because there is no Chromium.", browser)


def _hsm() -> str:
    return "" if hsm() else install(HSM, "the tests of the HSM, because there is no SoftHSM2.", hsm)


def _cluster() -> str:
    try:
        tools.ensure(say=_say)
        render_helper.ensure(say=_say)
        definitions.ensure(say=_say)
    except tools.Missing as missing:
        return f"every test on a Kubernetes cluster: {missing}"
    return ""


def _stores() -> str:
    try:
        tools.ensure(tools.STORES, say=_say)
    except tools.Missing as missing:
        return f"every test of backups on S3 servers: {missing}"
    return ""


def _postgres_tls() -> str:
    fault = "the tests of verified database connections, because there is no PostgreSQL with TLS."
    return "" if postgres_tls() else _install_server(POSTGRES, fault, postgres_tls)


def _redis_tls() -> str:
    fault = "the tests of verified Redis connections, because there is no Redis with TLS."
    return "" if redis_tls() else _install_server(REDIS, fault, redis_tls)


def _promtool() -> str:
    fault = "the tests of alert rules, because there is no promtool."
    return "" if promtool() else _install_server(PROMETHEUS, fault, promtool)


def _install_server(package: str, fault: str, there: Callable[[], object]) -> str:
    """Install a package that also brings a service, where nothing would start it: only its programs are wanted."""
    if INIT.exists():
        return f"{fault} Install your system's package {package}; its service need not run."
    return install(package, fault, there)


def install(package: str, fault: str, there: Callable[[], object]) -> str:
    """Install a package of the system where that can be; return what is left out when it is not there afterwards."""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return f"{fault} Install your system's package {package}."
    _say(f"Installing {package} from the system's packages (once)")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", package]):
        subprocess.run(["apt-get", *words], env=environment, check=False, stdout=subprocess.DEVNULL)
    return "" if there() else f"{fault} apt-get could not install it."


def _environment(version: str) -> str:
    place = FOLDER / "environments"
    if not environments.environment_dir(place, version).exists():
        _say(f"Making the environment of Synapse {version} (once)")
    try:
        asyncio.run(environments.ensure(place, version, progress=_say, cache=FOLDER / "cache"))
    except ProviderError as error:
        return f"every test that starts Synapse {version}: {error}"
    return ""


def _s3_provider() -> str:
    try:
        s3_provider()
    except subprocess.SubprocessError as error:
        return f"the tests that store media in S3, because Synapse's provider can't be installed: {error}"
    return ""


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 (this is a command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
