"""A server's secrets: made once, before anything is written outside, so that doing a step again gives the same keys."""

from __future__ import annotations

import secrets as random
from collections.abc import Callable
from contextlib import AbstractContextManager

from provisioning.models import ServerSecret
from provisioning.providers.local.keys import new_secrets
from tenants.models import Server

SPEC_SECRETS = ("signing_key", "macaroon", "registration", "form", "database", "jwt", "replication", "redis")
ADMIN_PASSWORD, NEXT_PASSWORD = "admin_password", "admin_password_next"
# No letter that reads like another: people type this on a phone.
ALPHABET = "abcdefghjkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789"
Transaction = Callable[[], AbstractContextManager[object]]


def ensure_spec_secrets(server: Server, transaction: Transaction) -> dict[str, str]:
    """Return the secrets of the spec by name; those that are missing are made inside the fenced `transaction`."""
    found = _read(server, SPEC_SECRETS)
    if len(found) == len(SPEC_SECRETS):
        return found
    with transaction():
        found = _read(server, SPEC_SECRETS)
        missing = {name: value for name, value in new_secrets().items() if name not in found}
        ServerSecret.objects.bulk_create([ServerSecret(server=server, name=n, value=v) for n, v in missing.items()])
    return found | missing


def adopt_signing_key(server: Server, line: str) -> None:
    """Let a server that is about to be made have the identity that it had before."""
    if ServerSecret.objects.filter(server=server, name="signing_key").exists():
        return  # the one that it had never went
    ServerSecret.objects.create(server=server, name="signing_key", value=line)


def ensure_next_password(server: Server, transaction: Transaction) -> str:
    """Return the admin password that is about to be set. It is kept apart until Synapse has taken it."""
    with transaction():
        secret, _ = ServerSecret.objects.get_or_create(
            server=server, name=NEXT_PASSWORD, defaults={"value": new_password()}
        )
    return str(secret.value)


def promote_password(server: Server) -> None:
    """Let the next password be the one that `reveal` shows. Call inside a fenced transaction."""
    following = server.secrets.filter(name=NEXT_PASSWORD).first()
    if following is not None:
        ServerSecret.objects.filter(server=server, name=ADMIN_PASSWORD).delete()
        # Sealed for its name too: opened under the old one, sealed again under the new one.
        following.value, following.name = following.value, ADMIN_PASSWORD
        following.save(update_fields=["name", "value"])


def forget(server: Server) -> None:
    """Remove every secret of a server that is gone. Call inside a fenced transaction."""
    ServerSecret.objects.filter(server=server).delete()


def new_password() -> str:
    """Return 20 characters in groups of five: 115 bits."""
    letters = "".join(random.choice(ALPHABET) for _ in range(20))
    return "-".join(letters[start : start + 5] for start in range(0, 20, 5))


def _read(server: Server, names: tuple[str, ...]) -> dict[str, str]:
    return {secret.name: str(secret.value) for secret in server.secrets.filter(name__in=names)}
