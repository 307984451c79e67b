"""Bringing a server back from its backups, always into a new place. Imports no Django."""
