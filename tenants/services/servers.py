"""Verbs on servers. They change what is wanted; `provisioning` brings it about."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils import timezone

from audit.services import record
from tenants import limits, names, releases, seams
from tenants.errors import OutOfDate, Refused
from tenants.models import Domain, Organisation, Server
from tenants.services.keys import refuse_erasing
from tenants.services.plans import kept_by

DEFAULT_MESSAGE = "This server is suspended by its owner."
MAX_MESSAGE = 200
TRACKED = (
    "desired",
    "version",
    *limits.SMALLEST,
    "suspend_message",
    "restarts",
    "password_resets",
    "delete_requested",
    "delete_after",
    "generation",
)


@transaction.atomic
def create_server(
    *,
    actor: Any,
    organisation: Organisation,
    name: str,
    region: str,
    domain: str | None = None,
    users: int | None = None,
) -> Server:
    """Make a server of the smallest size. `domain` is a whole server name on a proved domain, if wanted."""
    label = _label(name)
    choice = next((choice for choice in seams.open_regions() if choice.code == region), None)
    if choice is None:
        raise Refused("That region takes no new servers. Choose one from the list.", field="region")
    # The lock comes before every look at what is there: creations of one organisation take turns.
    plan = limits.locked_subscription(organisation).plan
    refuse_erasing(organisation)
    server_name = _own_name(organisation, domain) if domain else _default_name(label, choice.base_domain)
    used = limits.in_use(organisation)
    limits.check_room(plan, used)
    seams.take_place(region)
    server = _insert(
        own=bool(domain),
        organisation=organisation,
        name=label,
        server_name=server_name,
        region=region,
        version=releases.newest().version,
        users=limits.users_for_new_server(plan, used, users),
        **kept_by(plan),
    )
    record(
        actor=actor,
        verb="server.create",
        object=server,
        organisation_id=organisation.pk,
        after={"server_name": server_name, "region": region, "version": server.version, "users": server.users},
    )
    _wake(server)
    return server


def restart_server(*, actor: Any, server: Server, generation: int | None = None) -> Server:
    """Have the server stop and start once."""
    with transaction.atomic():
        locked, before = _locked(server, generation)
        _refuse_unless_running(locked, "restarted")
        locked.restarts += 1
        return _save(actor, "server.restart", locked, before)


def suspend_server(*, actor: Any, server: Server, message: str = "", generation: int | None = None) -> Server:
    """Close the server to its users, who are told `message`. Its data stays."""
    text = " ".join(message.split()) or DEFAULT_MESSAGE
    if len(text) > MAX_MESSAGE:
        raise Refused(
            f"The message has {len(text)} characters; at most {MAX_MESSAGE} fit. Shorten it.", field="message"
        )
    with transaction.atomic():
        locked, before = _locked(server, generation)
        if locked.desired == Server.Desired.SUSPENDED:
            raise Refused("The server is already suspended. Nothing was changed.")
        locked.desired, locked.suspend_message = Server.Desired.SUSPENDED, text
        return _save(actor, "server.suspend", locked, before)


def resume_server(*, actor: Any, server: Server, generation: int | None = None) -> Server:
    """Open a suspended server again."""
    with transaction.atomic():
        locked, before = _locked(server, generation)
        if locked.desired == Server.Desired.RUNNING:
            raise Refused("The server is not suspended. Nothing was changed.")
        locked.desired, locked.suspend_message = Server.Desired.RUNNING, ""
        return _save(actor, "server.resume", locked, before)


def upgrade_server(*, actor: Any, server: Server, version: str, generation: int | None = None) -> Server:
    """Move the server to another Synapse version, where the database's schema allows it."""
    with transaction.atomic():
        locked, before = _locked(server, generation)
        _refuse_unless_running(locked, "upgraded")
        if version == locked.version:
            raise Refused(f"The server is already on Synapse {version}. Nothing was changed.", field="version")
        try:
            releases.check_upgrade(locked.version, version)
        except releases.ReleaseRefused as refusal:
            raise Refused(str(refusal), field="version") from None
        locked.version = version
        return _save(actor, "server.upgrade", locked, before)


