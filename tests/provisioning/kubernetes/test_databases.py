"""Databases in a PostgreSQL that the region brings: real, with passwords, by verified TLS, as no superuser."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from provisioning import clusters, observer
from provisioning.models import Cluster, Region, Sample, ServerSecret
from provisioning.providers.base import ProviderError, StaleFence
from provisioning.providers.kubernetes import objects
from provisioning.providers.kubernetes.databases import Databases
from provisioning.providers.kubernetes.place import Postgres
from tenants.errors import Refused
from tenants.models import Server
from tenants.releases import newest
from tests.cluster.api import Api
from tests.cluster.certificates import Authority
from tests.operator.process import Operator
from tests.provisioning.kubernetes import postgres
from tests.provisioning.kubernetes.conftest import BASE
from tests.provisioning.kubernetes.test_life import carry_out, spec
from tests.provisioning.kubernetes.test_objects import BUCKET, PLACE, SPEC, decoded, spec_of

WORD = "a-servers-password"


@pytest.fixture(scope="module")
def real() -> Iterator[postgres.Server]:
    """One for all tests of this file."""
    with postgres.Server() as running:
        yield running


@pytest.fixture
def name() -> str:
    return objects.database_name(str(uuid.uuid4()))


def names(real: postgres.Server) -> set[str]:
    """Return all databases and roles."""
    rows = real.ask("SELECT datname FROM pg_database UNION ALL SELECT rolname FROM pg_roles")
    return {str(row[0]) for row in rows}


def test_it_works(real: postgres.Server, name: str) -> None:
    databases = Databases(real.place)
    databases.ensure(name, WORD, 1)
    databases.ensure(name, WORD, 2)
    mine: dict[str, Any] = {"user": name, "password": WORD, "database": name}
    real.ask("CREATE TABLE events (body text)", **mine)
    shown = real.ask("SELECT current_setting('server_encoding'), datcollate, datctype FROM pg_database "
                     "WHERE datname = current_database()", **mine)  # fmt: skip
    assert shown == [("UTF8", "C", "C")], "what Synapse wants"
    rights = real.ask(
        "SELECT rolsuper, rolcreatedb, rolcreaterole, rolconnlimit FROM pg_roles WHERE rolname = current_user", **mine
    )
    assert rights == [(False, False, False, 200)]
    assert databases.sizes()[name] > 1_000_000
    assert databases.faults() == []
    assert WORD not in real.logs()
    assert "SCRAM-SHA-256" in real.logs(), "it is logged as a verifier"
    assert databases.remove(name, 3)
    assert not databases.remove(name, 3)
    assert name not in names(real)


def test_one_server_can_not_reach_anothers(real: postgres.Server, name: str) -> None:
    databases, other = Databases(real.place), objects.database_name(str(uuid.uuid4()))
    databases.ensure(name, WORD, 1)
    databases.ensure(other, "another-password", 1)
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        real.ask("SELECT 1", user=name, password=WORD, database=other)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        real.ask("SELECT 1", user=other, password=WORD, database=other)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        real.ask(f"SET ROLE {other}", user=name, password=WORD, database=name)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        real.ask("CREATE DATABASE more", user=name, password=WORD, database=name)


def test_what_was_cut_off_is_completed(real: postgres.Server, name: str) -> None:
    """A worker that died after the role, or a password that was changed by hand."""
    real.ask(f"CREATE ROLE {name}; GRANT {name} TO {postgres.ADMIN} WITH ADMIN OPTION")
    Databases(real.place).ensure(name, WORD, 1)
    real.ask(f"ALTER ROLE {name} PASSWORD 'x' NOLOGIN")
    Databases(real.place).ensure(name, WORD, 1)
    assert real.ask("SELECT 1", user=name, password=WORD, database=name) == [(1,)]


def test_a_worker_that_lost_its_lease_changes_nothing(real: postgres.Server, name: str) -> None:
    databases = Databases(real.place)
    databases.ensure(name, WORD, 5)
    with pytest.raises(StaleFence):
        databases.remove(name, 4)
    with pytest.raises(StaleFence):
        databases.ensure(name, "older", 4)
    assert real.ask("SELECT 1", user=name, password=WORD, database=name) == [(1,)]


def test_many_at_once_make_one(real: postgres.Server, name: str) -> None:
    results: list[object] = []

    def make() -> None:
        try:
            Databases(real.place).ensure(name, WORD, 1)
            results.append("made")
        except ProviderError as error:
            results.append(error)

    threads = [threading.Thread(target=make) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == ["made"] * 6


def test_a_database_of_somebody_else_is_left_alone(real: postgres.Server, name: str) -> None:
    real.ask(f"CREATE DATABASE {name}")
    with pytest.raises(ProviderError, match="that Hearth did not make") as caught:
        Databases(real.place).ensure(name, WORD, 1)
    assert caught.value.code == "DatabaseTaken"
    real.ask(f"DROP DATABASE {name}")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"password": "wrong-word"}, "DatabaseCredentials"),
        ({"authority": Authority("another").certificate.decode()}, "DatabaseUntrusted"),
        ({"authority": ""}, "DatabaseUntrusted"),
        ({"host": "127.0.0.1"}, "DatabaseUntrusted"),
        ({"port": 1}, "DatabaseUnreachable"),
    ],
)
def test_what_goes_wrong_is_told_without_a_secret(real: postgres.Server, change: dict[str, Any], code: str) -> None:
    place = replace(real.place, **change)
    with pytest.raises(ProviderError, match="Running servers and their data are not touched") as caught:
        Databases(place).sizes()
    assert caught.value.code == code
    assert place.password not in f"{caught.value}{caught.value.__cause__}{place}"


def test_a_user_with_less(real: postgres.Server, name: str) -> None:
    real.ask("CREATE ROLE weak LOGIN PASSWORD 'weak'")
    databases = Databases(replace(real.place, user="weak", password="weak"))
    assert databases.faults() == ["Its user may not make databases and roles: grant it CREATEDB and CREATEROLE."]
    with pytest.raises(ProviderError) as caught:
        databases.ensure(name, WORD, 1)
    assert caught.value.code == "DatabaseForbidden"


def test_the_server_is_told_of_it() -> None:
    place = replace(PLACE, bucket=BUCKET, postgres=Postgres("db.example", 5433, "u", "p", "PEM", ("10.9.0.0/24",)))
    name = objects.database_name(SPEC.server_id)
    found = spec_of(place)
    assert found["database"] == {
        "managed": {"host": "db.example", "port": 5433, "name": name, "user": name, "tls": "verify-full",
                    "cidrs": ["10.9.0.0/24"]}
    }  # fmt: skip
    assert "postgres" not in found["images"]
    content = decoded(objects.secret(SPEC, place))
    assert (content["username"], content["database-ca.crt"]) == (name, "PEM")
    assert content["password"] == SPEC.secrets["database"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.xdist_group("cluster")
def test_the_life_of_a_server(
    real: postgres.Server,
    api: Api,
    make_region: Callable[..., Cluster],
    make_server: Callable[..., Server],
    operator: Operator,
) -> None:
    place = real.place
    columns = {"database_host": place.host, "database_port": place.port, "database_user": place.user}
    bucket = {"s3_endpoint": "https://s3.example", "s3_bucket": "media"}
    made = make_region(database_password=place.password, database_authority=place.authority, **columns, **bucket)
    region = made.region
    found = {each["what"]: each["state"] for each in clusters.check(actor="staff", cluster=made)}
    assert found["PostgreSQL"] == "good"
    assert "CloudNativePG" not in found
    server = make_server("plum", region=region.code, server_name=f"plum.{BASE}", version=newest().version)
    carry_out(server)
    name = objects.database_name(str(server.pk))
    password = str(ServerSecret.objects.get(server=server, name="database").value)
    assert real.ask("SELECT 1", user=name, password=password, database=name) == [(1,)]
    assert spec(api, server)["database"]["managed"]["name"] == name
    observer.observe()
    assert (Sample.objects.get(server=server).disk_bytes or 0) > 1_000_000
    carry_out(server, desired="deleted")
    assert name not in names(real)
    assert password not in real.logs()
    # Staff renew the password; the servers that are there keep their database where it is.
    make_server("pear", region=region.code)
    with pytest.raises(Refused, match="their data lies there"):
        clusters.change(actor="staff", cluster=made, database_host="elsewhere.example")
    changed = clusters.change(actor="staff", cluster=made, database_password="renewed")
    assert str(Cluster.objects.get().database_password) == "renewed"
    assert changed.revision == 2
    assert Region.objects.get().provider == "kubernetes"
