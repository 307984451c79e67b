"""Names that are used once, on servers that refuse a taken name by themselves and on those that don't."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

from backups.engine.stores.base import NoSuchObject, ObjectExists, StoreError
from backups.engine.stores.connection import Connection, PreconditionFailed

TOKEN = "hearth-put"  # noqa: S105 (not a secret: it tells whose put an object is)
PROBE = ".hearth-probe"
"""An object that is no backup: whether the server refuses to write it again is how we learn what it can do."""
_CONDITION = {"IfNoneMatch": "*"}
_LOCKS = 64
EMPTY_CRC32 = "AAAAAA=="
"""Of no bytes at all, in Base64."""


class WriteOnce:
    """Lets a write through only under a new name.

    Asked once, a server that refuses taken names is relied on. With others we look first, one writer of a name at a
    time; a writer in another process could still come between, and then versioning keeps both.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._call = connection.call
        self.crc32 = True
        """Whether the server takes CRC32 checksums; known after `supported`."""
        self._lock = threading.Lock()
        self._known: dict[bool, bool] = {}
        self._names = [threading.Lock() for _ in range(_LOCKS)]

    def guarded(
        self, name: str, token: str, write: Callable[..., dict[str, Any]], *, parts: bool = False
    ) -> dict[str, Any]:
        """Call `write` so that it refuses a taken name, and return its answer. `parts`: it completes parts.

        An answer may be lost and the write sent again: then it is our own object that took the name, as `token` tells.
        """
        try:
            if self.supported(parts=parts):
                return write(**_CONDITION)
            with self._names[hash(name) % _LOCKS]:
                self._look(name)
                return write()
        except (PreconditionFailed, NoSuchObject):  # a completed upload is not there any more for a second completing
            return self._ours(name, token)
        except StoreError as error:
            if error.code != "StoreAway":
                raise
            return self._done_after_all(name, token, error)

    def supported(self, *, parts: bool = False) -> bool:
        """Return whether the server refuses to write a taken name, by one call or by completing parts."""
        with self._lock:
            if parts not in self._known:
                self._known[parts] = self._ask_parts() if parts else self._ask()
            return self._known[parts]

    def _look(self, name: str) -> None:
        with contextlib.suppress(NoSuchObject):
            self._connection.head(name)
            raise ObjectExists(name)

    def _done_after_all(self, name: str, token: str, error: StoreError) -> dict[str, Any]:
        """Return our object where only the answers were lost; else raise what went wrong."""
        try:
            return self._ours(name, token)
        except ObjectExists:
            raise
        except StoreError:
            raise error from None

    def _ours(self, name: str, token: str) -> dict[str, Any]:
        try:
            found = self._connection.head(name)
        except NoSuchObject:
            raise StoreError(
                f"The upload of {name} was ended by somebody else. Nothing was kept. It can be tried again."
            ) from None
        if found.get("Metadata", {}).get(TOKEN) != token:
            raise ObjectExists(name)
        return found

    def _ask(self) -> bool:
        """Ask by a write of the probe that is refused where it lies there already; learn of checksums by the way."""
        checksum: dict[str, str] = {"ChecksumCRC32": EMPTY_CRC32}
        refused = self._refuses(checksum | _CONDITION)
        if refused is None:  # it knows one of the two headers not
            if self._refuses(checksum) is None:
                checksum, self.crc32 = {}, False
            refused = self._refuses(checksum | _CONDITION)
        if refused is False:  # it may have been the one that made it
            refused = self._refuses(checksum | _CONDITION)
        return bool(refused)

    def _refuses(self, options: dict[str, str]) -> bool | None:
        """Return whether a write of the probe is refused because it is there; None where such a write can't be."""
        try:
            self._call("put_object", "written", name=PROBE, Body=b"", **options)
        except PreconditionFailed:
            return True
        except StoreError as error:
            if error.code != "StoreMisused":
                raise
            return None
        return False

    def _ask_parts(self) -> bool:
        if not self._ask():
            return False
        upload = self._call("create_multipart_upload", "written", name=PROBE)["UploadId"]
        try:
            part = self._call("upload_part", "written", name=PROBE, UploadId=upload, PartNumber=1, Body=b"1")
            entries = [{"PartNumber": 1, "ETag": part["ETag"]}]
            done = {"UploadId": upload, "MultipartUpload": {"Parts": entries}}
            self._call("complete_multipart_upload", "written", name=PROBE, **done, **_CONDITION)
        except StoreError as error:
            with contextlib.suppress(StoreError):
                self._call("abort_multipart_upload", "written", name=PROBE, UploadId=upload)
            if error.code != "StoreMisused":
                raise
            return isinstance(error, PreconditionFailed)
        return False
