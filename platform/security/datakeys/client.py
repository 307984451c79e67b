"""Data keys for an agent, over its `InternalClient`. Imports no Django.

    keys = DataKeys(hearth)
    identity, key = keys.fresh("backup.base", path)     # encrypt with it, store the object
    keys.publish([identity])                            # before a manifest names the object
    key = keys.unwrap(grant, identity)                  # in a restore

Errors are `InternalClient.post`'s. `CallRefused.type` says why: `grant-ended` (the restore may have another grant),
`not-found`, `server-gone`, `keys-erased`, `too-many` and `unavailable` (both: later), `damaged`, `malformed`.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from security.streams import DataKey
from security.transport.client import InternalClient
from security.transport.errors import CallRefused

MOST = 1000


class DataKeys:
    """What Hearth gives to the agent whose certificate the client shows."""

    def __init__(self, hearth: InternalClient) -> None:
        self._hearth = hearth

    def fresh(self, purpose: str, name: str) -> tuple[uuid.UUID, DataKey]:
        """Return a new data key for the object `name` of this agent's server. `purpose` begins with `backup.`."""
        # A key whose answer was lost encrypts nothing: asking again costs a row.
        key = _read(self._hearth.post("/v1/data-keys", {"purpose": purpose, "object": name}, repeatable=True))
        return key.id, key

    def unwrap(self, grant: uuid.UUID, identity: uuid.UUID) -> DataKey:
        """Return the data key `identity` of the backups that this agent restores under `grant`."""
        wanted = {"grant": str(grant), "id": str(identity)}
        key = _read(self._hearth.post("/v1/data-keys/unwrap", wanted, repeatable=True))
        if key.id != identity:
            raise _unreadable()
        return key

    def publish(self, identities: Iterable[uuid.UUID]) -> None:
        """Return when these keys of this agent's server lie in the key bundles of all places. Again is always right."""
        ids = [str(identity) for identity in identities]
        for begin in range(0, len(ids), MOST):
            self._hearth.post("/v1/data-keys/publish", {"ids": ids[begin : begin + MOST]}, repeatable=True)


def _read(answer: Mapping[str, Any]) -> DataKey:
    try:
        return DataKey(uuid.UUID(answer["id"]), base64.b64decode(answer["key"], validate=True))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise _unreadable() from None


def _unreadable() -> CallRefused:
    return CallRefused(502, "malformed", "Hearth's answer can't be read.", "Nothing was encrypted or opened.")
