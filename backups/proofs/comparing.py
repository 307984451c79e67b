"""A server that was brought back, compared with what the living one says of the time before. By the admin API alone.

Compared is what can't shrink by itself, so that a difference is a loss and no false alarm:

- Accounts are never removed, only closed: each that was made before the moment must be there.
- A local event's place in its room is fixed when it is sent. So of the events before one that both have (`anchor`), as
  the living server lists them, each local one must be there, and with the same content unless it was redacted since.
  Rooms and events that were purged since are not listed any more; events of other servers may have come late.

The last minute before the moment is left out: what was on its way then may be on either side.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote, urlencode

from django.views.decorators.debug import sensitive_variables

from provisioning.matrix import SERVICE, Homeserver, MatrixError
from provisioning.providers.base import ProviderError

MARGIN = timedelta(minutes=1)
ROOMS, EVENTS, PAGE, MOST_ACCOUNTS = 5, 50, 500, 5_000
"""Rooms that are tried until one can be compared; events of it; accounts in one answer, and in all."""
ADMIN = "/_synapse/admin"
SHOWN = 3


@dataclass
class Compared:
    """What was found: `told` is evidence, `wrong` one sentence for each thing that is missing or differs."""

    told: dict[str, Any] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


@sensitive_variables("secret")
def compare(url: str, living_url: str, server_name: str, secret: str, until: datetime) -> Compared:
    """Look at the server that was brought back at `url`; compare it with the one at `living_url`, where that answers.

    `secret` signs Hearth's service account in to both. Raises `ProviderError` where the one that was brought back does
    not answer: then it is not back.
    """
    found = Compared()
    with Homeserver(url, server_name) as back, back.signed_in(SERVICE, secret) as token:
        one = Side(back, token, back=True)
        found.told |= {"accounts": one.accounts_total(), "rooms": len(one.rooms(ROOMS)) and one.rooms_total}
        if not living_url:
            found.told["living"] = "not asked"
            return found
        try:
            with Homeserver(living_url, server_name) as living, living.signed_in(SERVICE, secret) as other:
                _compare(found, one, Side(living, other), until)
        except MatrixError as error:  # the living one's: those of the other have another type by now
            found.told["living"] = f"did not answer: {error}"
    return found


class Side:
    """One of the two servers, as its service account sees it."""

    def __init__(self, homeserver: Homeserver, token: str, *, back: bool = False) -> None:
        """`back`: it is the one that was brought back, so that no answer is a failure."""
        self._homeserver = homeserver
        self._token = token
        self._back = back
        self.rooms_total = 0
        self.domain = homeserver.server_name

    def accounts_total(self) -> int:
        return int(self._users(0, 1)["total"])

    def accounts(self, until: datetime) -> set[str]:
        """Return the first accounts (`MOST_ACCOUNTS` at most) that were made before `until`."""
        found: set[str] = set()
        limit = int(until.timestamp() * 1000)
        for begin in range(0, MOST_ACCOUNTS, PAGE):
            users = self._users(begin, PAGE)["users"]
            made = [each["name"] for each in users if int(each["creation_ts"]) < limit]
            found.update(made)
            if len(made) < PAGE:
                break
        return found

    def rooms(self, count: int) -> list[str]:
        """Return the rooms with the most state, and remember how many there are."""
        query = urlencode({"limit": count, "order_by": "state_events", "dir": "f"})
        answer = self._get(f"{ADMIN}/v1/rooms?{query}")
        self.rooms_total = int(answer["total_rooms"])
        return [str(each["room_id"]) for each in answer["rooms"]]

    def newest(self, room: str, until: datetime) -> str:
        """Return the newest local event of a room that was sent before `until`; "" where there is none."""
        query = urlencode({"dir": "b", "limit": 4 * EVENTS})
        limit = int(until.timestamp() * 1000)
        for event in self._get(f"{ADMIN}/v1/rooms/{quote(room)}/messages?{query}")["chunk"]:
            if int(event["origin_server_ts"]) < limit and self._is_local(event):
                return str(event["event_id"])
        return ""

    def before(self, room: str, anchor: str, count: int) -> dict[str, dict[str, Any]]:
        """Return the local events before `anchor` in its room, by id, and the anchor itself."""
        answer = self._get(f"{ADMIN}/v1/rooms/{quote(room)}/context/{quote(anchor)}?{urlencode({'limit': 2 * count})}")
        events = [answer["event"], *answer["events_before"]]
        return {str(each["event_id"]): each for each in events if self._is_local(each)}

    def _is_local(self, event: dict[str, Any]) -> bool:
        return str(event["sender"]).partition(":")[2] == self.domain

    def _users(self, begin: int, limit: int) -> dict[str, Any]:
        words = {"from": begin, "limit": limit, "guests": "true", "deactivated": "true", "locked": "true"}
        return self._get(f"{ADMIN}/v2/users?{urlencode(words | {'order_by': 'creation_ts'})}")

    def _get(self, path: str) -> dict[str, Any]:
        try:
            return self._homeserver.request("GET", path, token=self._token)
        except MatrixError as error:
            if self._back:
                raise ProviderError(f"What was brought back fails: {error}", code=error.code) from None
            raise


def _compare(found: Compared, back: Side, living: Side, until: datetime) -> None:
    wanted = living.accounts(until)
    missing = sorted(wanted - back.accounts(until))
    found.told |= {"living": "asked", "accounts_compared": len(wanted), "accounts_missing": missing[:SHOWN]}
    if missing:
        found.wrong.append(f"Accounts that are missing: {len(missing)} of {len(wanted)}, {missing[0]} among them.")
    _compare_room(found, back, living, until)


def _compare_room(found: Compared, back: Side, living: Side, until: datetime) -> None:
    for room in back.rooms(ROOMS):
        try:
            if not (anchor := back.newest(room, until)):
                continue
            wanted = living.before(room, anchor, EVENTS)
        except MatrixError as error:
            if error.status != 404:  # purged since: then it says nothing
                raise
            continue
        there = back.before(room, anchor, 2 * EVENTS)
        missing = [each for each in wanted if each not in there]
        changed = [key for key, each in wanted.items() if key in there and _differ(there[key], each)]
        found.told |= {"room": room, "events_compared": len(wanted), "events_missing": missing[:SHOWN]}
        found.told |= {"events_changed": changed[:SHOWN]}
        if missing:
            found.wrong.append(f"Events of the room {room} that are missing: {len(missing)} of {len(wanted)}.")
        if changed:
            found.wrong.append(f"Events of the room {room} that have another content: {len(changed)}.")
        return
    found.told |= {"room": "", "events_compared": 0}


def _differ(restored: dict[str, Any], living: dict[str, Any]) -> bool:
    """Tell whether an event has another content, but for a redaction since."""
    redacted = "redacted_because" in living.get("unsigned", {}) or "redacted_by" in living.get("unsigned", {})
    return not redacted and _digest(restored) != _digest(living)


def _digest(event: dict[str, Any]) -> bytes:
    names = ("type", "sender", "state_key", "origin_server_ts", "content")
    some = {name: event.get(name) for name in names}
    return hashlib.sha256(json.dumps(some, sort_keys=True).encode()).digest()
