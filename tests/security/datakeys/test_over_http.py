"""The service as agents meet it: HTTP over mutual TLS 1.3, with Hearth's own routes and the agents' own client."""

from __future__ import annotations

import ast
import base64
import logging
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from django.test import Client
from pytest_django import Settings

from audit.models import AuditEvent
from audit.services import SYSTEM
from config.body import App, limited
from config.internal import LARGEST
from security.datakeys import allowances, client, grants, services
from security.datakeys.allowances import Bucket
from security.datakeys.client import DataKeys
from security.keyring import deks
from security.models import BundleFile, DataKey, UnwrapGrant
from security.streams import DataKey as StreamKey
from security.transport.client import InternalClient
from security.transport.errors import CallRefused, Unreachable
from security.transport.handler import InternalHandler
from security.transport.identities import Identity
from security.transport.tls import client_context
from tests.security.datakeys.conftest import FOREIGN, SOURCE, TARGET
from tests.security.transport.pki import LISTENER, Ca, store
from tests.security.transport.running import Given, Running, running

pytestmark = pytest.mark.django_db(transaction=True)
CA = Ca()
ROOT = Path(__file__).resolve().parents[3]
Make = Callable[..., UnwrapGrant]
Agent = Callable[[uuid.UUID], DataKeys]


@pytest.fixture
def hearth() -> Iterator[Running]:
    app = limited(cast("App", InternalHandler("config.internal_urls")), LARGEST)
    with running(Given(CA.material(LISTENER)), app) as made:
        yield made


@pytest.fixture
def agent(hearth: Running, tmp_path: Path) -> Iterator[Agent]:
    """Return a function that gives the client of a server's agent."""
    made: dict[uuid.UUID, InternalClient] = {}

    def of(server: uuid.UUID) -> DataKeys:
        if server not in made:
            files = store(tmp_path / str(server), CA.material(Identity("agent", str(server))))
            made[server] = InternalClient(hearth.address, files.certificate, files.key, files.trust)
        return DataKeys(made[server])

    yield of
    for each in made.values():
        each.close()


def raw(hearth: Running, path: str, content: bytes, *, identity: Identity, method: str = "POST") -> httpx.Response:
    context = client_context(CA.material(identity)).current
    with httpx.Client(base_url=hearth.address, verify=context, trust_env=False) as http:
        return http.request(method, path, content=content, headers={"Content-Type": "application/json"})


def refused(call: Callable[[], object]) -> CallRefused:
    with pytest.raises(CallRefused) as found:
        call()
    return found.value


def test_it_works(agent: Agent, grant: Make) -> None:
    identity, key = agent(SOURCE).fresh("backup.base", "base/1")
    assert (DataKey.objects.get().pk, DataKey.objects.get().server) == (identity, SOURCE)
    lease = grant()
    assert agent(TARGET).unwrap(lease.pk, identity).reveal() == key.reveal()
    assert refused(lambda: agent(SOURCE).unwrap(lease.pk, identity)).type == "not-found"
    grants.revoke(SYSTEM, lease.pk, reason="done")
    ended = refused(lambda: agent(TARGET).unwrap(lease.pk, identity))
    assert (ended.status, ended.type) == (403, "grant-ended")
    assert "expired or was revoked" in str(ended)


def test_an_agent_publishes_before_its_manifest_names(agent: Agent, settings: Settings, tmp_path: Path) -> None:
    places = tmp_path / "places"
    places.mkdir()
    settings.HEARTH = {**settings.HEARTH, "HEARTH_KEY_BUNDLES": [f"here:{places}"]}
    keys = [agent(SOURCE).fresh("backup.wal", f"wal/{number}")[0] for number in range(3)]
    agent(SOURCE).publish(keys)
    assert BundleFile.objects.get().verified is not None
    assert len(list(places.iterdir())) == 1
    assert refused(lambda: agent(FOREIGN).publish(keys)).status == 404
    settings.HEARTH = {**settings.HEARTH, "HEARTH_KEY_BUNDLES": [f"here:{tmp_path / 'away'}"]}
    away = refused(lambda: agent(SOURCE).publish(keys))
    assert (away.status, away.type) == (503, "unavailable")


def test_a_certificate_of_another_kind_gets_nothing(hearth: Running) -> None:
    for identity in (Identity("operator", "region-one"), Identity("metrics", "prometheus")):
        for path in ("/v1/data-keys", "/v1/data-keys/unwrap", "/v1/data-keys/publish"):
            answer = raw(hearth, path, b'{"purpose": "backup.base", "object": "x"}', identity=identity)
            assert answer.status_code == 403
            assert answer.headers["content-type"] == "application/problem+json"
    assert not DataKey.objects.exists()


