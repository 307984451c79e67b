-- The role with which a server's backups are taken; it may be there already. It may copy the whole cluster and its
-- write-ahead log, see how far that was received, and end a segment of it. It owns nothing and reads no table.
\getenv password BACKUP_PASSWORD
SELECT 'CREATE ROLE hearth_backup' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'hearth_backup') \gexec
ALTER ROLE hearth_backup LOGIN REPLICATION INHERIT CONNECTION LIMIT 8 PASSWORD :'password';
GRANT pg_read_all_stats TO hearth_backup;
GRANT EXECUTE ON FUNCTION pg_switch_wal() TO hearth_backup;
