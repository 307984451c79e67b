"""What a provider is told when a server's backups are to be brought back: which ones, to when, and by whose keys.

A restore never touches the living server: it goes into an instance, which is the same server under an id of its own,
reached by nobody else and backed up by nothing.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from django.views.decorators.debug import sensitive_variables

from backups import wiring
from backups.models import Store
from provisioning.providers.base import Recovery, ServerSpec
from provisioning.providers.local.keys import verify_key
from tenants.models import Server


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which state of which server. Neither `point` nor `moment`: the latest that there is."""

    source: Server
    """Whose backups they are; it may be deleted."""
    store: Store
    point: str = ""
    moment: datetime | None = None


def settle(since: Mapping[str, Any] | None, *, older: bool = False, moment: datetime | None = None) -> dict[str, Any]:
    """Return what is changed before Synapse starts on it. `since`: what the living server says of now.

    Who can't be asked can't say which sessions were ended since then; so all of them are. `older`: the living server
    was itself brought back to a moment before these data, so it lacks accounts that they have. Whom it doesn't name
    is then as the data say: it locks more accounts, and unlocks none and takes no rights away. `moment`: the time that
    has passed since then tells how many numbers others may have seen, where nobody else can.
    """
    found = _settled(since, older=older)
    return found if moment is None else {**found, "moment": moment.isoformat()}


def _settled(since: Mapping[str, Any] | None, *, older: bool) -> dict[str, Any]:
    if since is None:
        return {"sessions": "all"}
    if "from" in since:  # who brings it back asks the living server itself
        return {"sessions": "keep", "since": dict(since), "older": older}
    if not older:
        return {"sessions": "keep", "since": dict(since)}
    known = {part: value for part, value in since.items() if part not in ("locked", "admins")}
    return {"sessions": "keep", "since": known, "lock": list(since.get("locked") or ())}


def streams_alone(since: Mapping[str, Any]) -> dict[str, Any]:
    """Return of what a server's database says, or where it is to be asked, how far its streams are and nothing else."""
    if "from" in since:
        return {"from": since["from"], "streams_alone": True}
    return {"sequences": since.get("sequences", {})}


@sensitive_variables()
def recovery(
    wanted: Wanted, spec: ServerSpec, *, holder: uuid.UUID, grant: uuid.UUID, settle: Mapping[str, Any]
) -> Recovery:
    """Return what the provider's `recover` needs. `holder` is the server under whose identity the grant is used."""
    source = wanted.source
    files = {wiring.NAME_KEY: str(wiring.ensure(source).name_key)}
    request: dict[str, Any] = {
        "organisation": str(source.organisation_id),
        "server": str(source.pk),
        "store": wiring.store_at(wanted.store, source, files),
        "signing_key_id": verify_key(spec.secrets["signing_key"])[0],
        "name_key_file": wiring.NAME_KEY,
        "grant": str(grant),
        "settle": dict(settle),
    }
    if wanted.point:
        request["point"] = wanted.point
    elif wanted.moment is not None:
        request["to"] = wanted.moment.isoformat()
    return Recovery(source=str(source.pk), holder=str(holder), module=wiring.MODULE, request=request, files=files)


def instance_spec(spec: ServerSpec, instance: uuid.UUID, version: str) -> ServerSpec:
    """Return the spec of an instance of the server that `spec` is of: it runs, alone."""
    return replace(
        spec,
        server_id=str(instance),
        version=version,
        federation=False,
        pushes=False,
        backup={},
        suspended=False,
        suspend_message="",
        public_url="",
    )
