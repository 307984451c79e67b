"""Internal calls end to end: identity from the certificate, its routes and no others, errors in one form, renewal."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.exceptions import RequestDataTooBig
from django.db import connection, connections
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.test import Client, RequestFactory
from django.urls import URLPattern, URLResolver, get_resolver, include, path

from audit.models import AuditEvent
from config import internal as config_internal
from config.body import limited
from observability.context import current
from security.datakeys import allowances
from security.keyring.seams import seams
from security.transport import authority, calls, views
from security.transport.calls import InternalRequest, Problem, internal, payload, text
from security.transport.certificates import Own
from security.transport.client import InternalClient
from security.transport.errors import CallRefused, Unreachable
from security.transport.files import Files
from security.transport.handler import AT_ONCE, InternalHandler
from security.transport.identities import CALLER, Identity
from security.transport.places import internal_hosts
from security.transport.tls import client_context
from tests.security.transport.pki import AGENT, SERVER, csr
from tests.security.transport.running import Running, running

OPERATOR, SCRAPER = Identity("operator", "eu-1"), Identity("metrics", "prometheus")


@internal("agent", methods=("GET", "POST"))
def who(request: InternalRequest, word: str = "") -> HttpResponse:
    if word == "problem":
        raise Problem(404, "not-found", "There is no such grant.", title="Not here.")
    if word == "crash":
        raise RuntimeError("hush: the secret of the agent")
    sent = dict(payload(request)) if request.method == "POST" else {}
    answer = JsonResponse({"caller": request.caller.uri, "sent": sent, "address": current.get().address})
    answer["Cache-Control"] = "public"
    return answer


urlpatterns = [
    path("who", who),
    path("who/<str:word>", who),
    path("", include("config.internal_urls")),
]
handler404 = "security.transport.calls.not_found"
handler400 = "security.transport.calls.bad_request"
handler403 = "security.transport.calls.not_allowed"
handler500 = "security.transport.calls.broken"


@pytest.fixture
def hearth(transactional_db: None) -> Iterator[Running]:
    """The listener with Hearth's own authority and routes."""
    app: Any = limited(InternalHandler(__name__), config_internal.LARGEST)
    own = Own(internal_hosts(settings.HEARTH), release=connections.close_all)
    with running(own, app) as made:
        yield made


@pytest.fixture
def _servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alice's server is there; no other is."""
    monkeypatch.setattr(seams, "owner_of_server", [lambda server: uuid.UUID(int=1) if str(server) == SERVER else None])


def files_of(folder: Path, identity: Identity) -> Files:
    folder.mkdir(exist_ok=True)
    files = Files(folder / "certificate.pem", folder / "key.pem", folder / "trust.pem")
    request, key = files.request()
    issued = authority.issue(request, identity)
    files.install(issued.chain, key, issued.trust)
    return files


@pytest.fixture
def client_of(hearth: Running, tmp_path: Path) -> Iterator[Callable[[Identity], InternalClient]]:
    made: list[InternalClient] = []

    def client(identity: Identity) -> InternalClient:
        files = files_of(tmp_path / identity.kind, identity)
        made.append(InternalClient(hearth.address, files.certificate, files.key, files.trust))
        return made[-1]

    yield client
    for each in made:
        each.close()


ClientOf = Callable[[Identity], InternalClient]


def test_it_works(client_of: ClientOf) -> None:
    agent = client_of(AGENT)
    answer = agent.get("/who")
    assert answer.json() == {"caller": AGENT.uri, "sent": {}, "address": "127.0.0.1"}
    assert answer.headers["Cache-Control"] == "no-store"
    assert len(answer.headers["X-Request-ID"]) == 32
    assert "set-cookie" not in answer.headers
    assert agent.post("/who", {"a": [1]})["sent"] == {"a": [1]}


def refusal(call: Callable[[], Any]) -> CallRefused:
    with pytest.raises(CallRefused) as caught:
        call()
    return caught.value


def test_another_kind_of_caller_is_not_allowed(client_of: ClientOf) -> None:
    found = refusal(lambda: client_of(OPERATOR).get("/who"))
    assert (found.status, found.type) == (403, "not-allowed")
    assert found.detail == "You are operator eu-1. Nothing was done."


