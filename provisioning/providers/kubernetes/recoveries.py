"""Bringing a server in a cluster back from its backups. Not possible yet: each verb says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from provisioning.providers.base import Progress, ProviderError, Recovering, Recovery, ServerSpec


class Recoveries:
    """The verbs of `Provider` for instances that hold what was backed up."""

    def recover(self, spec: ServerSpec, recovery: Recovery, *, fence: int, progress: Progress) -> None:  # noqa: ARG002
        """Refuse: see `_not_here`."""
        raise _not_here()

    def recovering(self, instance: str) -> Recovering:  # noqa: ARG002 (the protocol's)
        """Say that there is none."""
        return Recovering()

    def cancel_recovery(self, instance: str, *, fence: int) -> None:
        """Do nothing: there is none."""

    def since(self, server_id: str) -> Mapping[str, Any] | None:  # noqa: ARG002 (the protocol's)
        """Say that it can't be asked."""
        return None

    def exchange(
        self,
        server_id: str,  # noqa: ARG002
        instance: str,  # noqa: ARG002
        *,
        restored: bool,  # noqa: ARG002
        fence: int,  # noqa: ARG002
        progress: Progress,  # noqa: ARG002
    ) -> None:
        """Refuse: see `_not_here`."""
        raise _not_here()


def _not_here() -> ProviderError:
    return ProviderError(
        "Servers in this region can't be brought back from their backups yet. Nothing was changed, and its backups "
        "are safe. Support can restore them elsewhere.",
        code="NotHere",
        retry=False,
    )
