"""Single things of a backup, and all of it for whoever leaves: in formats that need nothing of Hearth's. No Django.

    python -m backups.engine export <request.json>

`everything`: `database.sql.gz` (pg_dump's plain SQL), `media/<id>/<its name>`, `media.csv`, `configuration/` with the
signing key, `decoder/`, `SHA256SUMS` and `README.md`. `tables`: these as CSV or JSON lines. `room`: the files that were
sent to one room. The database is restored beside, to the wanted moment, and removed again. With `archive` all of it
becomes one sealed object beside the backups, and a call that was killed is gone on with.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import msgspec
import psycopg
from psycopg import sql

from backups.engine import names
from backups.engine.catalogue import Catalogue
from backups.engine.media.build import name_key
from backups.engine.media.index import File
from backups.engine.objects import FILES, KeyService, Vault
from backups.engine.progress import Progress
from backups.engine.restore import disk, packing, plain, plan, replay, sealed
from backups.engine.restore.command import Restore
from backups.engine.restore.errors import Cancelled, RestoreError
from backups.engine.restore.media import MediaFetch, ObjectDamaged
from backups.engine.restore.replay import Server
from backups.engine.restore.request import Request, placed
from backups.engine.restore.telling import Telling
from backups.engine.settings import FolderStoreAt, Part
from backups.engine.stores.base import NoSuchObject, Store, StoreError
from provisioning.providers.local.processes import describe_exit, spawn_argv
from security.errors import SecurityError
from security.streams import DataKey

README = Path(__file__).with_name("export.md")
DECODER = Path(__file__).with_name("decoder")
CONFIGURATION = "configuration"
SAFE = {"fsync": "on", "full_page_writes": "on"}
"""A machine that fails meanwhile must not leave a database that only looks whole: the export goes on with it."""
_READ = 1 << 20
_MEDIA = re.compile(rb"mxc://([^/\"\\]+)/([A-Za-z0-9_-]+)")
_CONTENT = "local_content/"


class Export(Part, frozen=True, kw_only=True):
    """What to export, and to where. `request` says which backup; its `settle` counts for nothing."""

    request: Request
    into: str
    """A folder that does not exist or is empty. With `archive` it is the export's own: whatever lies there goes."""
    what: Literal["everything", "tables", "room"]
    database: str = "synapse"
    tables: tuple[str, ...] = ()
    format: Literal["csv", "jsonl"] = "csv"
    room: str = ""
    archive: str = ""
    """The export's id, below which the sealed archive lies in the store of the backups; empty: it stays a folder."""


