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

import orjson

from provisioning.operator.kube.client import MANAGER

OWNER = b"$owner"
"""Stands for the owner's uid, so that the same child of every server has the same fingerprint."""
CONTENT = ("f:spec", "f:data", "f:binaryData", "f:stringData", "f:immutable")
"""What nobody else may add to. Labels, annotations and status of others are theirs."""
CONTROLLERS = {"kube-controller-manager", "kube-scheduler", "kube-apiserver"}

Fields = Mapping[str, Any]


class Shapes:
    """Each set of fields once: thousands of objects share a few dozen."""

    def __init__(self) -> None:
        self._texts: dict[int, bytes] = {}

    def of(self, metadata: Mapping[str, Any], *, shared: bool = False) -> int:
        """Return the fingerprint of the fields that we applied, and of what others added; 0 when we applied none."""
        ours = [entry.get("fieldsV1") or {} for entry in metadata.get("managedFields") or () if _ours(entry)]
        if not ours:
            return 0
        added = {} if shared else additions(metadata)
        text = orjson.dumps([*ours, added] if added else ours)
        for owner in metadata.get("ownerReferences") or ():
            text = text.replace(str(owner.get("uid")).encode(), OWNER)
        found = int.from_bytes(blake2b(text, digest_size=7).digest(), "big")
        # An odd one has additions, so that this is known without reading it again.
        found = found << 1 | bool(added)
        self._texts.setdefault(found, text)
        return found

    def cover(self, fingerprint: int, wanted: Mapping[str, Any]) -> bool:
        """Say whether every field of `wanted`, and no content of others, is what has that fingerprint."""
        text = self._texts.get(fingerprint)
        if not text or fingerprint & 1:
            return False
        return any(covers(wanted, fields) for fields in orjson.loads(text))

    def __len__(self) -> int:
        return len(self._texts)


def _ours(entry: Mapping[str, Any]) -> bool:
    return bool(entry.get("manager") == MANAGER and entry.get("operation") == "Apply" and not entry.get("subresource"))


def _others(entry: Mapping[str, Any]) -> bool:
    return not (_ours(entry) or entry.get("subresource") or entry.get("manager") in CONTROLLERS)


def _content(entry: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: each for key, each in (entry.get("fieldsV1") or {}).items() if key in CONTENT}
    if "f:replicas" in (found.get("f:spec") or {}):  # how many is the autoscaler's to say
        found["f:spec"] = {key: each for key, each in found["f:spec"].items() if key != "f:replicas"}
    return {key: each for key, each in found.items() if each or key != "f:spec"}


def additions(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an object's content that others have set."""
    found: dict[str, Any] = {}
    for entry in metadata.get("managedFields") or ():
        if _others(entry):
            found = union(found, _content(entry))
    return found


def claimed(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return `managedFields` in which what others have added is ours.

    An apply removes what is the applier's and not in what it applies; so the next one takes the additions away. That is
    how kubectl moves objects from one kind of apply to the other (client-go's csaupgrade).
    """
    added = additions(metadata)
    entries = []
    for entry in metadata.get("managedFields") or ():
        fields = entry.get("fieldsV1") or {}
        if _ours(entry):
            entries.append({**entry, "fieldsV1": union(fields, added)})
        elif _others(entry) and _content(entry):
            content = _content(entry)
            rest = {key: each for key, each in fields.items() if key not in content}
            if "f:replicas" in (fields.get("f:spec") or {}):
                rest["f:spec"] = {"f:replicas": {}}
            if rest:
                entries.append({**entry, "fieldsV1": rest})
        else:
            entries.append(dict(entry))
    return entries


def union(one: Fields, other: Fields) -> dict[str, Any]:
    """Return the union of two sets of fields."""
    found = dict(one)
    for key, below in other.items():
        found[key] = union(found[key], below) if key in found else below
    return found


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
