"""What all parts of the engine share. Imports no Django."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from backups.engine import memory
from backups.engine.database.postgres import Postgres
from backups.engine.faults import Faults
from backups.engine.keys import Keys
from backups.engine.manifest import Ref
from backups.engine.objects import Vault
from backups.engine.progress import Progress
from backups.engine.settings import Policy, Settings
from backups.engine.state import Memory


class MediaResult(Protocol):
    """What a run over the media store has found."""

    @property
    def ref(self) -> Ref | None: ...

    @property
    def files(self) -> int: ...

    @property
    def bytes(self) -> int: ...

    @property
    def new_bytes(self) -> int: ...


class Media(Protocol):
    """The engine's media side."""

    def run(self, *, at: datetime | None = None, full: bool = False) -> MediaResult:
        """Store what is new. `at` is the database's time before; `full` makes an index that needs none before it."""


@dataclass
class Work:
    """One server's engine. `policy` may be replaced at any time."""

    settings: Settings
    policy: Policy
    memory: Memory
    vault: Vault
    keys: Keys
    postgres: Postgres
    progress: Progress
    faults: Faults
    media: Media | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    media_turn: threading.Lock = field(default_factory=threading.Lock)
    """One run over the media at a time."""

    def run_media(self, at: datetime, *, full: bool) -> MediaResult | None:
        """Run over the media store, where there is one."""
        if self.media is None:
            return None
        with self.media_turn:
            found = self.media.run(at=at, full=full)
            if found.new_bytes:
                memory.give_back()
            return found
