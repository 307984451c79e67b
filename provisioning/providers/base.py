"""What every provider does: carry one server's spec to where it runs, and tell what is there.

All verbs are idempotent: called again with the same spec they change nothing and return. Each carries a `fence`
(`Operation.fence`); a provider refuses a call whose fence is lower than one it has seen for that server, so that a
worker that lost its lease can't undo its successor's work. Imports no Django.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

Progress = Callable[[str], None]
"""Takes one line for the operation's live log."""


class ProviderError(Exception):
    """An expected failure. `retry` says whether trying the same step again can help; the text is for a person."""

    def __init__(self, message: str, *, code: str = "ProviderError", retry: bool = True) -> None:
        super().__init__(message)
        self.code = code
        self.retry = retry


class StaleFence(ProviderError):
    """A newer worker has taken over this server. `seen`: the fence that was there; 0 where that is not known."""

    def __init__(self, message: str, *, seen: int = 0) -> None:
        super().__init__(message, code="StaleFence", retry=False)
        self.seen = seen


@dataclass(frozen=True)
class ServerSpec:
    """Everything a provider needs to run one server. Sizes: MB for memory, GB for disk and object storage."""

    server_id: str
    server_name: str
    version: str
    vcpu: int
    memory_mb: int
    disk_gb: int
    object_gb: int
    users: int
    suspended: bool = False
    suspend_message: str = ""
    federation: bool = False
    """Whether the name is proved (or under the base domain), so that the server may federate."""
    pushes: bool = True
    """Whether it sends notifications to its people's devices. An instance must not: they would get them twice."""
    organisation_id: str = ""
    database_instances: int = 1
    """Copies of the database, 1 to 3. This and what follows of it only a cluster can do."""
    database_synchronous: bool = False
    database_replicas: bool = False
    workers: int | None = None
    """Generic workers at most; None: as many as its size has room for."""
    network: str = ""
    """The range of addresses of a network of its own, such as 10.64.3.0/24; empty where it has none."""
    public_url: str = ""
    """The address clients use; empty lets the provider choose one."""
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    """`signing_key` (one line in Synapse's format), `macaroon`, `registration`, `form`, `database`, `jwt`, and for
    servers of several processes `replication` and `redis`."""
    backup: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """What backs it up; empty: nothing. `module` is run as `python -m <module> agent <settings.json>`, `settings` is
    JSON to which the provider adds where things are, `files` are put beside it: name to content in base64."""


@dataclass(frozen=True)
class Observation:
    """One server as its provider sees it now."""

    server_id: str
    exists: bool = False
    running: bool = False
    reason: str = ""
    """Named reason when it should run and does not, such as `SynapseCrashed`, `DatabaseDown`, `SigningKeyMismatch`."""
    message: str = ""
    homeserver_url: str = ""
    metrics_url: str = ""
    version: str = ""
    signing_key_id: str = ""
    isolation: str = ""
    """Empty when neighbours are isolated from this server, else the reason why they are not."""
    crashes: int = 0
    started_at: float | None = None
    """Unix seconds of Synapse's present start."""
    suspended: bool = False
    memory_bytes: int | None = None
    cpu_seconds: float | None = None
    """Since its processes started. Where only a rate is known it is in `cpu_cores`, and Hearth adds it up."""
    cpu_cores: float | None = None
    """CPU seconds a second, as a mean over the last moments."""
    disk_bytes: int | None = None
    media_bytes: int | None = None
    """None, here as for the others: this place does not measure it."""
    certificate_wanted: str = ""
    """Why its agent needs a certificate from Hearth, such as `CertificateExpired`; empty while it helps itself."""
    internal_address: str = ""
    """Where its agent believes that Hearth listens; empty when it was never told, or needs no telling."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What one provider alone knows. `backup` is how the process is that backs it up, where there is one."""


@dataclass(frozen=True)
class Recovery:
    """What is brought back into a new instance, and by whose identity its keys are asked for."""

    source: str
    """Id of the server whose backups these are."""
    holder: str
    """Id of the server under whose certificate Hearth is asked for data keys; it must have an identity here. Usually
    the source itself."""
    module: str
    """Run as `python -m <module> restore <request.json>`."""
    request: Mapping[str, Any] = field(repr=False)
    """JSON of `backups.engine.restore.request.Request` without what the provider adds: `data`, `media`,
    `configuration`, `work`, `tools`, `superuser`, `hearth`, `settle.passwords`. Files in it are names in `files`."""
    files: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Name to content in base64, put beside the request: a store's credentials, the key of media names."""
    export: Mapping[str, Any] = field(default_factory=dict)
    """What to give out of it in open formats, in place of an instance that a server could run on: JSON of
    `backups.engine.restore.export.Export` without `request` and `into`. Only where `fleet.exports` says so."""


