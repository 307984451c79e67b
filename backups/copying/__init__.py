"""Copies of backups in a second store: by the clock, within bounds, and back again when the first store was lost."""
