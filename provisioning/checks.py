"""The protocol checks that stand before the word `Ready`. `/health` is not among them: it always says OK."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

from provisioning import counting
from provisioning.matrix import LONGEST, PLAIN, SERVICE, TIMEOUT, Homeserver, MatrixError, bounded
from provisioning.providers.base import ProviderError
from provisioning.providers.local.keys import verify_key

METRICS_LARGEST = 16 * 1024 * 1024


class CheckFailed(ProviderError):
    """The homeserver answers, and what it says is wrong."""


@dataclass(frozen=True)
class Answers:
    """What the checks found out."""

    key_id: str
    version: str
    users: int | None = None
    """People active within 30 days; None: not counted."""
    media_bytes: int | None = None
    """What people have uploaded here."""


def run(
    url: str, server_name: str, secrets: Mapping[str, str], *, delegated_to: str = "", count: bool = False
) -> Answers:
    """Return what the homeserver at `url` says of itself once every check has passed, or raise a `ProviderError`.

    With `count` people and media are counted by the service account: for places whose metrics Hearth can't read.
    """
    with Homeserver(url, server_name, seconds=LONGEST) as homeserver:
        if not homeserver.request("GET", "/_matrix/client/versions").get("versions"):
            raise CheckFailed("The homeserver names no version of the Matrix protocol.", code="VersionsMissing")
        key_id = check_key(homeserver, secrets["signing_key"])
        with homeserver.signed_in(SERVICE, secrets["jwt"]) as token:
            version = check_admin(homeserver, token)
            users, media = counting.count(homeserver, token) if count else (None, None)
    if delegated_to:
        check_delegation(server_name, delegated_to)
    return Answers(key_id=key_id, version=version, users=users, media_bytes=media)


def check_key(homeserver: Homeserver, signing_key: str) -> str:
    """Compare key id and key with the ones Hearth keeps: Synapse makes a new key silently when its file is gone."""
    key_id, public = verify_key(signing_key)
    answer = homeserver.request("GET", "/_matrix/key/v2/server")
    keys = answer.get("verify_keys", {})
    key = keys.get(key_id, {}) if isinstance(keys, dict) else None
    if not isinstance(key, dict):
        raise CheckFailed("The homeserver names its keys in a way that makes no sense.", code="AnswerNotUnderstood")
    said = str(key.get("key", ""))
    if said.rstrip("=") != public or answer.get("server_name") != homeserver.server_name:
        raise CheckFailed(
            f"The homeserver does not sign as {homeserver.server_name} with its key {key_id}. It is kept from being "
            "called ready, because other servers would refuse it. Its data is untouched; support can restore the key.",
            code="SigningKeyMismatch",
            retry=False,
        )
    return key_id


def check_admin(homeserver: Homeserver, token: str) -> str:
    """Read the version by the service account, which only a server admin may: that shows both."""
    said = homeserver.request("GET", "/_synapse/admin/v1/server_version", token=token)
    return str(said.get("server_version", "")).split(" ")[0][:20]


def check_delegation(server_name: str, delegated_to: str) -> None:
    """Check `/.well-known/matrix/server` on port 443, where other servers look. Redirects count as wrong."""
    try:
        answer = httpx.get(f"https://{server_name}/.well-known/matrix/server", timeout=TIMEOUT, trust_env=False).json()
    except (httpx.HTTPError, ValueError) as error:
        raise CheckFailed(
            f"https://{server_name}/.well-known/matrix/server did not answer ({type(error).__name__}).",
            code="DelegationMissing",
        ) from None
    if not isinstance(answer, dict) or answer.get("m.server") != delegated_to:
        raise CheckFailed(f"The domain {server_name} does not point to {delegated_to}.", code="DelegationWrong")


def count_users(metrics_url: str) -> int | None:
    """Return the monthly active users from Synapse's metrics (a Prometheus text page), or None if it has none yet."""
    if not urlsplit(metrics_url).scheme.startswith("http"):
        return None
    try:
        with (
            httpx.Client(
                timeout=TIMEOUT, trust_env=False, verify=metrics_url.startswith("https"), headers=PLAIN
            ) as client,
            client.stream("GET", metrics_url) as response,
        ):
            page = bounded(response.raise_for_status(), METRICS_LARGEST).decode(errors="replace")
    except httpx.HTTPError as error:
        raise MatrixError(f"The metrics did not answer ({type(error).__name__}).") from None
    for line in page.splitlines():
        name, _, value = line.partition(" ")
        if name.partition("{")[0] == "synapse_admin_mau_current":
            return _count(value)
    return None


def _count(text: str) -> int | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if 0 <= number < 2**31 else None
