"""`python -m config.embedded.manage keys show`: `manage.py` on the Hearth that runs on this state folder.

The embedded PostgreSQL and Redis are on sockets whose addresses nobody types. Other settings are those of the shell.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from config.embedded import children
from config.embedded.services import Postgres, Redis
from config.env import ROOT, read


def environment() -> dict[str, str]:
    """Return what `manage.py` is started with, or end with a sentence where no Hearth runs there."""
    settings = read()
    state = Path(settings["HEARTH_STATE"]).expanduser().resolve()
    services: dict[str, Postgres | Redis] = {"DATABASE_URL": Postgres(state), "REDIS_URL": Redis(state)}
    for name, service in services.items():
        if not settings[name] and not service.socket.exists():
            sys.exit(f"No Hearth runs on {state}. Nothing was done. Start it (make run), or set HEARTH_STATE.")
    urls = {name: settings[name] or service.url for name, service in services.items()}
    return children.django_environment(state, urls["DATABASE_URL"], urls["REDIS_URL"])


def main(words: list[str]) -> None:
    """Become `manage.py` with these words."""
    given = environment()
    os.chdir(ROOT)
    os.execve(sys.executable, [sys.executable, "manage.py", *words], given)  # noqa: S606 (our own program)


if __name__ == "__main__":
    main(sys.argv[1:])
