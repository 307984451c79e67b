"""The steps of each kind of operation. Each is short and idempotent: cut off anywhere, it is simply done again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property
from typing import Any

from django.db.models import F

from provisioning import checks, identities, networks, seams, secrets
from provisioning.fleet import provider_for
from provisioning.leases import Lease
from provisioning.matrix import ADMIN, SERVICE, Homeserver
from provisioning.models import Operation, Region, ServerStatus
from provisioning.providers.base import Provider, ProviderError, ServerSpec
from provisioning.spec import build
from provisioning.status_writer import now_checked
from tenants.models import Server

Kind = Operation.Kind
WAIT = timedelta(seconds=1)


class NotYet(Exception):
    """A step waits for something that others do. It is looked at again `after` that time, as often as that takes.

    Meanwhile no worker is held, the operation can be cancelled, and that is no failed try: the step itself must know
    when it has waited too long.
    """

    def __init__(self, after: timedelta = WAIT) -> None:
        super().__init__()
        self.after = after


@dataclass
class Context:
    """What a step works with. The spec is what was wanted when the operation was made, not what is wanted by now."""

    lease: Lease
    step: str = ""

    @property
    def operation(self) -> Operation:
        return self.lease.operation

    @property
    def server(self) -> Server:
        return self.operation.server

    @property
    def fence(self) -> int:
        return self.lease.fence

    @cached_property
    def provider(self) -> Provider:
        region = Region.objects.filter(code=self.server.region).first()
        if region is None:
            message = f"The region “{self.server.region}” does not exist any more. Your data is untouched; ask support."
            raise ProviderError(message, code="RegionMissing", retry=False)
        return provider_for(region)

    @cached_property
    def secrets(self) -> Mapping[str, str]:
        found = secrets.ensure_spec_secrets(self.server, self.transaction)
        self.lease.hidden = {**self.lease.hidden, **found}
        return found

    @cached_property
    def spec(self) -> ServerSpec:
        applied = ServerStatus.objects.values_list("applied", flat=True).get(server=self.server)
        spec = build(self.server, self.operation.kind, self.operation.wanted, applied, self.secrets)
        network = networks.ensure(self.server, self.transaction)
        return replace(spec, network=network, backup=seams.backup_of(self.server))

    def transaction(self) -> AbstractContextManager[object]:
        """Return a transaction that commits only while the lease is ours."""
        return self.lease.write()

    def log(self, line: str) -> None:
        self.lease.log(line, step=self.step)

    def note(self, line: str) -> None:
        """Say on the page how far a long step is; the log does not keep it."""
        if line != self.operation.note:
            with self.lease.write(note=line[:200]):
                self.operation.note = line

    def save_status(self, **fields: Any) -> None:
        """Keep facts that a later step needs, perhaps in another worker."""
        with self.transaction():
            ServerStatus.objects.filter(server=self.server).update(revision=F("revision") + 1, **fields)

    def homeserver(self) -> Homeserver:
        url = ServerStatus.objects.values_list("homeserver_url", flat=True).get(server=self.server)
        if not url:
            raise ProviderError("The server has no address yet. It is started again.", code="NoAddress")
        return Homeserver(self.route(url), self.server.server_name)

    def route(self, url: str) -> str:
        """Return where Hearth itself reaches the server whose clients use `url`."""
        return self.provider.route(str(self.server.pk), url)


@dataclass(frozen=True)
class Step:
    """`commits`: from here on the operation can't be cancelled, because clients or data may notice.

    `beside` names the step right after this one that it runs beside: both begin, are tried again and end as one. It
    must be short, and writes nothing to the operation itself.
    """

    name: str
    title: str
    run: Callable[[Context], None]
    commits: bool = False
    beside: str = ""


def environment(context: Context) -> None:
    context.provider.prepare(context.spec.version, context.log)


def storage(context: Context) -> None:
    context.provider.ensure_storage(context.spec, fence=context.fence, progress=context.log)


def configuration(context: Context) -> None:
    context.provider.configure(context.spec, fence=context.fence, progress=context.log)


def identity(context: Context) -> None:
    identities.certify(context.server.pk, context.provider, fence=context.fence)


def start(context: Context) -> None:
    url = context.provider.start(context.spec, fence=context.fence, progress=context.log)
    context.save_status(homeserver_url=url)


def stop(context: Context) -> None:
    context.provider.stop(str(context.server.pk), fence=context.fence, progress=context.log)


def stop_if_there(context: Context) -> None:
    try:
        stop(context)
    except ProviderError as error:
        if error.code != "NoSuchServer":
            raise
        context.log("There is nothing to stop: it was never made.")


def _above(name: str) -> Callable[[Context], None]:
    """Return the work of a step that `backups` does."""
    return lambda context: seams.work(name, context)


def final_backup(context: Context) -> None:
    seams.take_point(seams.FINAL, context)


def point_before_upgrade(context: Context) -> None:
    seams.take_point(seams.BEFORE_UPGRADE, context)


def remove(context: Context) -> None:
    seams.remove_belongings(context)
    context.provider.remove(str(context.server.pk), fence=context.fence, progress=context.log)


def forget(context: Context) -> None:
    with context.transaction():
        secrets.forget(context.server)
        networks.release(context.server)


def accounts(context: Context) -> None:
    """Make `@admin` and Hearth's service account, which is admin and `support`: the user limit and suspension spare it.

    One bcrypt in all: only `@admin` has a password. When `@admin` is there already (this step was cut off), Hearth
    signs in as it by JWT, which needs no password, and sets the one that it will show.
    """
    password = secrets.ensure_next_password(context.server, context.transaction)
    context.lease.hidden = {**context.lease.hidden, "password": password}
    with context.homeserver() as homeserver:
        token = homeserver.register_admin(ADMIN, password, context.secrets["registration"])
        if token:
            homeserver.put_user(SERVICE, token, admin=True, user_type="support", displayname="Hearth")
            homeserver.request("POST", "/_matrix/client/v3/logout", token=token, body={})
        else:
            context.log("The admin account is there already; its password is set anew.")
            with homeserver.signed_in(ADMIN, context.secrets["jwt"]) as token:
                homeserver.put_user(SERVICE, token, admin=True, user_type="support", displayname="Hearth")
            _set_password(context, homeserver, password)
    with context.transaction():
        secrets.promote_password(context.server)


def password(context: Context) -> None:
    """Give `@admin` a new password and end its sessions. The service account does it, whatever became of `@admin`."""
    value = secrets.ensure_next_password(context.server, context.transaction)
    context.lease.hidden = {**context.lease.hidden, "password": value}
    with context.homeserver() as homeserver:
        _set_password(context, homeserver, value)
    with context.transaction():
        secrets.promote_password(context.server)


def _set_password(context: Context, homeserver: Homeserver, value: str) -> None:
    with homeserver.signed_in(SERVICE, context.secrets["jwt"]) as token:
        homeserver.put_user(ADMIN, token, password=value, logout_devices=True, admin=True, deactivated=False)


def protocol(context: Context) -> None:
    """Ask what a client and another server would ask; nothing is called ready before."""
    begun = now_checked()
    url = ServerStatus.objects.values_list("homeserver_url", flat=True).get(server=context.server)
    found = checks.run(context.route(url), context.server.server_name, context.secrets)
    wanted = context.spec.version
    if found.version != wanted:
        raise ProviderError(
            f"The server runs Synapse {found.version or 'of an unknown version'}, not {wanted}. Its data is untouched.",
            code="WrongVersion",
        )
    context.save_status(version=found.version, signing_key_id=found.key_id, **begun)
    context.log(f"It answers as Synapse {found.version} and signs with {found.key_id}.")


ENVIRONMENT = Step("environment", "Prepare Synapse", environment)
STORAGE = Step("storage", "Make database and folders", storage)
CONFIGURATION = Step("configuration", "Write the configuration", configuration)
START = Step("start", "Start the server", start, commits=True)
# A provider starts it again when what is configured has changed.
START_AGAIN = Step("start", "Restart with the changes", start, commits=True)
STOP = Step("stop", "Stop the server", stop, commits=True)
CHECKS = Step("checks", "Check that it answers", protocol)
# Into a new instance; the server itself is not touched meanwhile.
BRING_BACK = (
    Step("look", "Look whether it can be restored", _above("look")),
    Step("environment", "Prepare Synapse", _above("environment")),
    Step("recover", "Bring the backup back beside the server", _above("recover")),
    Step("trial", "Start it and check that it answers", _above("trial")),
)
CHANGE_OVER = (
    Step("settle", "Stop the server and carry over who is locked or signed out", _above("settle"), commits=True),
    Step("exchange", "Exchange the data", _above("exchange"), commits=True),
    CONFIGURATION,
    START,
    CHECKS,
)

STEPS: dict[str, tuple[Step, ...]] = {
    Kind.CREATE: (
        ENVIRONMENT,
        STORAGE,
        CONFIGURATION,
        # Nobody needs it before the first backup, and the start is a second of waiting: so it costs no time.
        Step("identity", "Connect it securely to Hearth", identity, beside="start"),
        START,
        Step("accounts", "Make the admin account", accounts),
        CHECKS,
    ),
    Kind.CONFIGURE: (CONFIGURATION, START_AGAIN, CHECKS),
    Kind.RESTART: (STOP, START, CHECKS),
    Kind.SUSPEND: (CONFIGURATION, START_AGAIN),
    Kind.RESUME: (CONFIGURATION, START_AGAIN, CHECKS),
    Kind.UPGRADE: (
        ENVIRONMENT,
        # The new version changes the database, and then nothing but this leads back.
        Step("point", "Take a restore point", point_before_upgrade),
        STOP,
        CONFIGURATION,
        START,
        CHECKS,
    ),
    Kind.RESTORE: (*BRING_BACK, *CHANGE_OVER),
    Kind.COPY: BRING_BACK,
    Kind.SWITCH: CHANGE_OVER,
    Kind.GO_BACK: CHANGE_OVER,
    Kind.EXPORT: (
        Step("look-out", "Look whether it can be exported", _above("look-out")),
        Step("recover", "Read the backup and write the archive", _above("recover")),
        Step("keep", "Keep the archive, and remove what it was made with", _above("keep")),
    ),
    Kind.DROP: (Step("drop", "Remove the copy and its data", _above("drop"), commits=True),),
    Kind.PASSWORD: (Step("password", "Set a new admin password", password, commits=True),),
    Kind.DELETE: (
        Step("final", "Take a final backup", final_backup),
        Step("stop", "Stop the server", stop_if_there),
        Step("remove", "Remove the server and its data", remove, commits=True),
        Step("forget", "Forget its secrets", forget),
    ),
}


def together(kind: str, todo: Sequence[str]) -> list[Step]:
    """Return the steps of `todo` that come next: one, after those that run beside it."""
    steps = [find(kind, todo[0])]
    while steps[-1].beside:
        steps.append(find(kind, steps[-1].beside))
    return steps


def find(kind: str, name: str) -> Step:
    """Return the step `name` of `kind`."""
    return next(step for step in STEPS[kind] if step.name == name)
