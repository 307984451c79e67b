"""A worker in a process of its own, on the test's database, which dies at the moment it names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from django.conf import settings
from django.db import connection

ROOT = Path(__file__).resolve().parents[2]


def kill_at(moment: str, module: str, *words: str) -> None:
    """Run `module` with `words` until its first line says `moment`, and end it with `kill -9` there."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *words],
        cwd=ROOT,
        env={
            **os.environ,
            "DATABASE_URL": os.environ["DATABASE_URL"].replace("/hearth?", f"/{connection.settings_dict['NAME']}?"),
            "HEARTH_STATE": str(settings.STATE),
            "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}",
        },
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline().strip() == moment
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
