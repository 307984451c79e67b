"""What the tests need beyond Python packages: Chromium, and two Synapse environments. `make test` runs this first.

Everything is made once; with all of it there the network is not needed. Where something can't be had the tests that
need it are left out, loudly; with CI=true that is a failure.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

from provisioning.providers.base import ProviderError
from provisioning.providers.local import environments
from tenants.releases import RELEASES

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "var" / "test"
VERSIONS = tuple(release.version for release in RELEASES[:2])
PACKAGE = "chromium"


def main(arguments: list[str]) -> int:
    """Prepare, and return the exit code."""
    faults = [] if "--no-browser" in arguments else [_browser()]
    faults += [_environment(version) for version in VERSIONS]
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


def _browser() -> str:
    if browser():
        return ""
    fault = "the tests in the browser, because there is no Chromium."
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return f"{fault} Install your system's package {PACKAGE}."
    _say("Installing Chromium from the system's packages (once)")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", PACKAGE]):
        subprocess.run(["apt-get", *words], env=environment, check=False, stdout=subprocess.DEVNULL)
    return "" if browser() else f"{fault} apt-get could not install it."


def _environment(version: str) -> str:
    place = FOLDER / "environments"
    if not environments.environment_dir(place, version).exists():
        _say(f"Making the environment of Synapse {version} (once)")
    try:
        asyncio.run(environments.ensure(place, version, progress=_say, cache=FOLDER / "cache"))
    except ProviderError as error:
        return f"every test that starts Synapse {version}: {error}"
    return ""


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 (this is a command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
