"""Verbs on organisations and their plans."""

from __future__ import annotations

import re
import secrets
import unicodedata
from typing import Any

from django.db import IntegrityError, transaction
from django.utils.text import slugify

from accounts.models import User
from audit.services import record
from tenants import limits
from tenants.errors import Refused
from tenants.models import Membership, Organisation, Plan, Server, Subscription
from tenants.services.plans import follow

MAX_NAME = 80
ADDRESS = re.compile(r"://|\bwww\.|\w\.\w+/", re.IGNORECASE)
MAX_SLUG = 40
# A person who needs more has customers of their own, and asks.
MAX_OWNED = 20


@transaction.atomic
def create_organisation(*, actor: Any, name: str, plan: Plan) -> Organisation:
    """Make an organisation on `plan` with the actor as its owner."""
    name = _clean(name)
    if not plan.offered:
        raise Refused(f"The plan {plan.name} is no longer offered. Choose another one.", field="plan")
    _check_owner(actor, name)
    organisation = _insert(name)
    Membership.objects.create(organisation=organisation, user=actor, role=Membership.Role.OWNER)
    Subscription.objects.create(organisation=organisation, plan=plan)
    record(
        actor=actor,
        verb="organisation.create",
        object=organisation,
        organisation_id=organisation.pk,
        after={"name": name, "slug": organisation.slug, "plan": plan.code},
    )
    return organisation


@transaction.atomic
def choose_plan(*, actor: Any, organisation: Organisation, plan: Plan) -> Subscription:
    """Move the organisation to `plan`, unless its servers use more than that allows.

    They keep their size, and are kept from now on as the new plan says.
    """
    subscription = limits.locked_subscription(organisation)
    before = subscription.plan
    if plan == before:
        raise Refused(f"{plan.name} is already your plan. Nothing was changed.", field="plan")
    if not plan.offered:
        raise Refused(f"The plan {plan.name} is no longer offered. Choose another one.", field="plan")
    limits.check_change(plan, limits.in_use(organisation))
    subscription.plan = plan
    subscription.save(update_fields=["plan"])
    changed = follow(Server.objects.filter(organisation=organisation), plan)
    record(
        actor=actor,
        verb="subscription.change",
        object=subscription,
        organisation_id=organisation.pk,
        before={"plan": before.code},
        after={"plan": plan.code} | ({"servers": changed} if changed else {}),
    )
    return subscription


def _clean(raw: str) -> str:
    name = " ".join(raw.split())
    if not name:
        raise Refused("Give the organisation a name.", field="name")
    if len(name) > MAX_NAME:
        raise Refused(f"The name has {len(name)} characters; at most {MAX_NAME} fit. Shorten it.", field="name")
    # Invisible characters (control, direction, unassigned) make one name look like another.
    if any(unicodedata.category(character) in {"Cc", "Cf", "Cn", "Co", "Cs"} for character in name):
        raise Refused("The name has invisible characters. Type it anew instead of pasting it.", field="name")
    if not any(character.isalnum() for character in name):
        raise Refused("A name needs at least one letter or digit.", field="name")
    if ADDRESS.search(name):
        # The name stands in mails to people who don't know Hearth; nobody is led elsewhere by one.
        raise Refused("The name has a web address in it. Leave that out.", field="name")
    return name


def _check_owner(actor: Any, name: str) -> None:
    # One person's creations take turns, so that a form sent twice at once makes one organisation.
    User.objects.select_for_update().get(pk=actor.pk)
    owned = Organisation.objects.filter(memberships__user=actor, memberships__role=Membership.Role.OWNER)
    if owned.filter(name=name).exists():
        raise Refused(
            f"You own an organisation called “{name}” already. No other was made. Open it from the start page, or "
            "choose another name.",
            field="name",
        )
    if owned.count() >= MAX_OWNED:
        raise Refused(
            f"You own {MAX_OWNED} organisations, and more are not possible by yourself. None was made. Ask whoever "
            "runs this Hearth."
        )


def _insert(name: str) -> Organisation:
    """Insert the organisation at an address made from its name; one that is taken gets a few random characters."""
    base = slugify(name)[:MAX_SLUG].strip("-")
    if base:
        try:
            with transaction.atomic():
                return Organisation.objects.create(name=name, slug=base)
        except IntegrityError:
            base = base[: MAX_SLUG - 7].rstrip("-")
    # 24 random bits after a name that is taken: nobody will see them meet.
    return Organisation.objects.create(name=name, slug=f"{base or 'organisation'}-{secrets.token_hex(3)}")
