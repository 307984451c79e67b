"""What a server's data lies in, and that it is never made anew in silence. Pure functions.

An empty database in the place of one that somebody has deleted would look like a healthy server, and its backups would
take the place of the good ones. So what held data once is made again only when a person says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from provisioning.operator.children import Place
from provisioning.operator.observed import Fault

DATA = {Place("Cluster", "postgres"): "The database", Place("PersistentVolumeClaim", "media"): "The volume with media"}
"""Neither can become newly wanted by a change: the definition forbids to change where database and media lie."""
ANEW = "hearth.host/make-anew"
"""On a MatrixServer: its present generation, so that the permission ends with the next change."""
DATA_MISSING = "DataMissing"


def established(server: Mapping[str, Any]) -> bool:
    """Say whether the server has data, for it was Ready or brought back, and nobody lets them be made anew."""
    metadata = server["metadata"]
    allowed = (metadata.get("annotations") or {}).get(ANEW)
    status = server.get("status") or {}
    has = status.get("release") or (status.get("recovery") or {}).get("state") == "done"
    return bool(has) and allowed != str(metadata.get("generation"))


def missing(lost: Iterable[Place]) -> dict[Place, Fault]:
    """Return what is to be said of data that was there and is gone."""
    return {
        place: Fault(
            DATA_MISSING,
            f"{DATA[place]} of this server was there and is gone: somebody has deleted it, or its definition. Nothing "
            "was made in its place, because an empty one would look like a healthy server. Restore a backup, or ask "
            "support.",
        )
        for place in lost
    }


def unseen(places: Iterable[Place]) -> dict[Place, Fault]:
    """Return what is to be said of data that can't be seen, because the cluster has lost its kind's definition."""
    return {
        place: Fault(
            "KindMissing",
            f"The cluster lost the definition of {place.kind}, so it can't be seen whether the data is still there. "
            "Nothing was made. Install the definition again.",
        )
        for place in places
    }
