"""The keyring in a dump: `pg_dump` takes it and `pg_restore --data-only` brings it back, guards and all."""

from __future__ import annotations

import os
import subprocess
import uuid
from pathlib import Path

import pytest
from django.db import IntegrityError, connection, transaction

from audit.services import SYSTEM
from security.keyring import deks, erasure, keks, rewrap, roots
from security.keyring.deks import Context
from security.models import DataKey, Erasure, KeyEncryptionKey, RootKey
from tests.services import POSTGRES

OWNER, ERASED = uuid.uuid4(), uuid.uuid4()
TABLES = ("security_rootkey", "security_keyencryptionkey", "security_datakey", "security_erasure")


def tool(name: str, *words: str) -> None:
    """Run one of PostgreSQL's own programs on the test's database."""
    database = connection.settings_dict["NAME"]
    url = os.environ["DATABASE_URL"].replace("/hearth?", f"/{database}?").replace("postgres:", "postgresql:")
    done = subprocess.run([str(POSTGRES / name), "--dbname", url, *words], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def rows() -> list[object]:
    return [
        [{k: bytes(v) if isinstance(v, memoryview) else v for k, v in row.items()} for row in found.values()]
        for found in (
            RootKey.objects.order_by("pk"), KeyEncryptionKey.objects.order_by("pk"), DataKey.objects.order_by("pk"),
            Erasure.objects.order_by("pk"),
        )
    ]  # fmt: skip


@pytest.mark.django_db(transaction=True)
def test_a_dump_of_the_data_comes_back_through_the_guards(tmp_path: Path) -> None:
    first = deks.new_data_key(Context(OWNER, "backup.wal"))
    keks.ensure_kek(ERASED)
    erasure.request(SYSTEM, ERASED)
    erasure.advance()
    keks.rotate(SYSTEM, OWNER, compromised=True)
    rewrap.drive(per_second=1e6)
    keks.destroy(SYSTEM, KeyEncryptionKey.objects.get(owner=OWNER, version=1))
    roots.rotate_root(SYSTEM)
    roots.move_keks(SYSTEM)
    assert RootKey.objects.filter(state="retired", keks__state="destroyed").exists(), "what the guard used to refuse"
    before, file = rows(), str(tmp_path / "dump")
    tool("pg_dump", "--data-only", "--format=custom", "--file", file, *(f"--table={name}" for name in TABLES))
    with connection.cursor() as cursor:
        cursor.execute(f"truncate {', '.join(TABLES)}")
    keks.cache.clear()
    tool("pg_restore", "--data-only", "--exit-on-error", file)
    assert rows() == before
    assert deks.open_data_key(first.id, Context(OWNER, "backup.wal")).value == first.key.value
    gone = KeyEncryptionKey.objects.get(owner=ERASED)
    with pytest.raises(IntegrityError), transaction.atomic():
        KeyEncryptionKey.objects.filter(pk=gone.pk).update(state="active")
