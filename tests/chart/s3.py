"""Synapse's S3 provider in a folder of its own, beside the Synapse environments; `make test` puts it there."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from provisioning.providers.local import environments

TESTS = Path(__file__).resolve().parents[2] / "var" / "test"
LOCK = Path(__file__).with_name("s3-provider.txt")


def s3_provider() -> Path:
    """Return the folder for PYTHONPATH, made first if need be."""
    place = TESTS / f"s3-provider-{hashlib.sha256(LOCK.read_bytes()).hexdigest()[:12]}"
    if place.exists():
        return place
    TESTS.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=".s3-", dir=TESTS))
    words = ["pip", "install", "--quiet", "--target", str(building), "--no-deps", "--require-hashes", "-r", str(LOCK)]
    argv = [str(environments.uv_program()), "--no-config", *words]
    try:
        subprocess.run(argv, check=True, env=environments.uv_environment(), timeout=300)
        if not place.exists():
            building.rename(place)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return place
