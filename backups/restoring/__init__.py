"""Bringing a server back from its backups: what can be chosen, the verbs, the steps, and what goes by itself after."""
