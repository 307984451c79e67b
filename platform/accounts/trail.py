"""What the audit trail says of accounts. Each function writes one event and is called inside a transaction."""

from __future__ import annotations

from accounts.models import User
from audit import services as audit
from audit.services import SYSTEM


class Unknown:
    """Somebody who has not proved who they are."""

    pk = None

    def __str__(self) -> str:
        return "Somebody not signed in"


UNKNOWN = Unknown()


def signed_up(user: User) -> None:
    audit.record(actor=user, verb="account.sign_up", object=user)


def address_verified(user: User, address: str) -> None:
    audit.record(actor=user, verb="account.verify_email", object=user, after={"email": address})


def address_changed(user: User, before: str, after: str) -> None:
    audit.record(actor=user, verb="account.change_email", object=user, before={"email": before}, after={"email": after})


def signed_in(user: User, methods: list[str]) -> None:
    audit.record(actor=user, verb="account.sign_in", object=user, after={"methods": methods})


def sign_in_failed(user: User, step: str) -> None:
    audit.record(actor=UNKNOWN, verb="account.sign_in_failed", object=user, after={"step": step})


def password_changed(user: User, how: str) -> None:
    audit.record(actor=user, verb="account.change_password", object=user, after={"how": how})


def factor_added(user: User, kind: str) -> None:
    audit.record(actor=user, verb="account.add_factor", object=user, after={"factor": kind})


def factor_removed(user: User, kind: str) -> None:
    audit.record(actor=user, verb="account.remove_factor", object=user, before={"factor": kind})


def renamed(user: User, before: str) -> None:
    audit.record(actor=user, verb="account.rename", object=user, before={"name": before}, after={"name": user.name})


def staff_made(user: User) -> None:
    audit.record(actor=user, verb="account.claim_staff_link", object=user)


def activity_changed(actor: User, user: User, active: bool) -> None:
    audit.record(actor=actor, verb="account.reopen" if active else "account.close", object=user)


def forgotten(user: User) -> None:
    audit.record(actor=SYSTEM, verb="account.forget", object=user)
