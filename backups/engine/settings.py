"""What the engine of one server is told: a JSON file, read once at the start. Imports no Django.

Paths in it may be relative: they begin at the file's own folder. Secrets are files of their own, never values here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

MINUTE, HOUR, DAY = 60, 3600, 86_400


class SettingsError(Exception):
    """The settings can't be used. The text says what is wrong with them."""


class Part(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A part of the settings: what is misspelt is refused."""


class Database(Part, frozen=True, kw_only=True):
    """How the engine signs in: by a role that may replicate, and may call `pg_switch_wal()`."""

    host: str
    """The folder of its unix socket, or an address."""
    port: int = 5432
    user: str = "hearth_backup"
    name: str = "postgres"
    password_file: str = ""
    sslmode: str = ""
    """As libpq knows it; empty on a unix socket."""
    sslrootcert: str = ""
    slot: str = "hearth_backup"


class Tools(Part, frozen=True, kw_only=True):
    """PostgreSQL's programs, and who runs them."""

    programs: str = ""
    """The folder of pg_basebackup and pg_receivewal; empty: wherever PATH finds them."""
    uid: int | None = None
    gid: int | None = None
    capabilities: tuple[str, ...] = ()


class FolderStoreAt(Part, frozen=True, kw_only=True, tag="folder"):
    """A store that is a folder."""

    path: str
    name: str = "folder"
    make: bool = False
    """Whether a missing folder is made; without, it is a disk that is not mounted."""


class S3StoreAt(Part, frozen=True, kw_only=True, tag="s3"):
    """A store that is a bucket. The credentials' file holds `{"access_key": ..., "secret_key": ...}`."""

    endpoint: str
    bucket: str
    prefix: str
    region: str = ""
    credentials_file: str = ""
    name: str = "s3"
    certificates: str = ""
    """Authorities to trust, a PEM file; empty: the system's."""
    path_style: bool = True


class HearthAt(Part, frozen=True, kw_only=True):
    """Where Hearth's internal listener is, and the certificate that names this server."""

    address: str = ""
    """`https://host:port`. Empty: as `address_file` says now."""
    address_file: str = ""
    certificate: str
    key: str
    trust: str


class Serve(Part, frozen=True, kw_only=True):
    """Where the engine tells how it is, and takes the last orders, over HTTP: in a pod nobody reads its files."""

    host: str
    port: int


class Policy(Part, frozen=True, kw_only=True):
    """How often. Seconds and bytes."""

    base_every: float = DAY
    media_every: float = 5 * MINUTE
    moment_every: float = 5 * MINUTE
    """At most so long from a change to the moment that names it."""
    moment_at_rest: float = HOUR
    tail_every: float = 30
    sync_every: float = MINUTE
    key_every: float = HOUR
    """How long one data key serves the write-ahead log (decision 19)."""
    spool_bytes: int = 2 * 2**30
    """WAL that waits for a store that is away; beyond this it is given up rather than the customer's disk."""
    uploads: int = 2
    compression: int = 1
    """Of zstd. 3 costs twice the processor's time for a few percent less."""
    base_rate_kb: int = 0
    """Most kB per second that a base backup reads from the database; 0: as fast as it goes."""

    def __post_init__(self) -> None:
        for name in ("base_every", "media_every", "moment_every", "moment_at_rest", "tail_every", "sync_every"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be more than 0 seconds")
        if not (1 <= self.uploads <= 16 and 1 <= self.compression <= 19 and self.spool_bytes >= 64 * 2**20):
            raise ValueError("uploads are 1 to 16, compression is 1 to 19, spool_bytes at least 64 MiB")


class Settings(Part, frozen=True, kw_only=True):
    """All of it."""

    organisation: str
    server: str
    server_name: str
    synapse_version: str = ""
    signing_key_id: str = ""
    database: Database
    tools: Tools = Tools()
    state: str
    """A folder of the engine's own, where WAL is spooled too. Lost, it costs a new line, no backup."""
    store: FolderStoreAt | S3StoreAt
    hearth: HearthAt | None = None
    media: str = ""
    """The folder of Synapse's media store; empty: there is none."""
    media_bucket: S3StoreAt | None = None
    """Where Synapse's S3 provider keeps media, in place of a folder; `prefix` is the provider's, without its end."""
    configuration: dict[str, str] = {}
    """Files to keep in each restore point: name in the archive to path."""
    name_key_file: str = ""
    """32 bytes: the key of the names that media get in the store."""
    policy: Policy = Policy()
    serve: Serve | None = None
    """None: whoever started it reads its status file."""

    def __post_init__(self) -> None:
        if self.media and self.media_bucket is not None:
            raise ValueError("media lie in a folder or in a bucket, not in both")

    @property
    def of(self) -> str:
        """Whose backups, in which store."""
        at = self.store
        place = at.path if isinstance(at, FolderStoreAt) else f"{at.endpoint}/{at.bucket}/{at.prefix}"
        return f"{self.organisation}/{self.server} in {place}"


Located = TypeVar("Located", bound=Part)


def load(path: Path) -> Settings:
    """Read settings; every path in them is absolute afterwards. Raises `SettingsError`."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Settings)
    except OSError as error:
        raise SettingsError(f"{path} can't be read ({error.strerror}). Nothing was backed up.") from None
    except (msgspec.DecodeError, ValueError) as error:
        raise SettingsError(f"{path} is not what the engine needs: {error}. Nothing was backed up.") from None
    return _placed(found, path.resolve().parent)


def at(folder: Path, text: str) -> str:
    """Return a path of the settings, absolute; one that is not given stays empty."""
    return str(folder / text) if text else ""


def located(part: Located, folder: Path) -> Located:
    """Return a part of the settings whose paths are absolute."""
    return msgspec.structs.replace(part, **{name: at(folder, getattr(part, name)) for name in _PATHS[type(part)]})


_PATHS: dict[type, tuple[str, ...]] = {
    Database: ("password_file", "sslrootcert"),
    Tools: ("programs",),
    FolderStoreAt: ("path",),
    S3StoreAt: ("credentials_file", "certificates"),
    HearthAt: ("address_file", "certificate", "key", "trust"),
}


def _placed(found: Settings, folder: Path) -> Settings:
    database = located(found.database, folder)
    if "/" in database.host:
        database = msgspec.structs.replace(database, host=at(folder, database.host))
    return msgspec.structs.replace(
        found,
        database=database,
        store=located(found.store, folder),
        media_bucket=found.media_bucket and located(found.media_bucket, folder),
        hearth=found.hearth and located(found.hearth, folder),
        tools=located(found.tools, folder),
        configuration={name: at(folder, path) for name, path in found.configuration.items()},
        **{name: at(folder, getattr(found, name)) for name in ("state", "media", "name_key_file")},
    )