@transaction.atomic
def resize_server(
    *,
    actor: Any,
    server: Server,
    vcpu: int,
    memory_mb: int,
    disk_gb: int,
    object_gb: int,
    generation: int | None = None,
) -> Server:
    """Give the server another size, within what the plan has left. A disk never becomes smaller: volumes can't."""
    wanted = {"vcpu": vcpu, "memory_mb": memory_mb, "disk_gb": disk_gb, "object_gb": object_gb}
    # The plan's lock comes before the server's, as where a plan is changed or a server made.
    plan = limits.locked_subscription(server.organisation).plan
    locked, before = _locked(server, generation)
    _refuse_unless_running(locked, "given another size")
    limits.check_size(plan, limits.in_use(locked.organisation), limits.size_of(locked), wanted)
    for key, value in wanted.items():
        setattr(locked, key, value)
    return _save(actor, "server.resize", locked, before)


def delete_server(*, actor: Any, server: Server, confirm: str, generation: int | None = None) -> Server:
    """Close the server now and remove everything of it when the grace period ends. `confirm` repeats its name."""
    with transaction.atomic():
        locked, before = _locked(server, generation)
        if confirm.strip() != locked.server_name:
            raise Refused(
                f"That is not the name of this server. Nothing was deleted. Type {locked.server_name} to delete it.",
                field="confirm",
            )
        now = timezone.now()
        locked.desired = Server.Desired.DELETED
        locked.delete_requested = now
        locked.delete_after = now + timedelta(hours=settings.HEARTH["HEARTH_DELETE_GRACE_HOURS"])
        return _save(actor, "server.delete", locked, before)


def undelete_server(*, actor: Any, server: Server, generation: int | None = None) -> Server:
    """Bring a deleted server back within its grace period, suspended if it was suspended."""
    with transaction.atomic():
        locked, before = _locked(server, generation, alive=False)
        if locked.desired != Server.Desired.DELETED:
            raise Refused("The server is not deleted. Nothing was changed.")
        if locked.deleted or locked.delete_after is None or locked.delete_after <= timezone.now():
            raise Refused(
                "The grace period has ended and the server's data is being removed. It can't be brought back."
            )
        locked.desired = Server.Desired.SUSPENDED if locked.suspend_message else Server.Desired.RUNNING
        locked.delete_requested = locked.delete_after = None
        return _save(actor, "server.undelete", locked, before)


def reset_admin_password(*, actor: Any, server: Server, generation: int | None = None) -> Server:
    """Have a new password set for `@admin`; the old one stops working."""
    with transaction.atomic():
        locked, before = _locked(server, generation)
        _refuse_unless_running(locked, "given a new password")
        locked.password_resets += 1
        return _save(actor, "server.password", locked, before)


@transaction.atomic
def revive_server(*, actor: Any, server: Server) -> Server:
    """Want a server again whose data are gone, under its own name and id: made anew, empty, for a backup.

    Staff's, and only with the signing key of its backup at hand: other homeservers know the name by that.
    """
    plan = limits.locked_subscription(server.organisation).plan
    refuse_erasing(server.organisation)
    locked, before = _locked(server, None, alive=False)
    if locked.deleted is None:
        raise Refused("This server is not gone. Nothing was changed. Within its grace period its owner brings it back.")
    if Server.objects.filter(server_name__iexact=locked.server_name, deleted__isnull=True).exists():
        raise Refused(f"“{locked.server_name}” is taken by another server now. Nothing was changed.")
    limits.check_room(plan, limits.in_use(locked.organisation))
    seams.take_place(locked.region)
    locked.desired, locked.suspend_message, locked.deleted = Server.Desired.RUNNING, "", None
    locked.delete_requested = locked.delete_after = None
    locked.save(update_fields=["deleted"])
    return _save(actor, "server.revive", locked, before)


