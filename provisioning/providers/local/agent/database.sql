-- Role and database of one homeserver; all of it may be there already. Prints "new" when the database is made.
\getenv password SYNAPSE_PASSWORD
SELECT 'CREATE ROLE synapse' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'synapse') \gexec
ALTER ROLE synapse LOGIN PASSWORD :'password';
SELECT 'new' WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'synapse');
-- From template0: the cluster's own UTF8 and locale C, with nothing that template1 may have got.
SELECT 'CREATE DATABASE synapse OWNER synapse TEMPLATE template0'
 WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'synapse') \gexec
