"""The keyring's generation; and the guard lets a dump's rows in, where a destroyed version names a retired root key."""

import importlib

from django.db import migrations, models

before = importlib.import_module("security.migrations.0002_guards")
INSERTED = "IF TG_OP = 'INSERT' OR NEW.root_id <> OLD.root_id THEN"
# A destroyed version holds no key, so it needs no root key: `pg_restore --data-only` inserts such rows.
GUARDED = "IF NEW.state <> 'destroyed' AND (TG_OP = 'INSERT' OR NEW.root_id <> OLD.root_id) THEN"


def guard(condition: str) -> str:
    """Return the statement that makes the guard with this condition for looking at the root key."""
    start = before.FORWARD.index("CREATE FUNCTION security_kek_guard")
    end = before.FORWARD.index("CREATE TRIGGER security_kek_guard")
    function = before.FORWARD[start:end]
    return function.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION").replace(INSERTED, condition)


class Migration(migrations.Migration):
    dependencies = [("security", "0002_guards")]
    operations = [
        migrations.CreateModel(
            name="Generation",
            fields=[
                ("id", models.PositiveSmallIntegerField(primary_key=True, serialize=False)),
                ("value", models.UUIDField()),
            ],
        ),
        migrations.RunSQL(guard(GUARDED), guard(INSERTED)),
    ]
