"""When PostgreSQL or Redis is away: what still works, and a clear page in place of what does not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import DataError, InterfaceError, OperationalError, connection
from django.http import HttpResponse
from django.test import AsyncClient, Client, override_settings
from django.urls import path
from psycopg import errors
from redis.exceptions import ConnectionError as RedisGone

from accounts.models import User
from config.errors import is_away
from config.urls import handler429, handler500
from config.urls import urlpatterns as real
from tests.accounts.browser import Browser

__all__ = ["handler429", "handler500"]
SENTENCE = "servers that run keep running"


def explode(request: Any) -> HttpResponse:
    raise ZeroDivisionError


urlpatterns = [*real, path("explode/", explode)]


@pytest.fixture
def dead_redis(settings: Any) -> Iterator[None]:
    """Redis is gone: its socket answers nobody."""
    backend = settings.CACHES["default"]
    with override_settings(CACHES={"default": {**backend, "LOCATION": "unix:///nowhere/redis.sock"}}):
        yield


@pytest.fixture
def dead_database(db: None) -> Iterator[None]:
    """Each query fails as it does when PostgreSQL was stopped."""

    def gone(*_: object) -> None:
        raise OperationalError("the connection is lost")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "cursor", gone)
        yield


def test_without_redis_pages_work_and_signing_in_says_what_is_wrong(
    dead_redis: None, alice: User, client_for: Callable[[User], Client]
) -> None:
    hers = client_for(alice)
    for page in ("/account/", "/", "/nothing/"):
        assert hers.get(page).status_code in {200, 302, 404}, page
    client = Client(raise_request_exception=False)
    assert client.get("/account/login/").status_code == 200
    answer = client.post("/account/login/", {"login": alice.email, "password": "wrong guess"})
    assert answer.status_code == 503
    assert SENTENCE in answer.content.decode()
    assert answer["Retry-After"] == "10"


def test_without_redis_a_verb_is_done(dead_redis: None, alice: User, client_for: Callable[[User], Client]) -> None:
    browser = Browser(client=client_for(alice)).open("/account/").send(name="Alice A.")
    assert "Your name is saved" in browser.text


@pytest.mark.parametrize("page", ["/account/", "/o/acme/", "/nothing/", "/admin/"])
def test_without_the_database_a_person_reads_why(
    alice: User, client_for: Callable[[User], Client], request: pytest.FixtureRequest, page: str
) -> None:
    hers = client_for(alice)
    hers.raise_request_exception = False
    request.getfixturevalue("dead_database")
    answer = hers.get(page)
    assert answer.status_code == 503
    assert SENTENCE in answer.content.decode()
    assert "Traceback" not in answer.content.decode()
    assert "no-store" in answer["Cache-Control"]
    assert "frame-ancestors 'none'" in answer["Content-Security-Policy"]


def test_without_the_database_visitors_still_see_pages(dead_database: None) -> None:
    for page in ("/", "/account/login/", "/account/signup/", "/healthz"):
        assert Client().get(page).status_code == 200, page


@override_settings(ROOT_URLCONF=__name__)
def test_a_fault_of_ours_is_no_outage_and_shows_nothing_of_itself() -> None:
    answer = Client(raise_request_exception=False).get("/explode/")
    assert answer.status_code == 500
    assert "Something broke on our side" in answer.content.decode()
    assert "ZeroDivision" not in answer.content.decode()


@pytest.mark.parametrize(
    ("error", "cause", "away"),
    [
        (OperationalError(), None, True),
        (OperationalError(), errors.AdminShutdown(), True),
        (OperationalError(), errors.DiskFull(), True),
        (OperationalError(), errors.DeadlockDetected(), False),
        (InterfaceError(), None, True),
        (DataError(), None, False),
        (RedisGone(), None, True),
        (RuntimeError(), OperationalError(), False),
    ],
)
def test_what_counts_as_away(error: Exception, cause: Exception | None, away: bool) -> None:
    error.__cause__ = cause
    assert is_away(error) is away


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("page", "status"), [("/nothing/", 404), ("/admin/login/", 403)])
def test_error_pages_outlive_a_restart_of_the_database(
    alice: User, client_for: Callable[[User], Client], page: str, status: int
) -> None:
    client = AsyncClient(raise_request_exception=False)
    client.cookies = client_for(alice).cookies
    for _ in range(2):
        assert async_to_sync(client.get)(page).status_code == status
        # As a restart does: every connection that somebody kept is dead, this test's own excepted.
        _others("select count(pg_terminate_backend(pid))")
    assert async_to_sync(client.get)(page).status_code == status
    limit = time.monotonic() + 60
    while _others("select count(*)"):  # a session that was closed is listed until its process has ended
        assert time.monotonic() < limit
        time.sleep(0.05)


def _others(what: str) -> int:
    """Return what is selected of the other sessions of people in this database."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"{what} from pg_stat_activity where datname = current_database() "
            "and pid <> pg_backend_pid() and backend_type = 'client backend'"
        )
        return int(cursor.fetchone()[0])
