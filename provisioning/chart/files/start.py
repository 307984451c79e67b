"""Starts one Synapse process in a pod: waits for what it needs, then becomes Synapse. Runs in Synapse's image.

`start.py <configuration folder> <secrets folder> <group>`, group `main` or the name of a worker's file. The password
of the database reaches libpq through PGPASSWORD, so it stands in no file. A worker waits until the main process has
brought the database to its schema, so a process of a newer release may be started at any time. Exit codes: 3 the
signing key is missing or another than expected, 4 the database refuses, 5 it stayed away too long, 143 it was told
to stop before Synapse ran.
"""
# ruff: noqa: E402 (what is imported last takes a second or more)

from __future__ import annotations

import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The first process of a container does not end by a signal that it has no handler for: a pod that is replaced while it
# starts would be waited for until it is killed, a minute later. Synapse puts its own handler in this one's place.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

import psycopg2
import yaml
from signedjson.key import read_signing_keys
from synapse.storage.schema import SCHEMA_COMPAT_VERSION, SCHEMA_VERSION

PATIENCE = 600.0
POLL = 1.0
PUBLIC_AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"


def main(arguments: list[str]) -> int:
    """Return only when something is missing."""
    folder, secrets, group = Path(arguments[0]), Path(arguments[1]), arguments[2]
    config = yaml.safe_load((folder / "homeserver.yaml").read_text())
    if fault := key_fault(Path(config["signing_key_path"]), os.environ.get("SIGNING_KEY_ID", "")):
        return say(3, fault)
    os.environ["PGPASSWORD"] = (secrets / "password").read_text().strip()
    authority = secrets / "database-ca.crt"
    os.environ["PGSSLROOTCERT"] = str(authority if authority.exists() else PUBLIC_AUTHORITIES)
    args = {name: value for name, value in config["database"]["args"].items() if not name.startswith("cp_")}
    if code := wait(lambda: database_fault(args, workers=group != "main")):
        return code
    paths = [folder / "homeserver.yaml"]
    if (secrets / "extra.yaml").exists():
        paths.append(secrets / "extra.yaml")
    if group != "main":
        paths += [folder / f"{group}.yaml", instance_file(os.environ["POD_NAME"])]
    app = "synapse.app.homeserver" if group == "main" else "synapse.app.generic_worker"
    words = [word for path in paths for word in ("--config-path", str(path))]
    sys.argv = [app, *words]
    runpy.run_module(app, run_name="__main__")
    return 0


def key_fault(path: Path, expected: str) -> str:
    """Tell what is wrong with the signing key. Synapse would silently make a new one, and be another server."""
    try:
        with path.open() as file:
            ids = [f"{key.alg}:{key.version}" for key in read_signing_keys(file.readlines())]
    except (OSError, ValueError) as error:
        return f"The signing key {path} can't be read: {error}. The server does not start without it."
    if expected and expected not in ids:
        return f"The signing key is {', '.join(ids)}, not {expected}: this would be another server."
    return ""


def database_fault(args: dict[str, Any], *, workers: bool) -> str | None:
    """Tell why Synapse can't use the database yet, or None when it can. Raises `PermissionError` if it never will."""
    try:
        connection = psycopg2.connect(**args)
    except psycopg2.OperationalError as error:
        if "authentication failed" in str(error):
            raise PermissionError(f"The database refuses the password of its Secret: {error}") from None
        return f"no database yet: {error}"
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT to_regclass('schema_version')")
            if cursor.fetchone() == (None,):
                return "no schema yet" if workers else None
            cursor.execute("SELECT version FROM schema_version")
            (version,) = cursor.fetchone() or (0,)
    finally:
        connection.close()
    if workers and version < SCHEMA_VERSION:
        return f"the database has schema {version}; the main process must bring it to {SCHEMA_VERSION} first"
    say(0, f"The database has schema {version}; this release knows {SCHEMA_COMPAT_VERSION} to {SCHEMA_VERSION}.")
    return None


def wait(fault: Callable[[], str | None]) -> int:
    """Return 0 once there is no fault, else the exit code."""
    began, told = time.monotonic(), ""
    while True:
        try:
            reason = fault()
        except PermissionError as error:
            return say(4, str(error))
        if reason is None:
            return 0
        if reason != told:
            say(0, f"Waiting: {reason.strip()}")
            told = reason
        if time.monotonic() - began > PATIENCE:
            return say(5, f"Gave up after {PATIENCE:.0f} s: {reason.strip()}")
        time.sleep(POLL)


def instance_file(name: str) -> Path:
    """Write the one setting that differs between pods of a group."""
    path = Path(os.environ.get("TMPDIR", "/tmp")) / "instance.yaml"  # noqa: S108 (the pod's own)
    path.write_text(yaml.safe_dump({"worker_name": name}))
    return path


def say(code: int, text: str) -> int:
    """Write a line to the pod's log, and return `code`."""
    sys.stderr.write(f"start: {text}\n")
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
