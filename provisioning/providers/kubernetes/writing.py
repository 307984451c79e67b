"""Fenced writes: each object carries the fence of its last writer, and is written only as it was read.

A write of a worker that lost its lease fails either way: it reads a higher fence than its own, or what it has read is
not what is there any more. An object is made by POST, which one of two makers wins, and not by apply, which both would.
https://kubernetes.io/docs/reference/using-api/server-side-apply/
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from provisioning.providers.base import ProviderError, StaleFence
from provisioning.providers.kubernetes.client import APPLY, MANAGER, MERGE, METADATA, Client, Refused

Object = dict[str, Any]
FENCE = "hearth.host/fence"
REMOVABLE = "hearth.host/may-be-removed"
"""Without it nobody but the account hearth-provider removes a server: Hearth may have another account."""
VERBS = "hearth-verbs"
"""The manager of what a verb changes by itself, so that an apply of the whole spec leaves it alone."""
TRIES = 12
COLLECTIONS = {
    "Namespace": "/api/v1/namespaces",
    "Secret": "/api/v1/namespaces/{namespace}/secrets",
    "MatrixServer": "/apis/hearth.host/v1/namespaces/{namespace}/matrixservers",
}


@dataclass(frozen=True)
class Paths:
    """Where the objects of one server are."""

    namespace: str
    secret: str
    server: str


def paths(namespace: str) -> Paths:
    """Return the paths of a server's objects."""
    made = {kind: path.format(namespace=namespace) for kind, path in COLLECTIONS.items()}
    return Paths(
        f"{made['Namespace']}/{namespace}", f"{made['Secret']}/synapse-secrets", f"{made['MatrixServer']}/synapse"
    )


class Writer:
    """Writes to one cluster. `marks` are annotations of every object that is written whole."""

    def __init__(self, client: Client, marks: Mapping[str, str] | None = None) -> None:
        self._client, self._marks = client, dict(marks or {})

    def write(self, wanted: Object, fence: int, *, secret: bool = False) -> None:
        """Bring an object to what is wanted, as a whole. `secret`: Hearth may write it but not read it."""
        metadata = wanted["metadata"]
        said = metadata.get("annotations") or {}
        wanted = {**wanted, "metadata": {**metadata, "annotations": {**said, **self._marks, FENCE: str(fence)}}}
        collection = COLLECTIONS[wanted["kind"]].format(namespace=metadata.get("namespace", ""))
        path = f"{collection}/{metadata['name']}"
        for _ in range(TRIES):
            seen = self._client.metadata(path) if secret else self._client.get(path)
            try:
                if seen is None:
                    self._make(collection, path, wanted)
                    return
                _check(seen, fence)
                self._apply(path, wanted, seen)
            except Refused as error:
                if error.status != 409:
                    raise
            else:
                return
        raise _contended()

    def change(self, path: str, fence: int, change: Callable[[Object], Object | None]) -> Object | None:
        """Merge what `change` returns for the object as it is; return the object, or None where there is none.

        The fence is written in any case, so that from now on nobody with a lower one can write.
        """
        for _ in range(TRIES):
            seen = self._client.get(path)
            if seen is None:
                return None
            _check(seen, fence)
            wanted = change(seen) or {}
            if not wanted and _fence(seen) == fence:
                return seen
            asked = wanted.get("metadata") or {}
            marks = {**(asked.get("annotations") or {}), FENCE: str(fence)}
            body = {**wanted, "metadata": {**asked, "annotations": marks, **_as_seen(seen)}}
            try:
                return self._client.request("PATCH", path, body, kind=MERGE, query={"fieldManager": VERBS})
            except Refused as error:
                if error.status == 404:
                    return None
                if error.status != 409:
                    raise
        raise _contended()

    def delete(self, path: str, fence: int) -> bool:
        """Ask for an object's end; True if this call did. One that is gone or going already is fine."""
        seen = self.change(path, fence, lambda _: {"metadata": {"annotations": {REMOVABLE: str(fence)}}})
        for _ in range(TRIES):
            if seen is None or seen["metadata"].get("deletionTimestamp"):
                return False
            _check(seen, fence)
            body = {
                "apiVersion": "v1",
                "kind": "DeleteOptions",
                "preconditions": _as_seen(seen),
                # A server's parts go after it, not before: its last backup needs them.
                "propagationPolicy": "Background",
            }
            try:
                self._client.request("DELETE", path, body)
            except Refused as error:
                if error.status not in (404, 409):
                    raise
                seen = self._client.get(path)
            else:
                return True
        raise _contended()

    def _make(self, collection: str, path: str, wanted: Object) -> None:
        made = self._client.request("POST", collection, wanted, accept=METADATA, query={"fieldManager": MANAGER})
        try:
            self._settle(path, made)
        except Refused as error:
            if error.status not in (404, 409):  # its operator has written meanwhile: the next write finds it so
                raise

    def _apply(self, path: str, wanted: Object, seen: Object) -> None:
        seen = self._settle(path, seen)
        body = {**wanted, "metadata": {**wanted["metadata"], **_as_seen(seen)}}
        query = {"fieldManager": MANAGER, "force": "true"}
        self._client.request("PATCH", path, body, kind=APPLY, accept=METADATA, query=query)

    def _settle(self, path: str, seen: Object) -> Object:
        """Let what the POST made count as applied: else what a later apply leaves out would stay for ever."""
        managed = seen["metadata"].get("managedFields") or []
        posted = [each for each in managed if each["manager"] == MANAGER and each["operation"] == "Update"]
        if not posted:
            return seen
        kept = [{**each, "operation": "Apply"} if each in posted else each for each in managed]
        body = {"metadata": {**_as_seen(seen), "managedFields": kept}}
        return self._client.request("PATCH", path, body, kind=MERGE, accept=METADATA)


def _as_seen(seen: Object) -> Object:
    metadata = seen["metadata"]
    return {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}


def _fence(seen: Object) -> int:
    found = str((seen["metadata"].get("annotations") or {}).get(FENCE))
    return int(found) if found.isdecimal() else 0


def _check(seen: Object, fence: int) -> None:
    if _fence(seen) > fence:
        raise StaleFence("A newer worker has taken over this server.", seen=_fence(seen))


def _contended() -> ProviderError:
    return ProviderError("Others write to this server in the cluster all the time. It is tried again.", code="Conflict")
