"""What is seen becomes status; what is old news is dropped."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from django.db.models import F
from django.utils import timezone

from config import schedule
from provisioning import checks, engine, observer, samples, services
from provisioning.matrix import Homeserver, MatrixError
from provisioning.models import Region, Sample, ServerStatus
from provisioning.providers.base import Observation, ProviderError
from tenants.models import Server
from tests.provisioning.fakes import ScriptedProvider, Stub

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def made(server: Server, provider: ScriptedProvider) -> Server:
    """A server that is ready, as the provider sees it."""
    operation = services.reconcile(server.pk)
    assert operation is not None
    started = time.time()
    engine.run(operation.pk)
    provider.observations[str(server.pk)] = Observation(
        server_id=str(server.pk),
        exists=True,
        running=True,
        homeserver_url=provider.url,
        started_at=started,
        memory_bytes=100,
        disk_bytes=200,
    )
    return server


def look(server: Server, provider: ScriptedProvider, **changes: object) -> ServerStatus:
    key = str(server.pk)
    provider.observations[key] = replace(provider.observations[key], **changes)  # type: ignore[arg-type]
    observer.observe()
    return ServerStatus.objects.get(server=server)


def test_it_works(made: Server, provider: ScriptedProvider) -> None:
    status = look(made, provider)
    assert (status.phase, status.version) == ("ready", made.version)
    assert status.last_seen
    sample = Sample.objects.get(server=made)
    assert (sample.memory_bytes, sample.disk_bytes, sample.users) == (100, 200, None)


def test_of_too_many_the_one_that_waited_longest_is_checked_first(
    made: Server, make_server: Callable[..., Server], provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observer, "CHECKS_A_LOOK", 1)
    servers = [made, make_server("second"), make_server("third")]
    for each in servers[1:]:
        operation = services.reconcile(each.pk)
        assert operation is not None
        engine.run(operation.pk)
        observation = provider.observations[str(made.pk)]
        provider.observations[str(each.pk)] = replace(observation, server_id=str(each.pk))
    for hours in ((3, 2, 1), (1, 3, 2), (2, 1, 3)):
        before = timezone.now()
        for each, waited in zip(servers, hours, strict=True):
            ServerStatus.objects.filter(server=each).update(next_check=before - timedelta(hours=waited))
        observer.observe()
        # Whoever was checked, however it ended, is due again later; the others still wait.
        checked = ServerStatus.objects.filter(next_check__gt=before).values_list("server", flat=True)
        assert list(checked) == [servers[hours.index(3)].pk]


def test_a_full_region_is_checked_more_seldom_and_has_room_for_what_failed() -> None:
    assert schedule.EVERY["provisioning.tasks.observe"] == observer.LOOKS_EVERY.total_seconds()
    assert observer.check_every(0) == observer.check_every(100) == observer.CHECK_EVERY
    for count in (1_000, 2_000, 5_000):
        looks = observer.check_every(count) / observer.LOOKS_EVERY
        assert count <= looks * observer.CHECKS_A_LOOK / 2, count


def test_how_soon_the_next_check_is_due_depends_on_the_region(
    made: Server, provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    often = look(made, provider, started_at=time.time())
    monkeypatch.setattr(observer, "check_every", lambda _count: timedelta(hours=2))
    status = look(made, provider, started_at=time.time())
    assert often.next_check
    assert status.next_check
    assert status.next_check - often.next_check > timedelta(hours=1)
    # The one that is far ahead is no clock that was put back.
    assert look(made, provider).checked == status.checked


def test_a_crash_is_said_and_the_new_process_is_checked(made: Server, provider: ScriptedProvider) -> None:
    look(made, provider)
    status = look(
        made, provider, running=False, reason="SynapseCrashed", message="It ended.", started_at=None, crashes=1
    )
    assert (status.phase, status.reason, status.message) == ("degraded", "SynapseCrashed", "It ended.")
    assert status.last_crash
    assert status.ready_since is None
    Stub.broken = True
    status = look(made, provider, running=True, reason="", message="", started_at=time.time())
    assert (status.phase, status.reason) == ("degraded", "HomeserverError")
    Stub.broken = False
    ServerStatus.objects.filter(server=made).update(next_check=timezone.now())
    assert look(made, provider).phase == "ready"


def test_another_signing_key_is_never_ready(made: Server, provider: ScriptedProvider) -> None:
    Stub.signing_key = "ed25519 a_evil " + "A" * 43
    status = look(made, provider, started_at=time.time())
    assert (status.phase, status.reason) == ("degraded", "SigningKeyMismatch")


def test_nobody_answers(made: Server, provider: ScriptedProvider) -> None:
    def fail() -> None:
        raise ProviderError("The agent does not answer.", code="AgentUnreachable")

    look(made, provider)
    provider.faults["observe"] = [fail]
    observer.observe()
    status = ServerStatus.objects.get(server=made)
    assert (status.phase, status.reason) == ("degraded", "ProviderUnreachable")
    assert look(made, provider).phase == "ready"


def test_the_provider_lost_it(made: Server, provider: ScriptedProvider) -> None:
    provider.observations.clear()
    observer.observe()
    assert ServerStatus.objects.get(server=made).reason == "ServerMissing"


def test_old_news_is_dropped(made: Server, provider: ScriptedProvider) -> None:
    """The engine finished something while the provider was being asked."""

    def meanwhile() -> None:
        ServerStatus.objects.filter(server=made).update(reason="Newer", revision=F("revision") + 1)

    provider.faults["observe"] = [meanwhile]
    status = look(made, provider, running=False, started_at=None)
    assert (status.phase, status.reason) == ("ready", "Newer")


def test_nothing_is_written_for_a_server_that_stays_as_it_is(made: Server, provider: ScriptedProvider) -> None:
    before = look(made, provider).revision
    assert look(made, provider).revision == before
    assert Sample.objects.count() == 1


def test_an_open_operation_is_not_overwritten(made: Server, provider: ScriptedProvider) -> None:
    Server.objects.filter(pk=made.pk).update(restarts=1, generation=2)
    services.reconcile(made.pk)
    status = look(made, provider, running=False, started_at=None)
    assert (status.phase, status.reason) == ("progressing", "Restarting")


def test_samples_each_minute_for_a_week(made: Server, provider: ScriptedProvider) -> None:
    look(made, provider)
    Sample.objects.update(at=timezone.now() - timedelta(seconds=61))
    look(made, provider)
    assert Sample.objects.count() == 2
    Sample.objects.filter(pk=Sample.objects.latest("at").pk).update(at=timezone.now() - timedelta(days=8))
    assert samples.prune() == 1
    assert Sample.objects.count() == 1


@contextmanager
def answering(body: bytes) -> Iterator[str]:
    """A homeserver in somebody else's hands: it answers everything with `body`, again and again."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            for _ in range(1 if body.startswith(b"{") else 64):
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the name of the base class)
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # Hearth hung up in the middle

    httpd = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}"
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"versions": ["v1.11"], "verify_keys": []}', "AnswerNotUnderstood"),
        (b"x" * 1024 * 1024, "HomeserverUnreachable"),
    ],
)
def test_what_one_homeserver_says_keeps_nobody_from_the_others(
    body: bytes, reason: str, made: Server, make_server: Callable[..., Server], provider: ScriptedProvider
) -> None:
    other = make_server("quince")
    operation = services.reconcile(other.pk)
    assert operation is not None
    engine.run(operation.pk)
    provider.observations[str(other.pk)] = replace(
        provider.observations[str(made.pk)], server_id=str(other.pk), started_at=time.time() - 60
    )
    with answering(body) as url:
        status = look(made, provider, homeserver_url=url, started_at=time.time() + 1)
    assert (status.phase, status.reason) == ("degraded", reason)
    assert "untouched" in status.message or "checks again" in status.message
    other_status = ServerStatus.objects.get(server=other)
    assert (other_status.phase, bool(other_status.last_seen)) == ("ready", True)


