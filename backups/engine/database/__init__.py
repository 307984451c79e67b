"""The database side of the engine: base backups, the stream of WAL, and moments."""
