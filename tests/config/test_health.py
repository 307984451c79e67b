"""`/healthz` and `/readyz`: no sign-in, a reason for each part, no secret."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from django.db import connection
from django.test import Client
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries, Settings

from config import health
from provisioning.models import Heartbeat


@pytest.fixture(autouse=True)
def _nothing_remembered() -> Iterator[None]:
    health.forget()
    yield
    health.forget()


def beat(*, seconds_ago: float = 0) -> None:
    at = timezone.now() - timedelta(seconds=seconds_ago)
    Heartbeat.objects.update_or_create(name="beat", defaults={"at": at})
    health.forget()


def test_alive_without_a_database() -> None:
    answer = Client().get("/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "alive"})


@pytest.mark.django_db
def test_ready_when_every_part_is() -> None:
    beat()
    answer = Client().get("/readyz")
    assert answer.status_code == 200
    parts = dict.fromkeys(("database", "broker", "migrations", "beat", "internal listener"), "ok")
    assert answer.json() == {"status": "ready", "checks": parts}


@pytest.mark.django_db
def test_beat_that_never_ran_or_went_away() -> None:
    answer = Client().get("/readyz")
    assert (answer.status_code, answer.json()["checks"]["beat"]) == (503, "Beat has never run here.")
    beat(seconds_ago=90)
    answer = Client().get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["checks"]["beat"].startswith("Beat was last seen 90 seconds ago")


@pytest.mark.django_db
def test_a_broker_that_is_away(settings: Settings) -> None:
    beat()
    settings.REDIS_URL = "unix:///nonexistent/redis.sock?password=hush"
    answer = Client().get("/readyz")
    assert (answer.status_code, answer.json()["checks"]["broker"][:21]) == (503, "Redis does not answer")
    assert "hush" not in answer.text


@pytest.mark.django_db(transaction=True)
def test_a_migration_that_is_missing() -> None:
    beat()
    with connection.cursor() as cursor:
        cursor.execute("select name, app, applied from django_migrations where app = 'provisioning' order by id desc")
        row = cursor.fetchone()
        cursor.execute("delete from django_migrations where app = 'provisioning' and name = %s", row[:1])
        try:
            answer = Client().get("/readyz")
        finally:
            cursor.execute("insert into django_migrations (name, app, applied) values (%s, %s, %s)", row)
    assert answer.status_code == 503
    assert answer.json()["checks"]["migrations"] == "1 migrations are not applied. Run: manage.py migrate"


@pytest.mark.django_db
def test_a_flood_of_probes_costs_one_round(
    django_assert_max_num_queries: DjangoAssertNumQueries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "KEEP", 60)
    beat()
    Client().get("/readyz")
    with django_assert_max_num_queries(0):
        for _ in range(20):
            assert Client().get("/readyz").status_code == 200


@pytest.mark.django_db
@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_only_reading(path: str) -> None:
    assert Client().post(path).status_code == 405
