"""Connections to a real PostgreSQL and a real Redis with TLS: the right ones are trusted, and nobody else."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import psycopg
import pytest
import redis
from celery import Celery
from django.core.cache.backends.redis import RedisCache
from django.db.backends.postgresql.base import DatabaseWrapper
from kombu.exceptions import OperationalError

from config.connections.database import Database
from config.connections.explain import explain
from config.connections.redisurl import Redis
from config.env import read
from config.schedule import TRANSPORT_OPTIONS, broker_url
from tests.bench.floor import free_ports
from tests.left_out import need_tls_servers
from tests.stack import Stack
from tests.tls import Authority, Pair, TlsServices

pytestmark = pytest.mark.xdist_group("tls")  # they share one data folder
TLS12 = "ssl_max_protocol_version=TLSv1.2"


@pytest.fixture(scope="module")
def servers() -> Iterator[TlsServices]:
    need_tls_servers()
    servers = TlsServices()
    yield servers
    servers.close()


@pytest.fixture(scope="module")
def files(servers: TlsServices) -> Any:
    """What vouches for what: `ours` for `good`, `other_name`, `expired` and `client`; a stranger for `foreign`."""
    ours, stranger = Authority(servers.folder, "ours"), Authority(servers.folder, "stranger")
    return SimpleNamespace(
        ours=ours.file,
        stranger=stranger.file,
        good=ours.issue("good"),
        other_name=ours.issue("other-name", ["elsewhere.example", "127.0.0.9"]),
        expired=ours.issue("expired", days=-1),
        client=ours.issue("client"),
        foreign=stranger.issue("foreign"),
    )


def database(port: int, ca: Path, client: Pair | None = None, host: str = "localhost") -> Database:
    return Database.of(
        read({"DATABASE_URL": f"postgres://hearth@{host}:{port}/hearth"} | _files("DATABASE", ca, client))
    )


def broker(port: int, ca: Path, client: Pair | None = None) -> Redis:
    return Redis.of(read({"REDIS_URL": f"rediss://localhost:{port}/0"} | _files("REDIS", ca, client)))


def _files(service: str, ca: Path, client: Pair | None) -> dict[str, str]:
    prefix = f"HEARTH_{service}"
    pair = {f"{prefix}_CERTIFICATE": str(client.certificate), f"{prefix}_KEY": str(client.key)} if client else {}
    return {f"{prefix}_CA": str(ca)} | pair


def version(database: Database) -> str:
    with psycopg.connect(**database.psycopg()) as connection:
        row = connection.execute("select version from pg_stat_ssl where pid = pg_backend_pid()").fetchone()
        assert row is not None
        return str(row[0])


def refusal_of(database: Database) -> str:
    """Return the sentence that a person reads when neither psycopg nor Django connects."""
    with pytest.raises(psycopg.OperationalError) as refusal:
        version(database)
    wrapper = DatabaseWrapper({**_django_defaults(), **database.django()})
    with pytest.raises(psycopg.OperationalError) as also:
        wrapper.connect()
    assert explain(refusal.value, "HEARTH_DATABASE") == explain(also.value, "HEARTH_DATABASE")
    return explain(refusal.value, "HEARTH_DATABASE")


def _django_defaults() -> dict[str, Any]:
    return {"TIME_ZONE": None, "CONN_MAX_AGE": 0, "AUTOCOMMIT": True, "ATOMIC_REQUESTS": False, "TEST": {}}


@pytest.mark.django_db
def test_the_right_database(servers: TlsServices, files: Any) -> None:
    with servers.postgres(pair=files.good) as port:
        for host in ("localhost", "127.0.0.1"):
            assert version(database(port, files.ours, host=host)) == "TLSv1.3"
        wrapper = DatabaseWrapper({**_django_defaults(), **database(port, files.ours).django()})
        with closing(wrapper), wrapper.cursor() as cursor:
            cursor.execute("select version from pg_stat_ssl where pid = pg_backend_pid()")
            assert cursor.fetchone() == ("TLSv1.3",)


@pytest.mark.parametrize(
    ("server", "ca", "sentence"),
    [
        (("good", []), "stranger", "Its certificate is not vouched for by the authority in HEARTH_DATABASE_CA"),
        (("foreign", []), "ours", "Its certificate is not vouched for by the authority in HEARTH_DATABASE_CA"),
        (
            ("expired", []),
            "ours",
            "Its certificate is not vouched for by the authority in HEARTH_DATABASE_CA, or it has",
        ),
        (("other_name", []), "ours", "Its certificate is for another name than the address has"),
        (("good", [TLS12]), "ours", "It does not speak TLS 1.3, and Hearth takes nothing less."),
        ((None, []), "ours", "It does not speak TLS on that port."),
    ],
)
def test_a_database_that_is_not_trusted(
    servers: TlsServices, files: Any, server: tuple[str | None, list[str]], ca: str, sentence: str
) -> None:
    pair, options = server
    with servers.postgres(*options, pair=getattr(files, pair) if pair else None) as port:
        assert refusal_of(database(port, getattr(files, ca))).startswith(sentence)


def test_variables_of_libpq_change_nothing(
    servers: TlsServices, files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = tmp_path / "service.conf"
    service.write_text("[lax]\nsslmode=disable\nhost=127.0.0.9\nport=1\n")
    variables = {
        "PGHOST": "127.0.0.9", "PGHOSTADDR": "127.0.0.9", "PGPORT": "1", "PGSSLMODE": "disable", "PGSERVICE": "lax",
        "PGSERVICEFILE": str(service), "PGSSLROOTCERT": str(files.stranger), "PGSSLMINPROTOCOLVERSION": "TLSv1",
        "PGREQUIRESSL": "0", "PGGSSENCMODE": "prefer", "PGSSLCERT": "/nowhere",
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with servers.postgres(pair=files.good) as port:
        assert version(database(port, files.ours)) == "TLSv1.3"
    with servers.postgres(pair=None) as port:
        assert refusal_of(database(port, files.ours)) == "It does not speak TLS on that port."
        plain = read({"DATABASE_URL": f"postgres://hearth@127.0.0.1:{port}/hearth?sslmode=prefer"})
        with psycopg.connect(**Database.of(plain).psycopg()) as connection:
            assert connection.info.hostaddr == "127.0.0.1"


def test_a_database_that_wants_a_client_certificate(servers: TlsServices, files: Any) -> None:
    with servers.postgres(pair=files.good, clients=files.ours) as port:
        assert version(database(port, files.ours, files.client)) == "TLSv1.3"
        assert refusal_of(database(port, files.ours)).startswith(
            "It wants a client certificate that it accepts: HEARTH_"
        )
        assert refusal_of(database(port, files.ours, files.foreign)).startswith("It wants a client certificate")


def reach(found: Redis) -> None:
    """Do something with Redis by each of its three clients."""
    with redis.Redis.from_url(found.url, **found.client(), socket_timeout=1) as client:
        assert client.ping()
    cache = RedisCache(found.url, {"OPTIONS": {"socket_timeout": 1, **found.client()}})
    cache.set("a", 1)
    assert cache.get("a") == 1
    with celery_for(found).connection_for_write() as connection:
        queue = connection.SimpleQueue("tls")
        queue.put({"n": 1})
        message = queue.get(timeout=10)
        message.ack()
        assert message.payload == {"n": 1}
        queue.close()


def celery_for(found: Redis) -> Celery:
    app = Celery("tls", broker=broker_url(found.url), set_as_current=False)
    app.conf.update(found.celery(), broker_transport_options={**TRANSPORT_OPTIONS, "socket_timeout": 1})
    return app


def refusals_of(found: Redis) -> set[str]:
    """Return the sentences for the three clients, none of which connects."""
    said = set()
    with redis.Redis.from_url(found.url, **found.client(), socket_timeout=1) as client:
        with pytest.raises((redis.ConnectionError, redis.TimeoutError)) as refusal:
            client.ping()
        said.add(explain(refusal.value, "HEARTH_REDIS"))
    cache = RedisCache(found.url, {"OPTIONS": {"socket_timeout": 1, **found.client()}})
    with pytest.raises((redis.ConnectionError, redis.TimeoutError)) as refusal:
        cache.get("a")
    said.add(explain(refusal.value, "HEARTH_REDIS"))
    with celery_for(found).connection_for_write() as connection, pytest.raises(OperationalError) as gone:
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=1)
    said.add(explain(gone.value, "HEARTH_REDIS"))
    return said


def test_the_right_redis(servers: TlsServices, files: Any) -> None:
    with servers.redis(pair=files.good, trust=files.ours) as port:
        reach(broker(port, files.ours))


@pytest.mark.parametrize(
    ("server", "ca", "sentence"),
    [
        (
            ("good", []),
            "stranger",
            "Its certificate is not vouched for by the authority in HEARTH_REDIS_CA, or it has e",
        ),
        (
            ("foreign", []),
            "ours",
            "Its certificate is not vouched for by the authority in HEARTH_REDIS_CA, or it has e",
        ),
        (("expired", []), "ours", "Its certificate has expired, or this machine's clock is wrong."),
        (("other_name", []), "ours", "Its certificate is for another name than the address has"),
        (("good", ["--tls-protocols", "TLSv1.2"]), "ours", "It does not speak TLS 1.3, and Hearth takes nothing less."),
    ],
)
def test_a_redis_that_is_not_trusted(
    servers: TlsServices, files: Any, server: tuple[str, list[str]], ca: str, sentence: str
) -> None:
    pair, options = server
    with servers.redis(*options, pair=getattr(files, pair), trust=files.ours) as port:
        said = refusals_of(broker(port, getattr(files, ca)))
    assert len(said) == 1
    assert said.pop().startswith(sentence)


def test_a_redis_without_tls(servers: TlsServices, files: Any) -> None:
    plain = free_ports(1)[0]
    with servers.redis("--port", str(plain), pair=files.good, trust=files.ours):
        # It waits for the end of a line that a handshake does not have.
        assert refusals_of(broker(plain, files.ours)) == {""}


def test_the_systems_authorities_do_not_vouch_for_redis(
    servers: TlsServices, files: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(files.ours))
    with servers.redis(pair=files.good, trust=files.ours) as port:
        assert len(refusals_of(broker(port, files.stranger))) == 1


def test_a_redis_that_wants_a_client_certificate(servers: TlsServices, files: Any) -> None:
    with servers.redis(pair=files.good, trust=files.ours, clients=True) as port:
        reach(broker(port, files.ours, files.client))
        for client in (None, files.foreign):
            said = refusals_of(broker(port, files.ours, client))
            # Its alert comes after the handshake, and the end of the connection may overtake it.
            assert {sentence[:27] for sentence in said} <= {"It wants a client certifica", ""}


def test_renewed_files_are_used_by_the_next_connection(servers: TlsServices, files: Any, tmp_path: Path) -> None:
    ours = Pair(tmp_path / "own.crt", tmp_path / "own.key")
    put(files.client, ours)
    with (
        servers.postgres(pair=files.good, clients=files.ours) as database_port,
        servers.redis(pair=files.good, trust=files.ours, clients=True) as redis_port,
    ):
        kept, queue = database(database_port, files.ours, ours), broker(redis_port, files.ours, ours)
        put(files.foreign, ours)
        with pytest.raises(psycopg.OperationalError):
            version(kept)
        assert refusals_of(queue)
        put(files.client, ours)
        assert version(kept) == "TLSv1.3"
        reach(queue)


def put(pair: Pair, place: Pair) -> None:
    for source, target in ((pair.key, place.key), (pair.certificate, place.certificate)):
        target.touch(mode=0o600)
        target.write_bytes(source.read_bytes())


@pytest.mark.timeout(300)
def test_a_whole_hearth_on_verified_services(servers: TlsServices, files: Any) -> None:
    """Web server, worker and beat reach both by TLS alone: there is no other way in."""
    with (
        servers.postgres(pair=files.good, clients=files.ours) as database_port,
        servers.redis(pair=files.good, trust=files.ours, clients=True) as redis_port,
        tempfile.TemporaryDirectory(prefix="hearth-verified-", dir="/tmp") as folder,
    ):
        Path(folder).chmod(0o711)
        given = _files("DATABASE", files.ours, files.client) | _files("REDIS", files.ours, files.client)
        given["DATABASE_URL"] = f"postgres://hearth@localhost:{database_port}/hearth"
        given["REDIS_URL"] = f"rediss://localhost:{redis_port}/0"
        stack = Stack(Path(folder) / "state", free_ports(1)[0], given)
        stack.start()
        try:
            # Beat writes its heartbeat by itself; the worker's comes from a message that went through the broker.
            assert httpx.get(f"{stack.url}/readyz").json()["status"] == "ready"
            names = _heartbeats(database(database_port, files.ours, files.client))
        finally:
            stack.stop()
    assert "beat" in names
    assert len(names) > 1


def _heartbeats(database: Database) -> set[str]:
    end = time.monotonic() + 60
    names: set[str] = set()
    with psycopg.connect(**database.psycopg(), autocommit=True) as connection:
        while len(names) < 2 and time.monotonic() < end:
            names = {row[0] for row in connection.execute("select name from provisioning_heartbeat")}
            time.sleep(0.1)
    return names


def test_a_start_that_can_not_be_verified_says_why(servers: TlsServices, files: Any) -> None:
    with servers.postgres(pair=files.other_name) as port, tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o711)
        given = _files("DATABASE", files.ours, None) | {"DATABASE_URL": f"postgres://hearth@localhost:{port}/hearth"}
        stack = Stack(Path(folder) / "state", free_ports(1)[0], given)
        with pytest.raises(AssertionError) as refusal:
            stack.start()
    assert "Hearth did not start. The database can't be used: Its certificate is for another name" in str(refusal.value)
