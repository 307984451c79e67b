-- The end of a server's backups: without this the server would keep write-ahead log for them, as long as it may.
SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots
 WHERE slot_name = 'hearth_backup' AND active_pid IS NOT NULL;
SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = 'hearth_backup';
SELECT 'DROP OWNED BY hearth_backup' WHERE EXISTS (SELECT FROM pg_roles WHERE rolname = 'hearth_backup') \gexec
DROP ROLE IF EXISTS hearth_backup;
