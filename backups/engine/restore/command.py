"""One restore from its beginning to its end. Imports no Django.

    python -m backups.engine restore <request.json>

The steps: choose what is read and check that it is there (`plan`), the base backup's files (`base`), the write-ahead
log to the wanted moment (`replay`), what must be true before Synapse starts (`settle`), the media meanwhile (`media`),
all of it onto the disk (`finish`). Ended at any point, the same call again goes on or begins anew, as is right.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from backups.engine import configuration
from backups.engine.catalogue import Catalogue
from backups.engine.configuration import ConfigurationError
from backups.engine.database import lsn
from backups.engine.manifest import Ref
from backups.engine.media.build import name_key
from backups.engine.names import SEGMENT_SIZE
from backups.engine.objects import Vault
from backups.engine.progress import Progress
from backups.engine.restore import disk, plan
from backups.engine.restore.database import Database
from backups.engine.restore.errors import Cancelled, RestoreError
from backups.engine.restore.folder import Folder, Reached
from backups.engine.restore.media import MediaFetch, ObjectDamaged
from backups.engine.restore.plan import Plan
from backups.engine.restore.request import Request
from backups.engine.restore.supply import AHEAD
from backups.engine.restore.telling import Telling
from backups.engine.settings import SettingsError
from backups.engine.stores.base import Store, StoreError
from security.streams import StreamError
from security.streams.flow import Keys

if TYPE_CHECKING:
    from backups.engine.restore.settle import Settled


class Restore:
    """One restore. `run` once; `cancel` at any time, by any thread or a signal's handler."""

    def __init__(
        self, request: Request, store: Store, opens: Keys, progress: Progress, stop: threading.Event | None = None
    ) -> None:
        self._request = request
        self._vault = Vault(store=store, organisation=request.organisation, server=request.server)
        self._opens = opens
        self._progress = progress
        self._stop = stop or threading.Event()
        self._owner = disk.owner_of(request.tools)
        self._data = Path(request.data)
        self._timed = _Clock()

    def cancel(self) -> None:
        """End soon; `run` then raises `Cancelled`."""
        self._stop.set()

    def run(self) -> dict[str, Any]:
        """Restore, and return what came of it: evidence for whoever asks later. Raises `RestoreError`."""
        began = time.monotonic()
        try:
            with Folder(self._request) as folder:
                if not folder.state.done:
                    self._run(folder, began)
                found = folder.state.result
        except StoreError as error:
            text = f"{error} What was fetched stays; start the restore again."
            raise RestoreError(text, code=error.code, retry=error.retry) from None
        except OSError as error:
            raise disk.failed(error, error.filename or self._request.data) from None
        self._progress.say("restored", **found)
        return found

    def _run(self, folder: Folder, began: float) -> None:
        with self._timed("plan"):
            it = self._plan()
            self._check_room(it, folder)
        telling = Telling(self._progress, it.totals)
        self._say_plan(it, telling)
        kept = self._configuration(it)
        database = Database(
            self._request,
            self._vault,
            _opens(self._opens),
            self._stop,
            it=it,
            folder=folder,
            telling=telling,
            timed=self._timed,
        )
        with self._spared(), ThreadPoolExecutor(1, "restore-media") as pool:
            media = pool.submit(self._media, it, folder, telling)
            media.add_done_callback(self._end_when_failed)
            try:
                reached, settled = database.run()
            except BaseException as error:
                self._stop.set()
                raise self._cause(media, error) from None
            telling.step("media")
            files = media.result()
        self._keep_configuration(kept)
        with self._timed("finish"):
            telling.step("finish")
            self._sync(folder)
        found = _evidence(it, self._request, reached, settled, files)
        found["checked"] = folder.state.checked
        found["seconds"] = {**self._timed.seconds, "all": round(time.monotonic() - began, 3)}
        folder.state.done, folder.state.result = True, msgspec.to_builtins(found)
        folder.save()

    # --- what is read --------------------------------------------------------------------------------------------

    def _plan(self) -> Plan:
        catalogue = Catalogue.read(self._vault.store, self._request.organisation, self._request.server)
        return plan.make(self._request, catalogue, self._opens)

    def _check_room(self, it: Plan, folder: Folder) -> None:
        point = it.need.point
        if folder.state.point and folder.state.point != point.id:
            # A newer restore point serves the same moment now; what the older one left is no use to it.
            if self._data.exists():
                folder.wipe(self._data)
            folder.state.data = ""
        folder.state.point = point.id
        folder.save()
        if not folder.state.data:
            beside = self._request.media and disk.same(self._data, Path(self._request.media))
            media = point.media_bytes if beside else 0
            wanted = point.database_bytes + 2 * AHEAD * SEGMENT_SIZE + media
            disk.check_room(self._data, wanted, spare=self._request.spare)

    def _say_plan(self, it: Plan, telling: Telling) -> None:
        point, window = it.need.point, it.window
        self._progress.say(
            "restore-begins",
            point=point.id,
            point_at=point.at,
            line=point.line,
            to=it.need.to,
            window=[window.begin, window.tail or window.end] if window else None,
            database_bytes=point.database_bytes,
            wal_segments=len(it.need.wal),
            media_files=point.media_files,
            **{f"{name}_bytes": size for name, size in telling.totals.items()},
        )

    def _configuration(self, it: Plan) -> dict[str, bytes]:
        """Return the files of the restore point, the signing key among them."""
        point = it.need.point
        try:
            found = configuration.read(self._vault.read(point.configuration, _opens(self._opens)))
        except (StreamError, ConfigurationError) as error:
            raise plan.damaged(it.catalogue, {point.configuration.name: str(error)}, it.need.to) from None
        wanted = self._request.signing_key_id or point.signing_key_id
        if not wanted:
            return found
        try:
            configuration.assert_signing_key(found, wanted)
        except ConfigurationError as error:
            raise RestoreError(str(error), code="WrongSigningKey") from None
        return found

    def _keep_configuration(self, files: dict[str, bytes]) -> None:
        if not self._request.configuration:
            return
        folder = Path(self._request.configuration)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, data in files.items():
            path = folder / name
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            handle = disk.create(path, 0o600, None)
            with os.fdopen(handle, "wb") as file:
                file.write(data)

    # --- the rest ------------------------------------------------------------------------------------------------

    def _media(self, it: Plan, folder: Folder, telling: Telling) -> int:
        """Fetch the media, in a thread beside the database. Return how many files there are."""
        if not self._request.media or not it.runs:
            return 0
        with self._timed("media"):
            if not folder.state.media:
                folder.state.media = True
                folder.save()
            files = plan.files(it, self._vault, self._opens)
            refs: dict[str, Ref] = {
                ref.name: ref for chain in it.runs for run in chain for packs in run.packs for ref in packs.refs()
            }
            place = Path(self._request.media)
            disk.check_room(place, sum(each.size for each in files.values()) // 2, spare=self._request.spare)
            fetch = MediaFetch(
                self._vault,
                _opens(self._opens),
                place,
                owner=self._owner,
                name_key=self._name_key(),
                telling=telling,
                stop=self._stop,
            )
            try:
                fetch.run(files, refs)
            except ObjectDamaged as error:
                raise plan.damaged(it.catalogue, {error.name: str(error)}, it.need.to) from None
        return len(files)

    def _name_key(self) -> bytes:
        if not self._request.name_key_file:
            return b""
        try:
            return name_key(Path(self._request.name_key_file))
        except SettingsError as error:
            raise RestoreError(f"{error} Nothing was restored.", code="BadRequest") from None

    def _sync(self, folder: Folder) -> None:
        """Have all of it on the disk; only then it may be said that it is done."""
        places = [self._data, *([Path(self._request.media)] if self._request.media else [])]
        disk.sync(place for place in places if place.exists())
        folder.clean()

    def _spared(self) -> contextlib.AbstractContextManager[None]:
        places = [self._data, *([Path(self._request.media)] if self._request.media else [])]
        return disk.spared(places, self._request.spare, self._stop)

    def _end_when_failed(self, media: Future[int]) -> None:
        if not media.cancelled() and media.exception() is not None:
            self._stop.set()

    def _cause(self, media: Future[int], error: BaseException) -> BaseException:
        """Return why it ended: where the media failed, the database was only told to stop."""
        if isinstance(error, Cancelled) and media.exception() is not None:
            return media.exception() or error
        return error


class _Clock:
    """How long parts took, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 3)


def _opens(keys: Keys) -> Callable[..., Any]:
    return keys if callable(keys) else lambda _: keys


def _evidence(it: Plan, request: Request, reached: Reached, settled: Settled | None, files: int) -> dict[str, Any]:
    point = it.need.point
    return {
        "point": point.id,
        "to": it.need.to,
        "line": point.line,
        "server_name": point.server_name,
        "synapse_version": point.synapse_version,
        "signing_key_id": point.signing_key_id,
        "reached": lsn.text(reached.end),
        "last_commit": reached.last,
        "left_out_later": reached.stopped,
        "media_files": files,
        "media_hashed": bool(request.name_key_file),
        "settled": None if settled is None else settled.told,
    }
