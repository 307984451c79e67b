"""What an organisation may use: the one place where a plan's limits are held.

A verb that adds to what is used calls `locked_subscription` first. The row lock makes two creations at once take turns,
so that both see what the other has taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from django.db.models import Count, Sum

from tenants.errors import Refused
from tenants.models import MIN_DISK_GB, MIN_MEMORY_MB, MIN_OBJECT_GB, MIN_VCPU, Organisation, Plan, Server, Subscription


@dataclass(frozen=True)
class Usage:
    """What servers take together. MB for memory, GB for disk and object storage, users as the servers let them in."""

    servers: int = 0
    users: int = 0
    vcpu: int = 0
    memory_mb: int = 0
    disk_gb: int = 0
    object_gb: int = 0


@dataclass(frozen=True)
class Limit:
    """One line of a plan, for people: `used` and `limit` are in `unit`."""

    key: str
    label: str
    unit: str
    limit: int
    used: int = 0

    @property
    def text(self) -> str:
        """The limit with its unit, such as `16 GB`."""
        return f"{self.limit:,} {self.unit}".strip()

    @property
    def used_text(self) -> str:
        """What is used, without the unit."""
        return f"{self.used:,}"


LABELS = {
    "servers": ("Servers", ""),
    "users": ("Users active in a month", ""),
    "vcpu": ("Processors", "vCPU"),
    "memory_mb": ("Memory", "GB"),
    "disk_gb": ("Disk (SSD)", "GB"),
    "object_gb": ("Object storage", "GB"),
}
SMALLEST = {"vcpu": MIN_VCPU, "memory_mb": MIN_MEMORY_MB, "disk_gb": MIN_DISK_GB, "object_gb": MIN_OBJECT_GB}


def locked_subscription(organisation: Organisation) -> Subscription:
    """Lock and return the organisation's subscription until the transaction ends."""
    subscription = Subscription.objects.select_for_update(of=("self",)).select_related("plan")
    found = subscription.filter(organisation=organisation).first()
    if found is None:
        raise Refused("This organisation has no plan yet. Choose a plan first.")
    return found


def in_use(organisation: Organisation) -> Usage:
    """Sum the organisation's servers, in one query. A deleted server counts until its grace period has ended."""
    sums = Server.objects.filter(organisation=organisation, deleted__isnull=True).aggregate(
        servers=Count("id"), **{f"sum_{key}": Sum(key, default=0) for key in LABELS if key != "servers"}
    )
    return Usage(**{key.removeprefix("sum_"): value for key, value in sums.items()})


def lines(plan: Plan, used: Usage | None = None) -> list[Limit]:
    """Return the plan's limits as people read them, with what is used."""
    used = used or Usage()
    return [
        Limit(key, label, unit, _shown(key, getattr(plan, key)), _shown(key, getattr(used, key)))
        for key, (label, unit) in LABELS.items()
    ]


def check_room(plan: Plan, used: Usage) -> None:
    """Refuse when the plan has no room for one more server of the smallest size."""
    if used.servers + 1 > plan.servers:
        taken = "1 server" if plan.servers == 1 else f"{plan.servers} servers"
        raise Refused(
            f"The plan {plan.name} allows {taken}, and all are in use. No server was made. Choose a larger plan, or "
            "delete a server (it counts until its grace period has ended)."
        )
    short = [key for key, least in SMALLEST.items() if getattr(used, key) + least > getattr(plan, key)]
    if short or used.users + 1 > plan.users:
        if used.users + 1 > plan.users:
            short.append("users")
        names = ", ".join(_in_words(LABELS[key][0]) for key in short)
        raise Refused(
            f"The plan {plan.name} has too little left for another server ({names}). No server was made. Choose a "
            "larger plan."
        )


def users_for_new_server(plan: Plan, used: Usage, wanted: int | None) -> int:
    """Return how many users a new server lets in: as asked, else a fair share of what the plan has left."""
    left = plan.users - used.users
    if wanted is None:
        return max(1, min(left, plan.users // plan.servers))
    if not 1 <= wanted <= left:
        raise Refused(f"The plan {plan.name} has {left} users left. Choose a number from 1 to {left}.", field="users")
    return wanted


def size_of(server: Server) -> dict[str, int]:
    """Return a server's size, by the keys of `SMALLEST`."""
    return {key: getattr(server, key) for key in SMALLEST}


def largest_size(plan: Plan, used: Usage, now: Mapping[str, int]) -> dict[str, int]:
    """Return what a server of size `now` could have at most: what it has and what the plan has left."""
    return {key: has + max(0, getattr(plan, key) - getattr(used, key)) for key, has in now.items()}


def check_size(plan: Plan, used: Usage, now: Mapping[str, int], wanted: Mapping[str, int]) -> None:
    """Refuse a size that a server of size `now` can't get."""
    if wanted == now:
        raise Refused("The server has that size already. Nothing was changed.", field="vcpu")
    most = largest_size(plan, used, now)
    for key, value in wanted.items():
        if value < SMALLEST[key]:
            raise Refused(f"A server has at least {_amount(key, SMALLEST[key])}. Nothing was changed.", field=key)
        if key == "disk_gb" and value < now[key]:
            raise Refused(
                f"A disk can't become smaller, and this one has {_amount(key, now[key])}. Nothing was changed.",
                field=key,
            )
        if value > max(now[key], most[key]):
            raise Refused(
                f"The plan {plan.name} has room for at most {_amount(key, most[key])} here. Nothing was changed. "
                "Choose less, or a larger plan first.",
                field=key,
            )


def _amount(key: str, value: int) -> str:
    """Return an amount in words. Memory is rounded down: what is said must be possible."""
    label, unit = LABELS[key]
    shown = value // 1024 if key == "memory_mb" else value
    return f"{shown:,} {unit}" if key == "vcpu" else f"{shown:,} {unit} of {_in_words(label)}"


def check_change(plan: Plan, used: Usage) -> None:
    """Refuse a plan that is smaller than what is in use."""
    over = [line for line in lines(plan, used) if line.used > line.limit]
    if over:
        parts = ", ".join(f"{_in_words(line.label)} {line.used_text} of {line.text}" for line in over)
        raise Refused(
            f"The plan {plan.name} is smaller than what you use ({parts}). The plan was not changed and nothing was "
            "stopped. Delete servers first, or choose a larger plan."
        )


def _shown(key: str, value: int) -> int:
    # Rounded up: 4.5 GB of memory in use must never look as if it fitted into 4.
    return -(-value // 1024) if key == "memory_mb" else value


def _in_words(label: str) -> str:
    return label[0].lower() + label[1:]
