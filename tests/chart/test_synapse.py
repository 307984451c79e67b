"""What the chart renders, run: every process with real Synapse, PostgreSQL, Redis and S3."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import redis
import yaml
from psycopg import sql

from provisioning.chart.schema import FOLDER
from tests.chart import values
from tests.chart.people import Router, make_user
from tests.chart.processes import Fleet, pods_of
from tests.chart.render import render

pytestmark = [pytest.mark.xdist_group("chart"), pytest.mark.timeout(600)]
ALICE = "@alice:alice.example"
METHODS = ("GET", "POST", "PUT", "DELETE")
TAILS = (
    *("", "/a", "/a/b", "/a/b/c", "/version", "/keys", "/config", "/v3/config", "/download/a"),
    *("/%40alice%3Aalice.example/status", "/%21a%3Ab/%24c", "/a/%40alice%3Aalice.example"),
)
HELLO = {"msgtype": "m.text", "body": "hello"}
METRIC = re.compile(r"\b(synapse_[a-z_]+)\{")
LAZY = {"synapse_event_processing_lag"}
"""Metrics that Synapse shows only after the first of what they count; its source has them."""


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """A server with a process for everything."""
    rendered = render(values.workers(workers={"federationSenders": 1}))
    with Fleet(rendered, os.environ["DATABASE_URL"]) as fleet:
        pods = pods_of(rendered)
        fleet.prepare(*pods)
        fleet.start(*pods)
        fleet.ready(*pods)
        yield fleet


@pytest.fixture(scope="module")
def router(fleet: Fleet) -> Iterator[Router]:
    router = Router(fleet)
    yield router
    router.close()


@pytest.fixture(scope="module")
def alice(fleet: Fleet) -> str:
    return make_user(fleet, "alice")


@pytest.fixture(scope="module")
def room(router: Router, alice: str) -> str:
    return new_room(router, alice)


def new_room(router: Router, token: str) -> str:
    """Make a room and return its name."""
    name: str = router.ask("POST", "/_matrix/client/v3/createRoom", token, json={})["room_id"]
    return name


def writers(fleet: Fleet, table: str) -> set[str]:
    """Return the processes that wrote a table's rows."""
    with fleet.connection() as connection:
        query = sql.SQL("SELECT DISTINCT instance_name FROM {}").format(sql.Identifier(table))
        return {row[0] for row in connection.execute(query)}


def test_an_event_is_written_by_its_rooms_persister(fleet: Fleet, router: Router, alice: str) -> None:
    both = {"synapse-event-persister-0", "synapse-event-persister-1"}
    for _ in range(20):  # a room's name, which is random, decides who writes it
        room = quote(new_room(router, alice))
        assert router.ask("PUT", f"/_matrix/client/v3/rooms/{room}/send/m.room.message/1", alice, json=HELLO)[
            "event_id"
        ]
        assert writers(fleet, "events") <= both
        if writers(fleet, "events") == both:
            return
    pytest.fail("one of the event persisters wrote nothing")


def test_a_message_comes_back_by_sync(router: Router, alice: str, room: str) -> None:
    path = f"/_matrix/client/v3/rooms/{quote(room)}/send/m.room.message/back"
    event = router.ask("PUT", path, alice, json=HELLO)["event_id"]
    assert router.pod("/_matrix/client/v3/sync") == "synapse-generic-0"
    rooms = router.ask("GET", "/_matrix/client/v3/sync?timeout=5000", alice)["rooms"]["join"]
    assert event in [each["event_id"] for each in rooms[room]["timeline"]["events"]]


