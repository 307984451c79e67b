"""How a rendered object becomes a server's own: namespace, owner, labels, and the digest of what was rendered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from provisioning.operator.children import SERVERS
from provisioning.operator.kube.kinds import Kind

DIGEST = "hearth.host/applied"
MANAGED = "app.kubernetes.io/managed-by"
OPERATOR = "hearth-operator"
HOME = "hearth.host/namespace"
"""On objects without a namespace: the namespace of the server that they belong to."""
SELECTOR = f"{MANAGED}={OPERATOR}"
FORM = "1"
"""Raised when `own` makes something else of the same document, so that it is applied again."""


@dataclass(frozen=True)
class Owner:
    """The MatrixServer that owns."""

    namespace: str
    name: str
    uid: str


def stamp(digest: str) -> str:
    """Return what the annotation says for a document with that digest."""
    return f"{FORM}-{digest}"


def own(rendered: Mapping[str, Any], digest: str, owner: Owner, kind: Kind) -> dict[str, Any]:
    """Return the object to apply. The chart knows neither the owner nor who applies it."""
    found = dict(rendered)
    metadata = dict(found.get("metadata") or {})
    metadata["labels"] = {**(metadata.get("labels") or {}), MANAGED: OPERATOR}
    metadata["annotations"] = {**(metadata.get("annotations") or {}), DIGEST: stamp(digest)}
    if kind.namespaced:
        metadata["namespace"] = owner.namespace
        metadata["ownerReferences"] = [
            {
                "apiVersion": SERVERS.api_version,
                "kind": SERVERS.name,
                "name": owner.name,
                "uid": owner.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ]
    else:
        metadata["labels"][HOME] = owner.namespace
    return {**found, "metadata": metadata}


def owner_of(metadata: Mapping[str, Any]) -> str:
    """Return the uid of the MatrixServer that controls an object, or nothing."""
    for each in metadata.get("ownerReferences") or ():
        if each.get("kind") == SERVERS.name and each.get("controller"):
            return str(each.get("uid"))
    return ""


def body(found: Mapping[str, Any]) -> bytes:
    """Return an object as what is sent."""
    return orjson.dumps(found)
