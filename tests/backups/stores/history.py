"""A server's backups as the engine names them, of small made-up bytes: for what looks at names and manifests alone."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from backups.engine import manifest, names
from backups.engine.manifest import MediaRun, Moment, Packed, Packs, Point, Ref
from backups.engine.stores.base import Store
from security.streams import DataKey
from tests.backups.stores.contract import noise

ORGANISATION, SERVER = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))
BEGAN = datetime(2026, 11, 1, 12, tzinfo=UTC)


@dataclass
class History:
    """Writes to `store` what the engine would, in its order."""

    store: Store
    key: DataKey = field(default_factory=DataKey.fresh)
    steps: int = 0
    line: str = field(default_factory=lambda: names.new_id(BEGAN))
    previous: str = ""
    segment: int = 1
    run: Ref | None = None

    def data(self, name: str, size: int = 50_000) -> Ref:
        self.steps += 1
        stored = self.store.put(name, [noise(size, self.steps)])
        return Ref(
            name=name,
            size=stored.size,
            sha256=stored.sha256,
            mark=stored.mark,
            key=self.key.id,
            part_of="x",
            plain=size,
        )

    def wal(self) -> Ref:
        found = self.data(names.wal(self.line, f"00000001{0:08X}{self.segment:08X}"))
        self.segment += 1
        return found

    def media(self) -> Ref:
        """Write a media run of two objects."""
        identity = names.new_id(self._at())
        packs = [self.data(names.media(identity, number)) for number in range(2)]
        index = self.data(names.media_index(identity))
        made = MediaRun(
            **self._sealed(identity),
            whole=True,
            chain=1 if self.run else 0,
            previous=self.run,
            index=index,
            packs=(
                Packs(
                    run=identity,
                    key=self.key.id,
                    objects=tuple(
                        Packed(number=number, size=each.size, sha256=each.sha256, mark=each.mark, plain=each.plain)
                        for number, each in enumerate(packs)
                    ),
                ),
            ),
            files=2,
            bytes=2,
        )
        self.run = self._manifest(names.media_run(identity), made)
        return self.run

    def moment(self, *wal: Ref) -> str:
        identity = names.new_id(self._at())
        made = Moment(
            **self._sealed(identity),
            line=self.line,
            number=self.steps,
            previous=self.previous,
            timeline=1,
            lsn=f"0/{self.segment * names.SEGMENT_SIZE:X}",
            wal=wal,
            media=self.run,
        )
        stored = self._manifest(names.moment(self.line, identity), made)
        self.previous = stored.sha256
        return stored.name

    def point(self) -> str:
        """Write a restore point that begins at the next segment and needs it."""
        identity = names.new_id(self._at())
        begin = self.segment * names.SEGMENT_SIZE
        base, configuration = self.data(names.base(identity), 3_000_000), self.data(names.configuration(identity))
        self.moment(self.wal())
        made = Point(
            **self._sealed(identity),
            server_name="alice.example.org",
            synapse_version="1.140.0",
            signing_key_id="ed25519:a",
            postgres_version=180004,
            system="1",
            line=self.line,
            timeline=1,
            begin=f"0/{begin + 40:X}",
            end=f"0/{begin + 4000:X}",
            base=base,
            configuration=configuration,
            media=self.run,
        )
        return self._manifest(names.point(identity), made).name

    def _at(self) -> datetime:
        self.steps += 1
        return BEGAN + timedelta(minutes=self.steps)

    def _sealed(self, identity: str) -> dict[str, Any]:
        at = BEGAN + timedelta(minutes=self.steps)
        return {"organisation": ORGANISATION, "server": SERVER, "id": identity, "at": at, "key": self.key.id}

    def _manifest(self, name: str, made: Point | Moment | MediaRun) -> Ref:
        data = manifest.seal(made, self.key, name)
        stored = self.store.put(name, [data])
        assert stored.sha256 == hashlib.sha256(data).hexdigest()
        return Ref(name=name, size=len(data), sha256=stored.sha256, mark=stored.mark, key=self.key.id)