def test_each_stream_is_written_by_its_own_process(fleet: Fleet, router: Router, alice: str, room: str) -> None:
    base, here = "/_matrix/client/v3", quote(room)
    me = quote(ALICE)
    event = router.ask("PUT", f"{base}/rooms/{here}/send/m.room.message/2", alice, json=HELLO)["event_id"]
    router.ask("POST", f"{base}/rooms/{here}/receipt/m.read/{quote(event)}", alice, json={})
    router.ask("PUT", f"{base}/rooms/{here}/typing/{me}", alice, json={"typing": True, "timeout": 1000})
    router.ask("PUT", f"{base}/user/{me}/account_data/org.example", alice, json={"a": 1})
    router.ask("PUT", f"{base}/user/{me}/rooms/{here}/tags/m.favourite", alice, json={"order": 0.1})
    router.ask("PUT", f"{base}/presence/{me}/status", alice, json={"presence": "online"})
    to_device = {"messages": {ALICE: {"*": {"text": "hi"}}}}
    router.ask("PUT", f"{base}/sendToDevice/m.test/1", alice, json=to_device)
    rule = {"actions": ["notify"], "pattern": "hearth"}
    router.ask("PUT", f"{base}/pushrules/global/content/hearth", alice, json=rule)
    written = {table: writers(fleet, table) for table in ("receipts_linearized", "device_inbox", "presence_stream")}
    assert written == {
        "receipts_linearized": {"synapse-receipts-0"},
        "device_inbox": {"synapse-to-device-0"},
        "presence_stream": {"synapse-presence-0"},
    }


def test_another_process_than_the_writer_would_refuse(fleet: Fleet, alice: str, room: str) -> None:
    """Why the paths of some streams must be routed: without it these requests fail."""
    with fleet.client("synapse-generic-0") as generic:
        path = f"/_matrix/client/v3/rooms/{quote(room)}/typing/{quote(ALICE)}"
        headers = {"Authorization": f"Bearer {alice}"}
        body = {"typing": True, "timeout": 1000}
        assert generic.put(path, json=body, headers=headers).status_code == 500


def test_media_of_one_repository_is_served_by_the_other_from_s3(fleet: Fleet, alice: str) -> None:
    content = os.urandom(100_000)
    headers = {"Authorization": f"Bearer {alice}"}
    with fleet.client("synapse-media-0") as first, fleet.client("synapse-media-1") as second:
        uploaded = first.post("/_matrix/media/v3/upload", content=content, headers=headers)
        assert uploaded.status_code == 200, uploaded.text
        path = "/_matrix/client/v1/media/download/" + uploaded.json()["content_uri"].removeprefix("mxc://")
        assert second.get(path, headers=headers).content == content
    stored = [path for path in (fleet.folder / "s3" / "hearth-media").rglob("*") if path.is_file()]
    assert [path for path in stored if path.stat().st_size == len(content)]
    assert all("servers/alice/" in str(path) for path in stored)


def test_a_process_without_media_serves_none(fleet: Fleet, alice: str) -> None:
    with fleet.client("synapse-main-0") as main:
        response = main.get("/_matrix/client/v1/media/config", headers={"Authorization": f"Bearer {alice}"})
        assert response.status_code == 404


def test_every_route_is_known_to_the_process_it_leads_to(router: Router, alice: str) -> None:
    routes = yaml.safe_load((FOLDER / "files" / "routes.yaml").read_text())
    unknown = []
    for group, entries in routes.items():
        for entry in entries:
            for path in samples(entry):
                assert router.pod(path) == f"synapse-{group}-0", path
                if not known(router, path, alice):
                    unknown.append(path)
    assert " ".join(unknown) == ""


def samples(entry: dict[str, Any]) -> Iterator[str]:
    """Give one or more paths for each of an entry's rules, in today's version of the protocol."""
    versions = [each for each in entry.get("versions", []) if each not in ("r0", "api/v1", "unstable")] or [""]
    for version in versions:
        base = f"{entry['base']}/{version}".rstrip("/")
        for kind in ("exact", "prefix", "pattern"):
            for rule in entry.get(kind, []):
                yield from (f"{base}/{each}" for each in expanded(rule))


