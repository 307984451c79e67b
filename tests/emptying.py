"""Empty the database after a test that commits: what Django's own `flush` does, in a quarter of its time.

`flush` truncates all tables, each with new files on disk for it and its indexes, and then makes all content types and
permissions again. Few tests fill more than ten tables, with a few rows each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db import connections

if TYPE_CHECKING:
    from django.test import TransactionTestCase

# What migrations make and no test changes is kept. As with `flush` each table is locked first: what a thread of the
# test has not committed yet is waited for, so that it can't appear in the next test. Foreign keys and append-only
# tables' triggers do not act in a replica.
STATEMENT = """
DO $$
DECLARE one regclass;
BEGIN
    PERFORM set_config('session_replication_role', 'replica', true);
    FOR one IN
        SELECT oid FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
            AND relname NOT IN ('django_content_type', 'auth_permission', 'django_migrations')
        ORDER BY relname
    LOOP
        EXECUTE format('LOCK TABLE %s', one);
        IF pg_relation_size(one) > 1048576 THEN
            EXECUTE format('TRUNCATE %s CASCADE', one);
        ELSE
            EXECUTE format('DELETE FROM %s', one);
        END IF;
    END LOOP;
END $$
"""


def empty(_: TransactionTestCase) -> None:
    """Take the place of `TransactionTestCase._fixture_teardown`."""
    for connection in connections.all():
        with connection.cursor() as cursor:
            cursor.execute(STATEMENT)
