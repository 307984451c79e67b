"""What a restore is told: a JSON file. Imports no Django.

Paths in it may be relative: they begin at the file's own folder. It may hold passwords (`settle.passwords`), so whoever
writes it keeps it to itself (mode 0600).
"""

from __future__ import annotations

import uuid
from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec

from backups.engine.restore.errors import RestoreError
from backups.engine.settings import FolderStoreAt, HearthAt, Part, S3StoreAt, Tools, at, located

User = str
Device = tuple[str, str]
"""User id and device id."""


class Living(Part, frozen=True, kw_only=True):
    """Where the living server's database is, to be asked right before: `backups.engine.restore.living`."""

    host: str
    port: int = 5432
    user: str = "synapse"
    password: str
    database: str = "synapse"
    query: str
    """Gives one row with one column of JSON: a `Since`."""


class Since(Part, frozen=True, kw_only=True):
    """What the living server says of now; it is applied to what is restored. None: nobody could be asked.

    `provisioning/providers/since.sql` asks for just this.
    """

    origin: Living | None = msgspec.field(default=None, name="from")
    """Who is asked for all the rest."""
    streams_alone: bool = False
    """Of what it says only the sequences count: a database that was made anew since then knows nobody."""

    locked: tuple[User, ...] | None = None
    """All accounts that are locked."""
    deactivated: tuple[User, ...] | None = None
    """All accounts that are deactivated."""
    erased: tuple[User, ...] | None = None
    admins: tuple[User, ...] | None = None
    """All accounts that administer it; others lose it."""
    devices: tuple[Device, ...] | None = None
    """All sessions that are open. A restored one that is not among them is ended."""
    sequences: dict[str, int] = {}
    """How far each sequence has got."""


class Settle(Part, frozen=True, kw_only=True):
    """What is changed in Synapse's database before it starts for the first time."""

    database: str = "synapse"
    since: Since = Since()
    sessions: Literal["keep", "all"] = "keep"
    """`all`: everybody must sign in again. `keep`: those that `since.devices` names, or all if it names none."""
    lock: tuple[User, ...] = ()
    """Accounts to lock beside those of `since`."""
    deactivate: tuple[User, ...] = ()
    older: bool = False
    """Whoever is asked by `since.from` was itself brought back to a moment before these data, so it lacks accounts that
    they have: it locks more of them, and unlocks none and takes no rights away."""
    moment: datetime | None = None
    """Since when others may have seen more than is in a database that runs, with its zone; without it, since
    `Request.to`. The longer ago, the further its streams go forward."""
    passwords: dict[str, str] = {}
    """New passwords of database roles: what was restored has those of that moment."""


class Request(Part, frozen=True, kw_only=True):
    """All of it. Neither `to` nor `point`: the latest that there is."""

    organisation: str
    server: str
    """Whose backups these are."""
    store: FolderStoreAt | S3StoreAt
    to: datetime | None = None
    """The moment, with its zone: all that was committed until then, and nothing later."""
    point: str = ""
    """Exactly this restore point."""
    data: str
    """PostgreSQL's data folder: must not exist, be empty, or be what a call for the same broke off."""
    media: str = ""
    """Synapse's media store; empty: media are left out."""
    configuration: str = ""
    """A folder for the restore point's configuration and signing key; empty: they are only checked."""
    work: str
    """A folder for what is only needed meanwhile, on the same file system as `data`."""
    signing_key_id: str = ""
    """The key that the server must have, such as `ed25519:a_AbCd`; empty: the one its restore point names."""
    name_key_file: str = ""
    """With it each media file is compared with its keyed hash."""
    tools: Tools = Tools()
    """PostgreSQL's programs; their user gets data and media."""
    spare: int = 0
    """Bytes of the disk that must stay free for others."""
    superuser: str = "postgres"
    hearth: HearthAt | None = None
    grant: uuid.UUID | None = None
    """What opens the data keys at Hearth."""
    settle: Settle | None = Settle()
    """None: the database is left as it was at that moment."""
    check: bool = False
    """Look at the structure of the database by `pg_amcheck`, where there is one. For throw-away instances: it makes an
    extension there."""


def load(path: Path) -> Request:
    """Read a request; every path in it is absolute afterwards. Raises `RestoreError`."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Request)
    except OSError as error:
        raise _wrong(f"{path} can't be read ({error.strerror})") from None
    except (msgspec.DecodeError, ValueError) as error:
        raise _wrong(f"{path} is not what a restore needs: {error}") from None
    return check(placed(found, path.resolve().parent))


def check(found: Request) -> Request:
    """Return the request if its parts fit together. Raises `RestoreError`."""
    if found.to is not None and found.point:
        raise _wrong("A restore goes to a moment or to a restore point, not to both")
    settled = found.settle.moment if found.settle else None
    if any(each is not None and each.tzinfo is None for each in (found.to, settled)):
        raise _wrong("The moment has no time zone")
    return found


def _wrong(text: str) -> RestoreError:
    return RestoreError(f"{text}. Nothing was restored or changed.", code="BadRequest")


def placed(found: Request, folder: Path) -> Request:
    """Return the request with all paths absolute."""
    return msgspec.structs.replace(
        found,
        store=located(found.store, folder),
        hearth=found.hearth and located(found.hearth, folder),
        tools=located(found.tools, folder),
        **{
            name: at(folder, getattr(found, name))
            for name in ("data", "media", "configuration", "work", "name_key_file")
        },
    )