def test_the_server_is_the_certificates_whatever_is_said(hearth: Running) -> None:
    content = f'{{"purpose": "backup.base", "object": "x", "server": "{FOREIGN}", "owner": "{FOREIGN}"}}'.encode()
    answer = raw(hearth, "/v1/data-keys", content, identity=Identity("agent", str(SOURCE)))
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    assert DataKey.objects.get().server == SOURCE


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/v1/data-keys", b""),
        ("/v1/data-keys", b"[]"),
        ("/v1/data-keys", b'{"purpose": 1, "object": "x"}'),
        ("/v1/data-keys", b'{"purpose": "backup.base"}'),
        ("/v1/data-keys", b'{"purpose": "column:a.b", "object": "x"}'),
        ("/v1/data-keys", b'{"purpose": "backup.base", "object": "\\ud800"}'),
        ("/v1/data-keys", b'{"purpose": "backup.base", "object": "a\\u0000b"}'),
        ("/v1/data-keys/unwrap", b"{}"),
        ("/v1/data-keys/unwrap", b'{"grant": "1", "id": "2"}'),
        ("/v1/data-keys/unwrap", b'{"grant": ["a"], "id": {}}'),
        ("/v1/data-keys/publish", b'{"ids": "all"}'),
        ("/v1/data-keys/publish", b'{"ids": []}'),
        ("/v1/data-keys/publish", b'{"ids": [1]}'),
        ("/v1/data-keys/publish", b'{"ids": [' + b'"a",' * 1000 + b'"a"]}'),
    ],
)
def test_bad_input_is_told_and_writes_nothing(hearth: Running, path: str, content: bytes) -> None:
    answer = raw(hearth, path, content, identity=Identity("agent", str(SOURCE)))
    assert (answer.status_code, answer.json()["type"]) == (400, "malformed")
    assert "No" in answer.json()["detail"]
    assert not DataKey.objects.exists()


def test_there_is_no_list_and_no_other_method(hearth: Running) -> None:
    me = Identity("agent", str(SOURCE))
    for path in ("/v1/data-keys", "/v1/data-keys/unwrap", "/v1/data-keys/publish"):
        for method in ("GET", "PUT", "DELETE"):
            assert raw(hearth, path, b"", identity=me, method=method).status_code == 405
    for path in ("/v1/data-keys/", f"/v1/data-keys/{uuid.uuid4()}", "/v1/grants"):
        assert raw(hearth, path, b"{}", identity=me).status_code == 404


def test_the_public_web_server_knows_none_of_it(client: Client) -> None:
    for path in ("/v1/data-keys", "/v1/data-keys/unwrap", "/v1/data-keys/publish"):
        assert client.post(path, {}, content_type="application/json").status_code == 404


def test_an_agent_that_loops_is_told_when_to_ask_again(hearth: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allowances, "FRESH", (Bucket("fresh", 1, 0.1),))
    content, me = b'{"purpose": "backup.base", "object": "x"}', Identity("agent", str(SOURCE))
    assert raw(hearth, "/v1/data-keys", content, identity=me).status_code == 200
    answer = raw(hearth, "/v1/data-keys", content, identity=me)
    assert (answer.status_code, answer.headers["retry-after"], answer.json()["type"]) == (429, "10", "too-many")


def test_a_fault_of_hearths_own_tells_nothing(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No key in the answer, in the log, or in what an error page could show."""
    seen: list[bytes] = []
    real = deks.new_data_key

    def breaks(context: deks.Context) -> deks.Opened:
        opened = real(context)
        seen.append(bytes(opened.key.value))
        raise RuntimeError("broken in the middle")

    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(deks, "new_data_key", breaks)
    failed = refused(lambda: agent(SOURCE).fresh("backup.base", "x"))
    assert (failed.status, failed.type) == (500, "failed")
    assert "broken in the middle" in caplog.text
    assert seen[0].hex() not in caplog.text
    assert repr(seen[0]) not in caplog.text


def test_no_key_is_logged_or_audited(agent: Agent, grant: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    identity, key = agent(SOURCE).fresh("backup.base", "x")
    agent(TARGET).unwrap(grant().pk, identity)
    written = caplog.text + "".join(str((event.before, event.after)) for event in AuditEvent.objects.all())
    for form in (key.reveal().hex(), base64.b64encode(key.reveal()).decode(), repr(key.reveal())):
        assert form not in written
    assert repr(key) == f"DataKey({identity})"


# The client


class Answers:
    """A connection that answers with what a test says: a Hearth that is broken can't be had otherwise."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.answer = answer

    def post(self, _path: str, _payload: dict[str, Any], **_options: bool) -> dict[str, Any]:
        return self.answer


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"id": "x", "key": ""},
        {"id": str(SOURCE), "key": "!"},
        {"id": str(SOURCE), "key": "YQ=="},
        {"id": 5, "key": 6},
    ],
)
def test_an_answer_that_makes_no_sense_is_no_key(answer: dict[str, Any]) -> None:
    broken = DataKeys(cast("InternalClient", Answers(answer)))
    assert refused(lambda: broken.fresh("backup.base", "x")).status == 502


def test_another_key_than_the_one_asked_for_is_no_key() -> None:
    other = {"id": str(uuid.uuid4()), "key": base64.b64encode(StreamKey.fresh().reveal()).decode()}
    broken = DataKeys(cast("InternalClient", Answers(other)))
    assert refused(lambda: broken.unwrap(uuid.uuid4(), uuid.uuid4())).status == 502


def test_a_hearth_that_is_away(agent: Agent, hearth: Running) -> None:
    keys = agent(SOURCE)
    files = keys._hearth._files
    nobody = InternalClient("https://127.0.0.1:1", files.certificate, files.key, files.trust)
    with nobody, pytest.raises(Unreachable):
        DataKeys(nobody).fresh("backup.base", "x")


def test_client_and_server_agree_on_how_many() -> None:
    assert client.MOST == services.MOST


def test_the_client_needs_no_django() -> None:
    code = "import sys, security.datakeys.client; print([name for name in sys.modules if 'django' in name])"
    environment = {"PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert ast.literal_eval(done.stdout) == []