def load(path: Path) -> Export:
    """Read a request for an export. Raises `RestoreError`."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Export)
    except (OSError, msgspec.DecodeError, ValueError) as error:
        text = f"{path} is not what an export needs: {error}. Nothing was exported."
        raise RestoreError(text, code="BadRequest") from None
    folder = path.resolve().parent
    return msgspec.structs.replace(found, request=placed(found.request, folder), into=str(folder / found.into))


class Exporter:
    """One export. `run` once."""

    def __init__(
        self,
        wanted: Export,
        store: Store,
        opens: Callable[[UUID], DataKey],
        progress: Progress,
        stop: threading.Event,
        *,
        keys: KeyService | None = None,
    ) -> None:
        self._wanted = wanted
        self._request = msgspec.structs.replace(wanted.request, media="", configuration="", settle=None)
        self._vault = Vault(store=store, organisation=wanted.request.organisation, server=wanted.request.server)
        self._opens = opens
        self._progress = progress
        self._stop = stop
        self._keys = keys
        self._into = Path(wanted.into)
        self._restored: dict[str, Any] = {}

    def run(self) -> dict[str, Any]:
        """Export, and return how many files and bytes that are. Raises `RestoreError`."""
        try:
            with sealed.alone(Path(self._request.work)):
                found = self._made() or self._make()
                self._clear()
        except StoreError as error:
            text = f"{error} The database that was fetched stays; start the export again."
            raise RestoreError(text, code=error.code, retry=error.retry) from None
        except OSError as error:
            raise disk.failed(error, error.filename or str(self._into)) from None
        self._progress.say("exported", what=self._wanted.what, **found)
        return found

    def _made(self) -> dict[str, Any] | None:
        """Return what an earlier call made of it, that ended before it could say so."""
        found = sealed.noted(Path(self._request.work), self._wanted.archive) if self._wanted.archive else None
        if found is not None:
            try:
                self._vault.store.head(found["object"])
            except NoSuchObject:
                return None
        return found

    def _make(self) -> dict[str, Any]:
        self._make_place()
        request = self._request
        if self._wanted.what == "everything":
            request = msgspec.structs.replace(request, configuration=str(self._into / CONFIGURATION))
        self._restored = Restore(request, self._vault.store, self._opens, _Inner(self._progress), self._stop).run()
        with disk.spared([self._into], request.spare, self._stop):
            self._read()
            found: dict[str, Any] = self._sums()
            if self._wanted.archive:
                found |= self._archive()
        found["last_commit"] = self._restored.get("last_commit", "")
        if self._wanted.archive:
            sealed.note(Path(request.work), self._wanted.archive, found)
        return found

    def _clear(self) -> None:
        """Remove what it was made of."""
        for place in (Path(self._request.data), Path(self._request.work)):
            if self._wanted.archive and disk.going(place).exists():
                shutil.rmtree(disk.going(place))
            if place.exists():
                disk.remove(place)
        if self._wanted.archive and self._into.exists():
            shutil.rmtree(self._into)

    def _make_place(self) -> None:
        data, work = Path(self._request.data), Path(self._request.work)
        if self._wanted.archive:
            for place in (data, work):
                shutil.rmtree(disk.going(place), ignore_errors=True)
            if not data.exists():  # or a call ended while it removed them: what `work` says of the data is over
                shutil.rmtree(work, ignore_errors=True)
                shutil.rmtree(self._into, ignore_errors=True)
            for place in self._into.iterdir() if self._into.exists() else ():
                if place.name != CONFIGURATION:  # that came with the data
                    disk.wipe(place)
        elif self._into.is_symlink() or (self._into.is_dir() and any(self._into.iterdir())):
            raise RestoreError(f"There is something in {self._into} already. Nothing was touched.", code="NotEmpty")
        if not data.exists():
            self._check_room(data)
        self._into.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _check_room(self, data: Path) -> None:
        """Refuse before anything is fetched where the disk has no room for all of it at once. Raises `RestoreError`."""
        catalogue = Catalogue.read(self._vault.store, self._request.organisation, self._request.server)
        point = plan.make(self._request, catalogue, self._opens).need.point
        out = point.database_bytes // 2 + point.media_bytes if self._wanted.what == "everything" else 0
        at = self._request.store
        # On one disk with the store, the archive needs its place there too.
        times = 2 if self._wanted.archive and isinstance(at, FolderStoreAt) and disk.same(Path(at.path), data) else 1
        disk.check_room(data, point.database_bytes + times * out, spare=self._request.spare)

    def _read(self) -> None:
        """Start the database that was brought back, and take from it what is wanted."""
        request = self._request
        sockets = disk.new_sockets(request.tools)
        server = Server(Path(request.data), Path(request.work), request.tools, self._stop)
        try:
            with server.running(sockets, None, SAFE):
                server.await_ready(None)
                self._take(server)
                server.end()
        finally:
            shutil.rmtree(sockets, ignore_errors=True)

    def _take(self, server: Server) -> None:
        with psycopg.connect(
            host=str(server.sockets), user=self._request.superuser, dbname=self._wanted.database, autocommit=True
        ) as connection:
            if self._wanted.what == "tables":
                for name in self._wanted.tables:
                    self._table(connection, name)
                return
            if self._wanted.what == "room":
                self._media(connection, _of_room(connection, self._wanted.room))
                return
            self._media(connection, None)
            size = _size_of(connection)
        self._dump(server, Telling(self._progress, {"dump": size}))
        self._explain()

    def _explain(self) -> None:
        """Write what all of it is, and put the programs beside it that read it."""
        restored = self._restored
        head = (
            f"# {restored['server_name']}\n\n"
            f"As it was at {restored['to'] or restored['last_commit'] or 'the end of its backups'}, with Synapse "
            f"{restored['synapse_version'] or 'of a version that is not known'} (backup {restored['point']}).\n\n"
        )
        (self._into / "README.md").write_text(head + README.read_text(encoding="utf-8"), encoding="utf-8")
        shutil.copytree(DECODER, self._into / "decoder", ignore=shutil.ignore_patterns("__pycache__"))

    def _archive(self) -> dict[str, Any]:
        """Seal all of it into one object beside the backups, and return what that is."""
        if self._keys is None:
            raise RestoreError("Nobody gives a key to seal the archive with. Nothing was kept.", code="BadRequest")
        name = f"{names.exports(self._wanted.archive)}{os.urandom(4).hex()}.tar"
        try:
            identity, key = self._keys.fresh(names.EXPORT_PURPOSE, name)
        except (SecurityError, OSError) as error:
            text = f"Hearth gives no key for the archive now: {error} The database that was fetched stays."
            raise RestoreError(text, code="KeysAway", retry=True) from None
        telling = Telling(self._progress, {"archive": packing.size_of(self._into)})
        telling.step("archive")
        top = plain.file_name(f"{self._restored['server_name']}-{self._wanted.what}")
        pieces = _told(packing.tar(self._into, top, self._stop), telling)
        ref = self._vault.put(name, pieces, key, FILES, "")
        return {"object": ref.name, "stored": ref.size, "plain": ref.plain, "sha256": ref.sha256, "key": str(identity)}

    def _table(self, connection: psycopg.Connection[Any], name: str) -> None:
        found = connection.execute(
            "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace"
            " WHERE n.nspname = 'public' AND relname = %s AND relkind IN ('r', 'p', 'v', 'm')",
            [name],
        ).fetchone()
        if found is None:
            raise RestoreError(f"There is no table “{name}” in this backup. Nothing was exported.", code="BadRequest")
        table = sql.Identifier(*found)
        query = sql.SQL("COPY (SELECT * FROM {}) TO STDOUT (FORMAT csv, HEADER)").format(table)
        if self._wanted.format == "jsonl":
            # Text format would double each backslash; a CSV without quotes and separators is the bare line.
            query = sql.SQL(
                "COPY (SELECT row_to_json(t) FROM {} t) TO STDOUT (FORMAT csv, QUOTE E'\\x01', DELIMITER E'\\x02')"
            ).format(table)
        path = self._into / f"{name}.{self._wanted.format}"
        with path.open("wb") as file, connection.cursor() as cursor, cursor.copy(query) as rows:
            for piece in rows:
                if self._stop.is_set():
                    raise Cancelled
                file.write(piece)

    def _dump(self, server: Server, telling: Telling) -> None:
        telling.step("dump")
        words = ("-h", str(server.sockets), "-U", self._request.superuser, "--no-owner", self._wanted.database)
        command = replay.command_of("pg_dump", words, self._request.tools)
        with (
            gzip.open(self._into / "database.sql.gz", "wb", compresslevel=4) as file,
            subprocess.Popen(
                spawn_argv(command), cwd="/", env=dict(command.env), stdout=subprocess.PIPE, stderr=subprocess.PIPE
            ) as process,
        ):
            while piece := process.stdout.read(_READ) if process.stdout else b"":
                if self._stop.is_set():
                    process.kill()
                    raise Cancelled
                file.write(piece)
                telling.add("dump", len(piece))
            said = process.stderr.read(4096).decode(errors="replace").strip() if process.stderr else ""
            code = process.wait()
        if code != 0:
            raise RestoreError(f"pg_dump ended early ({describe_exit(code)}): {said}", code="ExportFailed")

    def _media(self, connection: psycopg.Connection[Any], only: set[str] | None) -> None:
        """Fetch files, and give them the names that people gave them."""
        catalogue = Catalogue.read(self._vault.store, self._request.organisation, self._request.server)
        it = plan.make(msgspec.structs.replace(self._request, media=self._wanted.into), catalogue, self._opens)
        files = {
            path: file
            for path, file in plan.files(it, self._vault, self._opens).items()
            if path.startswith(_CONTENT) and (only is None or _id_of(path) in only)
        }
        passing = self._into / ".media"
        self._fetch(it, files, passing)
        known = _described(connection)
        with (self._into / "media.csv").open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(("media_id", "file", "name", "type", "user", "created_ms", "bytes"))
            for path in sorted(files):
                table.writerow(self._place(passing, path, known.get(_id_of(path), ("", "", "", ""))))
        shutil.rmtree(passing, ignore_errors=True)

    def _fetch(self, it: plan.Plan, files: dict[str, File], into: Path) -> None:
        refs = {ref.name: ref for chain in it.runs for run in chain for packs in run.packs for ref in packs.refs()}
        wanted = {name: refs[name] for name in {file.object for file in files.values()} if name in refs}
        telling = Telling(self._progress, {"media": sum(ref.size for ref in wanted.values())})
        telling.step("files")
        disk.check_room(into, sum(file.size for file in files.values()), spare=self._request.spare)
        key = self._request.name_key_file
        fetch = MediaFetch(
            self._vault,
            self._opens,
            into,
            owner=None,
            name_key=name_key(Path(key)) if key else b"",
            telling=telling,
            stop=self._stop,
        )
        try:
            fetch.run(files, wanted)
        except ObjectDamaged as error:
            raise plan.damaged(it.catalogue, {error.name: str(error)}, it.need.to) from None

    def _place(self, passing: Path, path: str, known: tuple[str, str, str, str]) -> tuple[Any, ...]:
        identity = _id_of(path)
        target = Path("media") / identity / plain.file_name(known[0])
        (self._into / target).parent.mkdir(parents=True, exist_ok=True)
        (passing / path).replace(self._into / target)
        name, kind, *rest = known
        return (identity, str(target), plain.cell(name), plain.cell(kind), *rest, (self._into / target).stat().st_size)

    def _sums(self) -> dict[str, int]:
        """Write the checksums of all files; return how many there are, and their bytes."""
        lines, size = [], 0
        for path in packing.files(self._into):
            if self._stop.is_set():
                raise Cancelled
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while piece := file.read(_READ):
                    digest.update(piece)
                    size += len(piece)
            lines.append(f"{digest.hexdigest()}  {path.relative_to(self._into)}\n")
        (self._into / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")
        return {"files": len(lines), "bytes": size}


class _Inner(Progress):
    """Tells of the restore within an export, but not that it is done: the export goes on."""

    def __init__(self, outer: Progress) -> None:
        super().__init__()
        self._outer = outer

    def say(self, event: str, **values: Any) -> None:
        if event != "restored":
            self._outer.say(event, **values)


def _told(pieces: Iterable[bytes], telling: Telling) -> Iterable[bytes]:
    for piece in pieces:
        yield piece
        telling.add("archive", len(piece))


def _size_of(connection: psycopg.Connection[Any]) -> int:
    """Return about how many bytes of SQL a database has."""
    found = connection.execute("SELECT pg_database_size(current_database())").fetchone()
    return int(found[0]) if found else 0


def _id_of(path: str) -> str:
    """Return the media id that Synapse made this path from."""
    return "".join(path.removeprefix(_CONTENT).split("/"))


def _described(connection: psycopg.Connection[Any]) -> dict[str, tuple[str, str, str, str]]:
    """Return name, type, owner and time of uploaded files."""
    rows: Iterable[tuple[str, ...]] = connection.execute(
        "SELECT media_id, coalesce(upload_name, ''), coalesce(media_type, ''), coalesce(user_id, ''),"
        " coalesce(created_ts::text, '') FROM local_media_repository"
    )
    return {row[0]: (row[1], row[2], row[3], row[4]) for row in rows}


def _of_room(connection: psycopg.Connection[Any], room: str) -> set[str]:
    """Return the ids of all media that a room's events name. What clients encrypted stays so."""
    found = set[str]()
    with connection.transaction(), connection.cursor("events") as cursor:
        cursor.execute("SELECT json FROM event_json WHERE room_id = %s AND json LIKE '%%mxc://%%'", [room])
        for (text,) in cursor:
            event = json.dumps(json.loads(text), ensure_ascii=False).encode()
            found |= {match[2].decode() for match in _MEDIA.finditer(event)}
    return found
