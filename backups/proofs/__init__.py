"""That backups can be restored, shown by restoring them: full reads, recovery tests, and drills of a lost region."""