def test_problems_have_one_form(client_of: ClientOf, caplog: pytest.LogCaptureFixture) -> None:
    agent = client_of(AGENT)
    found = refusal(lambda: agent.get("/who/problem"))
    assert (found.status, found.type, found.title, found.detail) == (
        404,
        "not-found",
        "Not here.",
        "There is no such grant.",
    )
    assert refusal(lambda: agent.get("/nothing")).type == "not-found"
    assert refusal(lambda: agent.get("/v1/certificate")).status == 405
    # A crash tells the caller nothing; the log tells us.
    found = refusal(lambda: agent.get("/who/crash"))
    assert (found.status, found.type) == (500, "failed")
    assert "hush" not in str(found)
    assert any("The internal call /who/crash failed." in record.getMessage() for record in caplog.records)


def test_what_is_no_json_object_is_malformed(client_of: ClientOf) -> None:
    _, http = client_of(AGENT)._ready()
    for sent in (b"", b"[]", b"null", b"{", b"\xff", b'{"a":' * 5000):
        answer = http.post("/who", content=sent)
        assert answer.status_code == 400
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["type"] == "malformed"


def test_a_call_that_is_too_large_is_refused(client_of: ClientOf) -> None:
    agent = client_of(AGENT)
    # Its connection is ended while the caller still sends, so that not every caller gets to read the answer.
    with pytest.raises((CallRefused, Unreachable)) as caught:
        agent.post("/who", {"a": "x" * config_internal.LARGEST})
    assert getattr(caught.value, "status", 413) == 413
    assert agent.get("/who").status_code == 200


