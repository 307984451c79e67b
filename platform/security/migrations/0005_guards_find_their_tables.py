"""The guards name their tables whatever the search path is: `pg_restore` empties it."""

from django.db import migrations

GUARDS = ("security_data_key_guard()", "security_kek_guard()")


class Migration(migrations.Migration):
    dependencies = [("security", "0004_grants_and_bundles")]
    operations = [
        migrations.RunSQL(
            [f"ALTER FUNCTION {guard} SET search_path FROM CURRENT" for guard in GUARDS],
            [f"ALTER FUNCTION {guard} RESET search_path" for guard in GUARDS],
        )
    ]
