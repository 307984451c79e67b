"""What tells that a live object is still as we applied it, from its metadata alone.

The API server keeps, for each who writes, the set of fields that are theirs (`managedFields`, structured-merge-diff's
"fieldsV1"). Whoever changes or removes a field of ours takes it out of our set, so the set tells of every edit of what
we applied, in every kind; `generation` tells it only in some. The values themselves are not in it: they are known
from the digest that we apply as an annotation, which is one of those fields.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from provisioning.operator.kube.client import MANAGER

OWNER = "$owner"
"""Stands for the owner's uid, so that the same child of every server has the same fingerprint."""


class Shapes:
    """Each set of fields once: thousands of objects share a few dozen."""

    def __init__(self) -> None:
        self._texts: dict[int, str] = {}

    def of(self, metadata: Mapping[str, Any], manager: str = MANAGER) -> int:
        """Return the fingerprint of the fields that `manager` applied; 0 when it applied none."""
        ours = [
            entry.get("fieldsV1")
            for entry in metadata.get("managedFields") or ()
            if entry.get("manager") == manager and entry.get("operation") == "Apply" and not entry.get("subresource")
        ]
        if not ours:
            return 0
        text = json.dumps(ours, separators=(",", ":"))
        for owner in metadata.get("ownerReferences") or ():
            text = text.replace(str(owner.get("uid")), OWNER)
        found = int.from_bytes(blake2b(text.encode(), digest_size=7).digest(), "big")
        self._texts.setdefault(found, text)
        return found

    def cover(self, fingerprint: int, wanted: Mapping[str, Any]) -> bool:
        """Say whether every field of `wanted` is among the fields with that fingerprint."""
        if not (text := self._texts.get(fingerprint)):
            return False
        return any(covers(wanted, fields) for fields in json.loads(text))

    def __len__(self) -> int:
        return len(self._texts)


def covers(wanted: Mapping[str, Any], fields: Mapping[str, Any]) -> bool:
    """Say whether a set of fields holds every field of an object. What names the object is never in such a set."""
    metadata = {key: value for key, value in (wanted.get("metadata") or {}).items() if key in {"labels", "annotations"}}
    rest = {key: value for key, value in wanted.items() if key not in {"apiVersion", "kind", "metadata"}}
    return _map({**rest, **({"metadata": metadata} if metadata else {})}, fields)


def _covered(value: Any, fields: Mapping[str, Any]) -> bool:
    if not fields:  # a leaf, or a map or list that is owned as a whole
        return True
    if isinstance(value, Mapping):
        return _map(value, fields)
    return _list(value, fields) if isinstance(value, list) else True


def _map(value: Mapping[str, Any], fields: Mapping[str, Any]) -> bool:
    return all(
        _covered(each, fields[f"f:{key}"]) if f"f:{key}" in fields else each in (None, [])
        for key, each in value.items()
    )


def _list(value: list[Any], fields: Mapping[str, Any]) -> bool:
    keyed = [(json.loads(key[2:]), below) for key, below in fields.items() if key.startswith("k:")]
    return all(_item(each, keyed, fields) for each in value)


def _item(item: Any, keyed: list[tuple[Any, Mapping[str, Any]]], fields: Mapping[str, Any]) -> bool:
    if not isinstance(item, Mapping):
        return f"v:{json.dumps(item)}" in fields
    for key, below in keyed:
        # A part of the key that the item does not say has its default (a port's protocol).
        if all(item.get(name, part) == part for name, part in key.items()):
            return _map(item, below)
    return False