def test_no_header_and_no_cookie_makes_a_caller(client_of: ClientOf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(settings.HEARTH, "HEARTH_TRUSTED_PROXIES", 1)
    _, http = client_of(AGENT)._ready()
    forged = {
        CALLER: "hearth listener",
        "X-Forwarded-For": "203.0.113.9",
        "X-Forwarded-Host": "other",
        "Forwarded": "for=203.0.113.9",
        "X-Client-Cert": SCRAPER.uri,
        "X-Forwarded-Client-Cert": f"URI={SCRAPER.uri}",
        "Host": "hearth.example",
        "Cookie": "hearth-session=x",
    }
    answer = http.get("/who", headers=forged)
    assert (answer.json()["caller"], answer.json()["address"]) == (AGENT.uri, "127.0.0.1")


def routes(patterns: list[Any], before: str = "") -> Iterator[str]:
    for each in patterns:
        if isinstance(each, URLResolver):
            yield from routes(each.url_patterns, before + str(each.pattern))
        elif isinstance(each, URLPattern):
            yield "/" + before + str(each.pattern)


def test_the_public_server_knows_none_of_these_routes(client: Client, db: None) -> None:
    found = list(routes(get_resolver("config.internal_urls").url_patterns))
    assert "/v1/certificate" in found
    for address in found:
        for call in (client.get, client.post):
            assert call(address).status_code == 404, address
    public = set(routes(get_resolver("config.urls").url_patterns))
    assert not public & set(found)


def test_the_internal_server_knows_none_of_the_pages(client_of: ClientOf) -> None:
    agent = client_of(AGENT)
    for address in ("/", "/healthz", "/admin/", "/login/", "/static/css/base.css"):
        assert refusal(lambda address=address: agent.get(address)).type == "not-found"  # type: ignore[misc]


@pytest.mark.parametrize("scope", [{}, {CALLER: AGENT.uri}, {CALLER: None}, {CALLER: {"kind": "agent"}}])
def test_a_view_that_is_reached_without_the_listener_admits_nobody(scope: dict[str, Any]) -> None:
    """Should a route ever stand in the public list by mistake: only the listener's own object counts."""
    request = RequestFactory().get("/who", headers={"hearth-caller": AGENT.uri})
    request.scope = scope  # type: ignore[attr-defined]
    answer = who(request)
    assert answer.status_code == 403
    assert json.loads(answer.content)["detail"] == "You are nobody that Hearth knows. Nothing was done."
    assert who(HttpRequest()).status_code == 403


def test_a_misspelt_kind_stops_the_start() -> None:
    with pytest.raises(ValueError, match=r"\['agnet'\] are no kinds"):
        internal("agnet")


def test_fields_of_what_was_sent() -> None:
    assert text({"a": "b"}, "a") == "b"
    for sent in ({}, {"a": 1}, {"a": ""}, {"a": "x" * 256}, {"a": "\x00"}):
        with pytest.raises(Problem, match="'a' must be a text"):
            text(sent, "a")


def test_every_handler_answers_a_problem() -> None:
    request = HttpRequest()
    for answer, status in (
        (calls.bad_request(request), 400),
        (calls.not_allowed(request), 403),
        (calls.not_found(request), 404),
        (calls.broken(request), 500),
    ):
        assert answer.status_code == status
        assert answer["Content-Type"] == "application/problem+json"
        assert answer["Cache-Control"] == "no-store"
        assert set(json.loads(answer.content)) == {"type", "title", "detail"}
    assert Problem(418, "odd", "x").title == "The request was refused."


def test_a_body_that_django_finds_too_big() -> None:
    class Big:
        @property
        def body(self) -> bytes:
            raise RequestDataTooBig

    with pytest.raises(Problem) as caught:
        payload(Big())  # type: ignore[arg-type]
    assert caught.value.status == 413


@pytest.mark.usefixtures("_servers")
def test_a_certificate_is_renewed_for_its_own_identity_alone(client_of: ClientOf, tmp_path: Path) -> None:
    agent = client_of(AGENT)
    before = (tmp_path / "agent" / "certificate.pem").read_text()
    material = agent.renew()
    assert material.identity == AGENT
    assert (tmp_path / "agent" / "certificate.pem").read_text() == material.chain != before
    assert agent.get("/who").json()["caller"] == AGENT.uri
    event = AuditEvent.objects.filter(verb="certificate.issue").latest("id")
    assert (event.actor_id, event.actor_label, event.address) == (None, AGENT.uri, "127.0.0.1")
    answer = agent.sign(csr())
    assert datetime.fromisoformat(answer["not_after"]).tzinfo is not None


@pytest.mark.usefixtures("_servers")
def test_others_renew_too(client_of: ClientOf) -> None:
    for identity in (OPERATOR, SCRAPER):
        assert client_of(identity).renew().identity == identity


@pytest.mark.usefixtures("_servers")
def test_an_agent_whose_server_is_gone_renews_nothing(client_of: ClientOf) -> None:
    gone = client_of(Identity("agent", str(uuid.UUID(int=5))))
    found = refusal(gone.renew)
    assert (found.status, found.type) == (410, "server-gone")


@pytest.mark.usefixtures("_servers")
def test_bad_requests_for_certificates(client_of: ClientOf) -> None:
    agent = client_of(AGENT)
    assert refusal(lambda: agent.sign(b"junk")).type == "bad-request"
    assert refusal(lambda: agent.post("/v1/certificate", {})).type == "malformed"
    assert refusal(lambda: agent.post("/v1/certificate", {"csr": ["x"]})).type == "malformed"


@pytest.mark.usefixtures("_servers")
def test_an_agent_that_ran_away_is_held_back(client_of: ClientOf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "RENEWALS", allowances.Bucket("certificate", 2, 1 / 60))
    agent = client_of(AGENT)
    agent.sign(csr())
    agent.sign(csr())
    found = refusal(lambda: agent.sign(csr()))
    assert (found.status, found.type) == (429, "too-many")


def test_callers_who_send_slowly_keep_nobody_waiting(client_of: ClientOf, hearth: Running, tmp_path: Path) -> None:
    agent = client_of(AGENT)
    context = client_context(Files(*(tmp_path / "agent" / f"{n}.pem" for n in ("certificate", "key", "trust"))).read())
    slow = [hearth.connect(context) for _ in range(2 * AT_ONCE)]
    for each in slow:
        each.sendall(b"POST /who HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    assert agent.get("/who").status_code == 200
    for each in slow:
        each.close()


@pytest.mark.usefixtures("_servers")
def test_whoever_has_the_longest_name_renews_too(client_of: ClientOf) -> None:
    for kind in ("operator", "metrics"):
        longest = Identity(kind, "a" * 63)
        assert client_of(longest).renew().identity == longest


@pytest.mark.usefixtures("_servers")
def test_a_request_that_is_no_text_is_malformed_and_not_a_fault_of_ours(
    client_of: ClientOf, hearth: Running, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client_of(AGENT)
    context = client_context(Files(*(tmp_path / "agent" / f"{n}.pem" for n in ("certificate", "key", "trust"))).read())
    body = rb'{"csr": "\ud800"}'
    said = hearth.ask(
        context, b"POST /v1/certificate HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    assert said.startswith(b"HTTP/1.1 400 ")
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("fault", [None, KeyboardInterrupt])
def test_each_call_closes_its_threads_connection(transactional_db: None, fault: type[BaseException] | None) -> None:
    """Hearth may stop in the middle of a call: then nobody waits for its thread any more who would."""
    used: list[Any] = []

    def view(_: HttpRequest) -> HttpResponse:
        connection.ensure_connection()
        used.append(connection.connection)
        if fault is not None:
            raise fault
        return HttpResponse()

    bound = InternalHandler(__name__)._bound(view)
    with ThreadPoolExecutor(1) as thread:
        assert type(thread.submit(bound, HttpRequest()).exception()) is (fault or type(None))
    assert used[0].closed
