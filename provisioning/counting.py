"""How many people use a homeserver and how much they have uploaded, asked of Synapse by the service account.

Synapse's own count of monthly active users is only in its metrics, which a cluster lets nobody but Prometheus read.
https://element-hq.github.io/synapse/latest/admin_api/user_admin_api.html#list-accounts-v2
https://element-hq.github.io/synapse/latest/admin_api/statistics.html#users-media-usage-statistics
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode

from provisioning.matrix import Homeserver, MatrixError

PAGE, PAGES = 1000, 20
"""What is asked for at once, and how often at most: a customer's homeserver may not keep Hearth for ever."""
ACTIVE_S = 30 * 86400
USERS, MEDIA = "/_synapse/admin/v2/users", "/_synapse/admin/v1/statistics/users/media"


def count(homeserver: Homeserver, token: str) -> tuple[int | None, int | None]:
    """Return people active within 30 days, and bytes of local media; None for what can't be counted now."""
    return _or_none(lambda: _people(homeserver, token)), _or_none(lambda: _media(homeserver, token))


def _or_none(counted: Callable[[], int]) -> int | None:
    try:
        found = counted()
    except (MatrixError, TypeError, ValueError, KeyError, AttributeError):
        return None  # a figure that is missing is no failed check
    return found if 0 <= found < 2**62 else None


def _people(homeserver: Homeserver, token: str) -> int:
    since, found = (time.time() - ACTIVE_S) * 1000, 0
    # Newest first, so that it ends with the first page that has somebody from before.
    query = {"guests": "false", "not_user_type": "support", "order_by": "last_seen_ts", "dir": "b"}
    for page in _pages(homeserver, token, USERS, query):
        seen = [int(each.get("last_seen_ts") or 0) for each in page]
        found += sum(moment >= since for moment in seen)
        # Who was never seen has no moment, and comes before everybody else.
        if any(0 < moment < since for moment in seen):
            break
    return min(found, 2**31 - 1)


def _media(homeserver: Homeserver, token: str) -> int:
    query = {"order_by": "media_length", "dir": "b"}
    return sum(int(each["media_length"]) for page in _pages(homeserver, token, MEDIA, query) for each in page)


def _pages(homeserver: Homeserver, token: str, path: str, query: dict[str, str]) -> Iterator[list[dict[str, Any]]]:
    after = ""
    for _ in range(PAGES):
        words = {**query, "limit": str(PAGE)} | ({"from": after} if after else {})
        answer = homeserver.request("GET", f"{path}?{urlencode(words)}", token=token)
        yield answer["users"]
        after = str(answer.get("next_token") or "")
        if not after:
            return
