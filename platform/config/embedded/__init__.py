"""Hearth on one machine: a foreground supervisor that brings its own PostgreSQL and Redis.

`python -m config.embedded` (what `make run` becomes). It loads no Django; its children do.
"""
