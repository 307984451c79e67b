"""Why a data key is not given. Each text says what it means for the data and what to do next."""

from __future__ import annotations

from typing import ClassVar

from security.errors import SecurityError


class DataKeyRefused(SecurityError):
    """The base. `status` is HTTP's, `code` the word that callers compare."""

    status: ClassVar[int] = 403
    code: ClassVar[str] = "refused"


class Malformed(DataKeyRefused):
    """What was asked has a form that it can't have."""

    status, code = 400, "malformed"


class NotFound(DataKeyRefused):
    """It does not exist, or it is none of the caller's business: both are told alike."""

    status, code = 404, "not-found"

    def __init__(self) -> None:
        super().__init__("There is no such grant or data key for this server. Nothing was opened.")


class GrantEnded(DataKeyRefused):
    """The grant has expired or was revoked. Whoever restores may open another one."""

    status, code = 403, "grant-ended"


class GrantTaken(DataKeyRefused):
    """Somebody else restores into this server, or holds its lease by a later fence."""

    status, code = 409, "grant-taken"


class ServerGone(DataKeyRefused):
    """The server was deleted, or Hearth never knew it: nothing is encrypted or opened for it."""

    status, code = 410, "server-gone"


class KeysErased(DataKeyRefused):
    """The organisation's keys were erased."""

    status, code = 410, "keys-erased"


class TooMany(DataKeyRefused):
    """The caller asks for more than any backup or restore needs. `wait`: seconds until the next is given."""

    status, code = 429, "too-many"

    def __init__(self, wait: int) -> None:
        super().__init__(f"This agent asks too often. Nothing was lost; it may ask again in {wait} seconds.")
        self.wait = wait


class Unavailable(DataKeyRefused):
    """The keys can't be used now. Later they can."""

    status, code = 503, "unavailable"


class Damaged(DataKeyRefused):
    """The data key does not open: it was changed in the database."""

    status, code = 500, "damaged"