def test_a_count_that_makes_no_sense_is_none(made: Server, provider: ScriptedProvider) -> None:
    for text, count in (("3.0", 3), ("nan", None), ("-1", None), ("1e300", None), ("many", None)):
        with answering(b'{}\nsynapse_admin_mau_current{x="1"} ' + text.encode() + b"\n") as url:
            assert checks.count_users(f"{url}/_synapse/metrics") == count


def test_a_clock_that_was_put_back_delays_nothing(made: Server, provider: ScriptedProvider) -> None:
    """What was written before lies a day ahead then."""
    look(made, provider)
    ahead = timezone.now() + timedelta(days=1)
    Sample.objects.update(at=ahead)
    ServerStatus.objects.update(next_check=ahead, last_seen=ahead)
    Stub.broken = True
    status = look(made, provider)
    assert status.last_seen
    assert status.last_seen < ahead
    assert (status.phase, status.reason) == ("degraded", "HomeserverError")
    assert Sample.objects.count() == 2


def test_regions_are_looked_at_beside_each_other(made: Server, provider: ScriptedProvider) -> None:
    """Each look waits for the other to have begun."""
    Region.objects.create(code="other", name="Other", provider="local", base_domain="other.example")
    both = threading.Barrier(2, timeout=20)
    ask = provider.observe
    provider.observe = lambda: (both.wait(), ask())[1]  # type: ignore[method-assign]
    observer.observe()
    assert not both.broken
    assert ServerStatus.objects.get(server=made).phase == "ready"


def test_one_deadline_holds_for_all_requests_of_a_check() -> None:
    late = Homeserver("http://127.0.0.1:9", "x.example", seconds=0.0)
    with late as homeserver, pytest.raises(MatrixError, match="ReadTimeout"):
        homeserver.request("GET", "/_matrix/client/versions")
