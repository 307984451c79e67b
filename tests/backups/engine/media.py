"""A media store as Synapse makes it, and backups of it in a folder."""

from __future__ import annotations

import os
import random
import string
import time
from pathlib import Path

from backups.engine import manifest, names
from backups.engine.manifest import MediaRun, Ref
from backups.engine.media import unpack
from backups.engine.media.index import File
from backups.engine.media.packs import keyed
from backups.engine.media.run import Media
from backups.engine.media.scan import DiskSource
from backups.engine.objects import Stretch, Vault
from backups.engine.stores.base import Store
from tests.backups.keys import MemoryKeys

NAME_KEY = bytes(range(32))


class Files:
    """Makes media files. `age` seconds ago, so that they are settled."""

    def __init__(self, root: Path, seed: int = 1) -> None:
        self.root = root
        self._random = random.Random(seed)
        root.mkdir(parents=True, exist_ok=True)

    def add(self, data: bytes, *, thumbnails: int = 0) -> str:
        """Put a file where Synapse would; return its path below the media store."""
        identity = "".join(self._random.choices(string.ascii_letters, k=24))
        place = f"{identity[:2]}/{identity[2:4]}/{identity[4:]}"
        self.write(f"local_content/{place}", data)
        for number in range(thumbnails):
            self.write(f"local_thumbnails/{place}/{32 << number}-{32 << number}-image-png-crop", data[: 64 << number])
        return f"local_content/{place}"

    def write(self, path: str, data: bytes) -> None:
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)

    def age(self, seconds: float = 7200) -> None:
        """Make everything look that much older."""
        then = time.time() - seconds
        for place in [self.root, *self.root.rglob("*")]:
            os.utime(place, (then, then), follow_symlinks=False)

    def all(self) -> dict[str, bytes]:
        """What there is of what is kept."""
        found = (path for top in ("local_content", "local_thumbnails") for path in (self.root / top).rglob("*"))
        return {str(path.relative_to(self.root)): path.read_bytes() for path in found if path.is_file()}


class Backups:
    """Runs over a media store, and what comes back of them."""

    def __init__(self, folder: Path, store: Store, root: Path) -> None:
        self.keys = MemoryKeys()
        self.vault = Vault(store=store, organisation="alice-and-friends", server="home")
        self.store = store
        self.state = folder / "state"
        self.root = root
        self._stretch = Stretch(self.keys)

    def media(self, **changes: object) -> Media:
        """A run's other half, as after a restart of the engine."""
        parts = {
            "vault": self.vault,
            "source": DiskSource(self.root),
            "state": self.state,
            "name_key": NAME_KEY,
            "key": lambda run: self._stretch.key("backup.media", run),
        }
        return Media(**(parts | changes))  # type: ignore[arg-type]

    def chain(self, ref: Ref) -> list[MediaRun]:
        """The manifests of an index, the newest first, their seals checked."""
        found: list[MediaRun] = []
        while True:
            data = b"".join(self.store.get(ref.name))
            run = manifest.read(data, MediaRun, ref.name)
            manifest.check(run, self.keys.open, ref.name)
            found.append(run)
            if run.chain == 0 or run.previous is None:
                return found
            ref = run.previous

    def files(self, ref: Ref) -> dict[str, File]:
        return unpack.files(self.vault, self.keys.open, self.chain(ref))

    def restored(self, ref: Ref) -> dict[str, bytes]:
        """All files of an index, each compared with its keyed hash."""
        files = self.files(ref)
        refs = {each.name: each for run in self.chain(ref) for each in run.refs()}
        places: dict[str, dict[int, list[File]]] = {}
        for file in files.values():
            places.setdefault(file.object, {}).setdefault(file.at, []).append(file)
        found = {file.path: b"" for file in files.values()}
        for name, some in places.items():
            if name:
                wanted = [some[at][0] for at in sorted(some)]
                for file, piece in unpack.contents(self.vault.read(refs[name], self.keys.open), wanted, name):
                    for same in some[file.at]:
                        found[same.path] += bytes(piece or b"")
        for path, data in found.items():
            digest = keyed(NAME_KEY)
            digest.update(data)
            assert digest.digest() == files[path].hash
        return found

    def contents(self) -> list[str]:
        """Names of the objects with contents of files."""
        return [each.name for each in self.store.listing(names.MEDIA) if names.is_contents(each.name)]