@transaction.atomic
def adopt_version(*, actor: Any, server: Server, version: str) -> Server:
    """Want the version that data from a backup go with. Nothing is refused: it is what runs there already."""
    locked, before = _locked(server, None, alive=False)
    if locked.version == version:
        return locked
    locked.version = version
    return _save(actor, "server.restored_version", locked, before)


def _label(name: str) -> str:
    try:
        return names.server_label(name)
    except Refused as refusal:
        raise Refused(refusal.message, field="name") from None


def _default_name(label: str, base_domain: str) -> str:
    try:
        return names.check_length(f"{label}.{base_domain}")
    except Refused as refusal:
        raise Refused(refusal.message, field="name") from None


def _own_name(organisation: Organisation, raw: str) -> str:
    try:
        name = names.domain_name(raw)
    except Refused as refusal:
        raise Refused(refusal.message, field="domain") from None
    proved = Domain.objects.filter(organisation=organisation, proved__isnull=False, name__in=names.parents(name))
    # Locked, so that the domain can't be given up while a server takes its name.
    if not proved.select_for_update().exists():
        raise Refused(
            f"“{name}” is not on a domain that you have proved. No server was made. Prove it under Domains first.",
            field="domain",
        )
    return name


def _insert(*, own: bool, **columns: Any) -> Server:
    name = columns["server_name"]
    taken = Refused(f"“{name}” is taken. No server was made. Choose another name.", field="name")
    namesakes = Server.objects.filter(server_name__iexact=name)
    if namesakes.filter(organisation=columns["organisation"], deleted__isnull=True).exists():
        # A form that was sent twice, most likely.
        raise Refused(
            f"You have a server called “{name}” already. No other was made; it is in your list.", field="name"
        )
    # Whoever runs a server under a name of the past can speak as its people. On a domain of one's own the proof says
    # whose name it is now; under our base domain it stays with the organisation that had it.
    past = namesakes.none() if own else namesakes.exclude(organisation=columns["organisation"])
    if namesakes.filter(deleted__isnull=True).exists() or past.exists():
        raise taken
    try:
        with transaction.atomic():
            return Server.objects.create(**columns)
    except IntegrityError:
        # Another organisation took the name between the look and the insert.
        raise taken from None


def _locked(server: Server, generation: int | None, *, alive: bool = True) -> tuple[Server, dict[str, Any]]:
    """Lock the server's row and return it with what it was; refuse when the page that asks is out of date."""
    locked = Server.objects.select_for_update(of=("self",)).select_related("organisation").get(pk=server.pk)
    if generation is not None and generation != locked.generation:
        raise OutOfDate
    if alive and locked.desired == Server.Desired.DELETED:
        raise Refused("The server is deleted. Nothing was changed. Within the grace period it can be brought back.")
    return locked, _state(locked)


def _refuse_unless_running(server: Server, what: str) -> None:
    if server.desired == Server.Desired.SUSPENDED:
        raise Refused(f"A suspended server can't be {what}. Nothing was changed. Resume it first.")


def _save(actor: Any, verb: str, server: Server, before: dict[str, Any]) -> Server:
    server.generation += 1
    server.save(update_fields=list(TRACKED))
    after = _state(server)
    changed = [key for key in TRACKED if before[key] != after[key]]
    record(
        actor=actor,
        verb=verb,
        object=server,
        organisation_id=server.organisation_id,
        before={key: before[key] for key in changed},
        after={key: after[key] for key in changed},
    )
    _wake(server)
    return server


def _state(server: Server) -> dict[str, Any]:
    values = {key: getattr(server, key) for key in TRACKED}
    return {key: value.isoformat() if hasattr(value, "isoformat") else value for key, value in values.items()}


def _wake(server: Server) -> None:
    # A hint that is lost costs seconds, so a broker that is down must not fail what is already committed.
    # (No partial: Django asks a robust callback that failed for its __qualname__.)
    server_id = server.pk
    transaction.on_commit(lambda: seams.wake(server_id), robust=True)
