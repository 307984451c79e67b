"""The plans that a new installation offers."""

from __future__ import annotations

from django.db import transaction

from tenants.models import Plan

PLANS = (
    Plan(code="ember", name="Ember", summary="One server for a family, a club or a first try.", position=1,
         servers=1, users=50, vcpu=2, memory_mb=4096, disk_gb=20, object_gb=100),
    Plan(code="hearth", name="Hearth", summary="Room for a company and a server to test with.", position=2,
         servers=3, users=500, vcpu=8, memory_mb=16384, disk_gb=120, object_gb=500),
    Plan(code="beacon", name="Beacon", summary="Many servers: schools, agencies, public bodies.", position=3,
         servers=10, users=5000, vcpu=32, memory_mb=65536, disk_gb=600, object_gb=3000),
)  # fmt: skip


@transaction.atomic
def seed_plans() -> None:
    """Add the plans that are missing. One that staff have changed stays as they left it."""
    existing = set(Plan.objects.values_list("code", flat=True))
    Plan.objects.bulk_create([plan for plan in PLANS if plan.code not in existing], ignore_conflicts=True)
