"""Data keys for agents: fresh ones for their own server, and, under a leased grant, those of the backups they restore.

`client` imports no Django: agents use it.
"""