def expanded(rule: str) -> list[str]:
    """Return paths that a rule means: `[^/]+` stands for a room or a user, choices for each of theirs."""
    rule = rule.replace("(/.*)?", "").replace("user/[^/]+", "user/%40alice%3Aalice.example")
    rule = rule.replace("[^/]+", "%21room%3Aalice.example").replace(
        "(rooms/%21room%3Aalice.example/)?", "rooms/%21room%3Aalice.example/"
    )
    if choice := re.search(r"\(([^()]+)\)", rule):
        options = choice.group(1).split("|")
        return [path for each in options for path in expanded(rule.replace(choice.group(0), each, 1))]
    return [rule.replace(".*", "a")]


def known(router: Router, path: str, token: str) -> bool:
    """Tell whether the process knows the path, or one below it, by any method."""
    for tail in TAILS:
        for method in METHODS:
            response = router.clients[router.pod(path)].request(
                method, path + tail, headers={"Authorization": f"Bearer {token}x"}, json={}
            )
            if not _unrecognized(response):
                return True
    return False


def _unrecognized(response: httpx.Response) -> bool:
    if response.status_code not in (404, 405):
        return False
    try:
        return bool(response.json().get("errcode") == "M_UNRECOGNIZED")
    except ValueError:
        return True


def test_behind_a_balancer_there_is_no_administration() -> None:
    rendered = render(values.managed(workers={"federationSenders": 0, "eventPersisters": 0}, redis=None))
    with Fleet(rendered, os.environ["DATABASE_URL"]) as fleet:
        fleet.prepare("synapse-main-0")
        fleet.start("synapse-main-0")
        fleet.ready("synapse-main-0")
        paths = (
            *(
                "/_synapse/admin/v1/register",
                "/_synapse/admin/v1/server_version",
                "/_synapse/admin",
                "/_synapse//admin/",
            ),
            *("/_synapse/%61dmin/v1/register", "/_synapse/admin/v2/users/@a:b", "/./_synapse/admin/v1/register"),
        )
        with fleet.client("synapse-main-0") as inside, fleet.client("synapse-main-0", port=8448) as public:
            assert inside.get("/_synapse/admin/v1/register").status_code == 200
            for path in paths:
                for method in METHODS:
                    assert public.request(method, path, json={}).status_code in {404, 405}, (method, path)
            assert public.get("/_matrix/client/versions").status_code == 200
            assert public.get("/_matrix/key/v2/server").status_code == 200
            assert public.get("/_matrix/federation/v1/version").status_code == 200


def test_every_alert_names_a_metric_that_synapse_has(fleet: Fleet) -> None:
    rules = fleet.rendered["PrometheusRule/synapse"]["spec"]["groups"][0]["rules"]
    wanted = {name for rule in rules for name in METRIC.findall(rule["expr"])} - LAZY
    assert wanted
    main = yaml.safe_load((fleet.folder / "synapse-main-0" / "homeserver.yaml").read_text())
    ports = [each["port"] for each in main["listeners"] if each["type"] == "metrics"]
    text = httpx.get(f"http://127.0.0.1:{ports[0]}/_synapse/metrics").text
    assert {name for name in wanted if f"\n{name}" not in text} == set()


def test_redis_wants_the_password(fleet: Fleet) -> None:
    path = str(fleet.folder / "redis.sock")
    with redis.Redis(unix_socket_path=path) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
    with redis.Redis(unix_socket_path=path, password=fleet.secret["redis"]) as known:
        assert known.ping()


def test_nobody_without_the_secret_reaches_replication(fleet: Fleet) -> None:
    path = f"/_synapse/replication/presence_set_state/{quote(ALICE)}"
    body = {"device_id": "x", "state": {"presence": "online"}, "force_notify": False, "is_sync": False}
    right, wrong = ({"Authorization": f"Bearer {word}"} for word in (fleet.secret["replication"], "guess"))
    transport = httpx.HTTPTransport(uds=str(fleet.folder / "synapse-presence-0" / "9093.sock"))
    with httpx.Client(transport=transport, base_url="http://pod") as client:
        answers = [client.post(path, json=body, headers=headers).status_code for headers in (right, wrong, {})]
    assert answers[0] == 200
    assert min(answers[1:]) >= 400
