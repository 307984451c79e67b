-- Hearth's own database, made at the first start.
SELECT 'CREATE DATABASE hearth' WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'hearth') \gexec
