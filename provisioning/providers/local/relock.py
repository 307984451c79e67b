"""Write the lock file of each Synapse version: `python -m provisioning.providers.local.relock [version ...]`.

Without arguments it makes those that are missing. An existing one is made again only when it is named, because a
lock names what was tested.
"""

from __future__ import annotations

import subprocess
import sys

from provisioning.providers.local.environments import LOCKS, lock_file, uv_environment, uv_program
from tenants.releases import RELEASES

# Extras without `postgres`, which would compile psycopg2. txredisapi 1.6 does not work with Synapse's Redis code.
WANTED = "matrix-synapse[oidc,redis]=={version}\nauthlib\npsycopg2-binary\ntxredisapi<1.6\n"
OLD = "setuptools<81\nprometheus-client<0.22\n"
"""For versions from before two incompatible changes in what they need."""
PINS = {"1.139.2": OLD, "1.98.0": OLD}
FLAGS = (
    "--quiet", "--universal", "--python-version", "3.11", "--generate-hashes", "--no-header", "--no-annotate",
    "--no-emit-index-url", "--no-emit-find-links", "--no-emit-build-options",
)  # fmt: skip


def relock(version: str) -> None:
    """Resolve `version` and all that it needs, with hashes, and no name of a registry in the file."""
    LOCKS.mkdir(exist_ok=True)
    argv = [str(uv_program()), "pip", "compile", *FLAGS, "-o", str(lock_file(version)), "-"]
    subprocess.run(
        argv, input=WANTED.format(version=version) + PINS.get(version, ""), text=True, check=True, env=uv_environment()
    )


def main() -> None:
    """Make the locks that the command line asks for."""
    missing = [release.version for release in RELEASES if not lock_file(release.version).exists()]
    for version in sys.argv[1:] or missing:
        relock(version)
        print(lock_file(version))  # noqa: T201 (a command for a person)


if __name__ == "__main__":
    main()
