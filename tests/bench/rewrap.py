"""How long 100,000 data keys take to move to a new version with a key file as the root, and what is read for it.

Objects of real bytes lie in a folder meanwhile; every opening of a file of theirs is counted (an audit hook of the
interpreter), and so is every table that a statement names: rewrapping reads the keyring and no data.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from tests.services import Services

COUNT = 100_000
OBJECTS = 64
TABLE = re.compile(r'(?:from|update|into|join)\s+"?([a-z_]+_[a-z_]+)"?', re.IGNORECASE)


class Watch:
    """Counts what is read of the data while it is switched on."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.on = str(folder), False
        self.bytes = self.opened = 0
        self.tables: set[str] = set()
        sys.addaudithook(self._event)

    def _event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.on and event == "open" and str(arguments[0]).startswith(self.folder):
            self.opened += 1
            self.bytes += Path(str(arguments[0])).stat().st_size

    def statement(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        """A wrapper for Django's connection."""
        self.tables |= set(TABLE.findall(sql))
        return execute(sql, params, many, context)


def main() -> int:
    """Start PostgreSQL, measure, print one line of JSON."""
    services = Services()
    services.start()
    try:
        print(json.dumps(_measure(services)), flush=True)  # noqa: T201 (this is a command)
    finally:
        services.stop()
    return 0


def _measure(services: Services) -> dict[str, object]:
    _settings(services)
    from django.core.management import call_command  # noqa: PLC0415 (needs the settings)
    from django.db import connection  # noqa: PLC0415

    from audit.services import SYSTEM  # noqa: PLC0415
    from security.keyring import deks, keks, rewrap  # noqa: PLC0415
    from security.models import DataKey, KeyEncryptionKey  # noqa: PLC0415

    call_command("migrate", interactive=False, verbosity=0)
    owner = uuid.uuid4()
    with tempfile.TemporaryDirectory() as folder:
        made, created = _fill(owner, Path(folder))
        keks.rotate(SYSTEM, owner)
        keks.cache.clear()
        watch = Watch(Path(folder))
        began = time.perf_counter()
        watch.on = True
        with connection.execute_wrapper(watch.statement):
            moved = rewrap.drive(per_second=1e9)
        watch.on = False
        seconds = time.perf_counter() - began
    strangers = {table for table in watch.tables if not table.startswith(("security_", "audit_"))}
    assert moved == COUNT
    assert not strangers, strangers
    assert not DataKey.objects.exclude(kek__version=2).exists()
    assert KeyEncryptionKey.objects.get(owner=owner, version=1).state == "retired"
    context = deks.Context(owner, "bench", None, "0")
    assert bytes(deks.open_data_key(made.id, context).value) == bytes(made.key.value)
    return {
        "rewrap_100k_s": round(seconds, 2),
        "data_bytes_read": watch.bytes,
        "data_files_opened": watch.opened,
        "per_second": round(COUNT / seconds),
        "make_100k_s": round(created, 2),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def _fill(owner: uuid.UUID, folder: Path) -> tuple[Any, float]:
    """Make the data keys, and files that stand for what they encrypt."""
    from security.keyring import deks, keks  # noqa: PLC0415 (needs the settings)
    from security.models import DataKey  # noqa: PLC0415
    from security.secret import Key  # noqa: PLC0415

    for number in range(OBJECTS):
        (folder / str(number)).write_bytes(os.urandom(65_536))
    began = time.perf_counter()
    first = deks.new_data_key(deks.Context(owner, "bench", None, "0"))
    kek = keks.ensure_kek(owner)
    with keks.open_kek(kek) as wrapping:
        for start in range(1, COUNT, 5000):
            rows = [DataKey(kek=kek, owner=owner, purpose="bench", object=str(n)) for n in range(start, start + 5000)]
            for row in rows[: COUNT - start]:
                with Key.fresh() as key:
                    row.wrapped = deks.wrap_with(wrapping, kek.pk, row, key)
            DataKey.objects.bulk_create(rows[: COUNT - start])
    return first, time.perf_counter() - began


def _settings(services: Services) -> None:
    for name in [name for name in os.environ if name.startswith("HEARTH_")]:
        del os.environ[name]
    os.environ |= {
        "HEARTH_SECRET_KEY": "only-for-measuring-0123456789-0123456789-0123456789",
        "HEARTH_STATE": str(services.folder / "state"),
        "DATABASE_URL": services.database_url,
        "REDIS_URL": services.redis_url(),
        "DJANGO_SETTINGS_MODULE": "config.settings",
    }
    import django  # noqa: PLC0415 (needs the settings)

    django.setup()


if __name__ == "__main__":
    sys.exit(main())