@dataclass(frozen=True)
class Recovering:
    """How far an instance's recovery is, as its own stream of progress tells."""

    state: str = "none"
    """`none` (there was never one, or no such instance), `running`, `done`, `failed` or `cancelled`."""
    step: str = ""
    """`plan`, `base`, `replay`, `settle`, `media`, `finish`; of an export `files`, `dump` and `archive` too."""
    done_bytes: int = 0
    total_bytes: int = 0
    """As stored; 0 until it is known what must be read."""
    seconds_left: int | None = None
    code: str = ""
    """When it failed: a named reason, a text for a person, and whether the same call may succeed later."""
    text: str = ""
    retry: bool = False
    result: Mapping[str, Any] = field(default_factory=dict)
    """When it is done, its evidence: what the engine's line `restored` says, or `exported`."""
    exchanged: bool | None = None
    """Whether its server has, or is bound to get, what was restored, and the instance what the server had. None: there
    is no such instance."""


class Provider(Protocol):
    """The seam between the engine and a place where servers run."""

    def prepare(self, version: str, progress: Progress) -> None:
        """Make whatever a server of this Synapse version needs before its first start."""

    def ensure_storage(self, spec: ServerSpec, *, fence: int, progress: Progress) -> None:
        """Make the server's place: folders, user, ports, an empty running database."""

    def configure(self, spec: ServerSpec, *, fence: int, progress: Progress) -> None:
        """Write the configuration and the secrets. Does not restart anything."""

    def start(self, spec: ServerSpec, *, fence: int, progress: Progress) -> str:
        """Start it, or again if it runs with something else than what is configured; return its URL once it answers."""

    def stop(self, server_id: str, *, fence: int, progress: Progress) -> None:
        """Stop it and keep it stopped, over restarts of the machine too."""

    def remove(self, server_id: str, *, fence: int, progress: Progress) -> None:
        """Stop it and remove everything of it. Removing what is not there is fine."""

    def certificate_request(self, server_id: str, *, fence: int) -> bytes:
        """Return a certificate request (PEM) of the server's agent, whose private key stays where it is.

        Empty where the agent gets its certificate in another way, as from cert-manager: then nothing is to be done.
        """

    def install_certificate(self, server_id: str, *, chain: str, trust: str, address: str, fence: int) -> None:
        """Give the agent its certificate with those above it, the authorities to trust, and Hearth's internal address.

        `chain` and `trust` are PEM, `address` is `https://host:port`. From then on the agent renews it by itself.
        """

    def recover(self, spec: ServerSpec, recovery: Recovery, *, fence: int, progress: Progress) -> None:
        """Begin to bring a server's backups back into the new instance `spec.server_id`, or go on with it.

        The spec is the server's own but for the id: name, version, secrets. Returns at once; `recovering` tells the
        rest. It goes on by itself after a crash or a restart of the machine. Called again while it runs: it goes on
        with the newer grant. After it failed or was cancelled: it is tried again. After it was done: the instance is
        stopped, and what `request.settle` says is applied to whatever database it holds now, that of before an exchange
        too; nothing is fetched. From before this returns until it is over, `recovering` says `running`.
        """

    def recovering(self, instance: str) -> Recovering:
        """Return how far that is. Asks nobody but the provider's own notes, so it may be called every second."""

    def cancel_recovery(self, instance: str, *, fence: int) -> None:
        """End it. What was fetched stays until `remove(instance)`. One that is over is left as it is."""

    def since(self, server_id: str, *, fence: int | None = None) -> Mapping[str, Any] | None:
        """Return what the server's own database says of now (JSON of `request.Since`); None if it can't be asked.

        With the `fence` of the `stop` before, nobody changes anything from now on: where `stop` only noted it, the
        server is closed. Without one it is asked as it is.
        """

    def exchange(self, server_id: str, instance: str, *, restored: bool, fence: int, progress: Progress) -> None:
        """Let the server have what was restored in the instance (database, media), and the instance what it had.

        `restored` False: the other way, so that each has its own again. Where it is so already nothing is done: a
        worker whose predecessor ended in the middle may call it again. Both are stopped first and stay so. Signing
        key, identity, address, secrets and backups stay the server's. Cut off at any point, the provider itself brings
        it to its end.
        """

    def observe(self) -> Mapping[str, Observation]:
        """Return every server this provider has, by id, from one call.

        An instance that a recovery made is among them; `details["instance_of"]` is the id of its server.
        """

    def route(self, server_id: str, url: str) -> str:
        """Return where Hearth itself reaches the server whose clients use `url`, the admin API too. Asks nobody."""
