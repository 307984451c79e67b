"""What the settings of a connection come to, without connecting."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from config.connections.database import Database
from config.connections.hosts import is_local
from config.connections.redisurl import Redis
from config.env import read
from config.schedule import broker_url
from tests.tls import Authority, Pair


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "authority")


@pytest.fixture
def pair(authority: Authority) -> Pair:
    return authority.issue("client")


@pytest.mark.parametrize(
    "host", ["", "localhost", "127.0.0.1", "127.8.9.1", "::1", "[::1]", "::ffff:127.0.0.1", "/run"]
)
def test_local(host: str) -> None:
    assert is_local(host)


@pytest.mark.parametrize(
    "host",
    [
        "db.example",
        "10.0.0.1",
        "127.evil.example",
        "localhost.example",
        "0.0.0.0",
        "::",
        "2130706433",
        "127.1",
        "fe80::1",
    ],
)
def test_another_host(host: str) -> None:
    assert not is_local(host)


def test_another_host_is_verified_whatever_else_is_said(authority: Authority) -> None:
    options = database("postgres://u:0042@db.example/hearth", HEARTH_DATABASE_CA=str(authority.file)).psycopg()
    assert options == {
        "host": "db.example",
        "hostaddr": "",
        "port": "5432",
        "user": "u",
        "password": "0042",
        "dbname": "hearth",
        "connect_timeout": 5,
        "gssencmode": "disable",
        "sslmode": "verify-full",
        "sslrootcert": str(authority.file),
        "ssl_min_protocol_version": "TLSv1.3",
        "sslcertmode": "disable",
    }


@pytest.mark.parametrize(
    "where", ["db.example", "localhost,db.example", "localhost?hostaddr=10.0.0.1", "?host=10.0.0.1"]
)
def test_every_way_to_another_host_needs_an_authority(where: str) -> None:
    host, _, query = where.partition("?")
    with pytest.raises(ImproperlyConfigured, match="another host, and HEARTH_DATABASE_CA does not say who") as refusal:
        database(f"postgres://u:hush@{host}/hearth?{query}")
    assert "hush" not in str(refusal.value)


@pytest.mark.parametrize("mode", ["disable", "allow", "prefer", "require", "verify-ca"])
def test_another_host_with_less_than_verification(mode: str, authority: Authority) -> None:
    with pytest.raises(ImproperlyConfigured, match=f"another host, and says sslmode={mode}: somebody on the way"):
        database(f"postgres://u@db.example/hearth?sslmode={mode}", HEARTH_DATABASE_CA=str(authority.file))


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("postgres://db.example/hearth?service=x", "has the option service, which Hearth does not take"),
        ("postgres://localhost/hearth?sslkeylogfile=/tmp/x", "has the option sslkeylogfile, which"),
        ("postgres://localhost/hearth?sslrootcert=/ca", "Take it out and set HEARTH_DATABASE_CA to that file"),
        ("postgres://localhost/hearth?host=db.example", "says host twice"),
        ("postgres://u:a@localhost/hearth?password=b", "says password twice"),
        ("postgres://localhost", "names no database"),
        ("postgres://localhost/hearth?sslmode=verify-full", "is to be verified, and HEARTH_DATABASE_CA does not"),
    ],
)
def test_addresses_of_a_database_that_can_not_be_meant(url: str, sentence: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=sentence):
        database(url)


def test_plain_on_this_machine() -> None:
    here = database("postgres:///hearth?host=/run/postgres&user=hearth").psycopg()
    assert (here["host"], here["hostaddr"], here["user"]) == ("/run/postgres", "", "hearth")
    assert "sslmode" not in here
    assert database("postgres:///hearth").psycopg()["host"] == ""
    assert database("postgres://127.0.0.1/hearth?sslmode=disable").psycopg()["sslmode"] == "disable"


def test_an_authority_where_there_is_no_tls(authority: Authority) -> None:
    ca = str(authority.file)
    for url in ("postgres:///hearth", "postgres:///hearth?host=/run", ""):
        with pytest.raises(ImproperlyConfigured, match="reached by a Unix socket, which has no TLS"):
            read({"DATABASE_URL": url, "HEARTH_DATABASE_CA": ca})
    for url in ("redis://localhost", "unix:///run/redis", ""):
        with pytest.raises(ImproperlyConfigured, match="the way to Redis has no TLS"):
            read({"REDIS_URL": url, "HEARTH_REDIS_CA": ca})


def test_a_client_certificate(authority: Authority, pair: Pair) -> None:
    files = {"CA": str(authority.file), "CERTIFICATE": str(pair.certificate), "KEY": str(pair.key)}
    options = database("postgres://db.example/hearth", **prefixed("HEARTH_DATABASE", files)).psycopg()
    assert (options["sslcert"], options["sslkey"]) == (files["CERTIFICATE"], files["KEY"])
    tls = redis("rediss://r.example", **prefixed("HEARTH_REDIS", files)).tls
    assert (tls["ssl_certfile"], tls["ssl_keyfile"]) == (files["CERTIFICATE"], files["KEY"])
    del files["CA"]
    with pytest.raises(ImproperlyConfigured, match="nothing says whom to show it to"):
        database("postgres://localhost/hearth", **prefixed("HEARTH_DATABASE", files))
    del files["CERTIFICATE"]
    with pytest.raises(ImproperlyConfigured, match="HEARTH_REDIS_KEY is set and HEARTH_REDIS_CERTIFICATE is not"):
        redis("rediss://r.example", **prefixed("HEARTH_REDIS", files))


def test_files_that_can_not_be_used(authority: Authority, pair: Pair, tmp_path: Path) -> None:
    other = authority.issue("other")
    empty = tmp_path / "empty"
    empty.touch()
    pem = authority.file.read_text()
    for ca, sentence in (
        (str(tmp_path / "none"), "can't be read: No such file"),
        (str(tmp_path), "holds no such thing|can't be read"),
        (str(empty), "holds no such thing in PEM"),
        (str(pair.key), "holds no such thing in PEM"),
        ("ca.pem", "must be the path of a file, from the root on; it is 'ca.pem'"),
        (pem, "must be the path of a PEM file, and it is such a file's content"),
    ):
        with pytest.raises(ImproperlyConfigured, match=sentence):
            redis("rediss://r.example", HEARTH_REDIS_CA=ca)
    files = {"CA": str(authority.file), "CERTIFICATE": str(pair.certificate), "KEY": str(other.key)}
    with pytest.raises(ImproperlyConfigured, match="do not belong together"):
        redis("rediss://r.example", **prefixed("HEARTH_REDIS", files))
    pair.key.chmod(0o644)
    with pytest.raises(
        ImproperlyConfigured, match=f"which others can read. Nothing was started. Run: chmod 600 {pair.key}"
    ):
        redis("rediss://r.example", **prefixed("HEARTH_REDIS", files | {"KEY": str(pair.key)}))
    with pytest.raises(ImproperlyConfigured, match="HEARTH_REDIS_KEY names /nowhere, which can't be read"):
        redis("rediss://r.example", **prefixed("HEARTH_REDIS", files | {"KEY": "/nowhere"}))


def test_redis_on_another_host(authority: Authority) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"goes to r\.example, another host, without TLS") as refusal:
        redis("redis://:hush@r.example:6379/1")
    assert "hush" not in str(refusal.value)
    with pytest.raises(ImproperlyConfigured, match=r"who may vouch for r\.example"):
        redis("rediss://r.example")
    with pytest.raises(ImproperlyConfigured, match="HEARTH_REDIS_CA does not say who may vouch for localhost"):
        redis("rediss://localhost")
    found = redis("rediss://u:p;@r.example/3?ssl_cert_reqs=required", HEARTH_REDIS_CA=str(authority.file))
    assert found.url == "rediss://u:p%3B@r.example:6379/3"
    assert found.tls == {"ssl_cert_reqs": "required", "ssl_check_hostname": True, "ssl_ca_certs": str(authority.file)}
    assert found.celery() == {"broker_use_ssl": found.tls, "broker_transport": "config.connections.verified:Transport"}


@pytest.mark.parametrize(
    "option", ["ssl_cert_reqs=none", "ssl_cert_reqs=CERT_NONE", "ssl_check_hostname=false", "ssl_ca_certs=/x", "host=b"]
)
def test_an_address_of_redis_can_not_say_less(option: str, authority: Authority) -> None:
    with pytest.raises(ImproperlyConfigured, match=f"has the option {option.partition('=')[0]}, which Hearth does not"):
        redis(f"rediss://r.example/0?{option}", HEARTH_REDIS_CA=str(authority.file))


def test_several_brokers_in_one_address(authority: Authority) -> None:
    # Celery would take what stands behind a semicolon for a second broker.
    for url in ("rediss://r.example;redis://evil.example", "rediss://a.example,b.example"):
        with pytest.raises(ImproperlyConfigured, match="REDIS_URL must"):
            redis(url, HEARTH_REDIS_CA=str(authority.file))


@pytest.mark.parametrize(
    ("given", "plain", "broker"),
    [
        ("redis://", "redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://:x@127.0.0.1:1/2", "redis://:x@127.0.0.1:1/2", "redis://:x@127.0.0.1:1/2"),
        ("redis://[::1]?db=2", "redis://[::1]:6379/2", "redis://[::1]:6379/2"),
        ("unix:///run/r.sock", "unix:///run/r.sock?db=0", "redis+socket:///run/r.sock?virtual_host=0"),
        ("unix:///r?db=3&password=p@", "unix://:p%40@/r?db=3", "redis+socket://:p%40@/r?virtual_host=3"),
    ],
)
def test_every_client_reads_the_same_address(given: str, plain: str, broker: str) -> None:
    found = redis(given)
    assert (found.url, broker_url(found.url), found.client(), found.celery()) == (plain, broker, {}, {})


def test_no_password_in_what_is_shown() -> None:
    assert "hush" not in repr(database("postgres://u:hush@localhost/hearth"))
    assert "hush" not in repr(redis("redis://:hush@localhost"))


def database(url: str, **settings: str) -> Database:
    return Database.of(read({"DATABASE_URL": url} | settings))


def redis(url: str, **settings: str) -> Redis:
    return Redis.of(read({"REDIS_URL": url} | settings))


def prefixed(prefix: str, files: dict[str, str]) -> dict[str, str]:
    return {f"{prefix}_{name}": path for name, path in files.items()}
