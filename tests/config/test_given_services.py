"""`DATABASE_URL` and `REDIS_URL` take the place of the embedded PostgreSQL and Redis."""

from __future__ import annotations

import tempfile
from pathlib import Path

import httpx

from tests.bench.floor import free_ports
from tests.services import Services
from tests.stack import Stack


def test_a_start_on_services_that_are_there_already() -> None:
    services = Services()
    services.start()
    try:
        with tempfile.TemporaryDirectory(prefix="hearth-given-", dir="/tmp") as folder:
            Path(folder).chmod(0o711)
            given = {"DATABASE_URL": services.database_url, "REDIS_URL": services.redis_url()}
            stack = Stack(Path(folder) / "state", free_ports(1)[0], given)
            stack.start()
            try:
                names = {Path(process.exe()).name for process in stack.family()}
                assert httpx.get(f"{stack.url}/readyz").json()["status"] == "ready"
            finally:
                stack.stop()
            assert not names & {"postgres", "redis-server"}
            assert not (stack.state / "postgres").exists()
    finally:
        services.stop()
