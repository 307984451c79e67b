"""The listener: who gets in, who does not, and that nothing takes it down. Each on both event loops."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from security.transport import listener, tls
from security.transport.identities import Identity
from security.transport.tls import Material, client_context
from tests.security.transport.pki import AGENT, LISTENER, Ca
from tests.security.transport.running import LOOPS, Given, Running, read, running, until

CA = Ca()
SECOND = timedelta(seconds=1)


@pytest.fixture(autouse=True)
def _new_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "refusals", fresh := tls.Refusals())
    monkeypatch.setattr(listener, "refusals", fresh)


@pytest.fixture(params=LOOPS, scope="module")
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def hearth(loop: str) -> Iterator[Running]:
    """One for all that leave it as it is."""
    with running(Given(CA.material(LISTENER)), loop=loop) as made:
        yield made


@pytest.fixture
def changing(loop: str) -> Iterator[Running]:
    """One whose certificate changes."""
    with running(Given(CA.material(LISTENER)), loop=loop) as made:
        yield made


def body(answer: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
    return found


def bare(material: Material | None, **options: Any) -> ssl.SSLContext:
    """Return a caller's context that checks nothing: what is refused is refused by the listener."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if material is not None:
        inner = client_context(material).current
        assert inner.get_ca_certs()
        tls._filled(context, material)
    for name, value in options.items():
        setattr(context, name, value)
    return context


def refused(hearth: Running, context: ssl.SSLContext) -> bool:
    """Tell whether nothing is answered."""
    try:
        return hearth.ask(context) == b""
    except OSError:
        return True


def admits(hearth: Running) -> bool:
    return bool(body(hearth.ask(client_context(CA.material())))["caller"] == str(AGENT))


def test_it_works(hearth: Running) -> None:
    answer = hearth.ask(client_context(CA.material()))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"server:" not in answer.lower()
    assert body(answer) == {"caller": str(AGENT), "scheme": "https", "client": "127.0.0.1"}


def test_only_tls_1_3_is_spoken(hearth: Running) -> None:
    with hearth.connect(client_context(CA.material())) as connection:
        assert connection.version() == "TLSv1.3"
    old = bare(CA.material())
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    assert refused(hearth, old)
    assert admits(hearth)


def bad_callers() -> dict[str, Callable[[], Material | None]]:
    return {
        "no certificate": lambda: None,
        "foreign authority": lambda: Ca().material(),
        "foreign authority of our name": lambda: Ca("test").material(trust=CA.trust),
        "expired": lambda: CA.material(until=-SECOND),
        "not yet valid": lambda: CA.material(since=timedelta(hours=1), until=timedelta(hours=2)),
        "for servers": lambda: CA.material(usage=ExtendedKeyUsageOID.SERVER_AUTH),
    }


@pytest.mark.parametrize("who", bad_callers())
def test_a_bad_certificate_is_refused(hearth: Running, who: str, caplog: pytest.LogCaptureFixture) -> None:
    assert refused(hearth, bare(bad_callers()[who]()))
    assert refused(hearth, bare(bad_callers()[who]()))
    assert admits(hearth)
    lines = [record.getMessage() for record in caplog.records if "refused a connection" in record.getMessage()]
    assert len(lines) == 1  # the second one within a minute is only counted
    assert not any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize("uris", [(), ("https://example.org/",), (AGENT.uri, Identity("operator", "eu").uri)])
def test_a_certificate_of_ours_that_names_nobody_is_refused(hearth: Running, uris: tuple[str, ...]) -> None:
    chain, key = CA.certify(*uris)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    named = CA.material()
    tls._filled(context, Material(chain, key, CA.trust, named.identity, named.not_before, named.not_after))
    assert refused(hearth, context)
    assert admits(hearth)


@pytest.mark.parametrize(
    "words",
    [b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\x00" * 400, b"\x16\x03\x01\xff\xff" + b"x" * 70_000, b"\n"],
)
def test_plain_http_and_garbage_are_refused(hearth: Running, words: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with hearth.plain() as connection:
        connection.settimeout(20)
        with contextlib.suppress(ConnectionError):
            connection.sendall(words)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
    assert admits(hearth)
    assert not any(record.exc_info for record in caplog.records)


def test_garbage_behind_a_good_handshake(hearth: Running) -> None:
    with hearth.connect(client_context(CA.material())) as connection:
        connection.sendall(b"\x00\x01 nothing of HTTP\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 400 ")
    assert admits(hearth)


def test_no_header_makes_a_caller(hearth: Running) -> None:
    request = (
        b"GET https://spiffe/hearth.caller HTTP/1.1\r\nHost: localhost\r\nhearth.caller: hearth listener\r\n"
        b"X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Proto: http\r\nX-Client-Cert: x\r\n\r\n"
    )
    answer = body(hearth.ask(client_context(CA.material()), request))
    assert answer == {"caller": str(AGENT), "scheme": "https", "client": "127.0.0.1"}


def test_requests_in_one_connection_have_one_caller(hearth: Running) -> None:
    one = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with hearth.connect(client_context(CA.material())) as connection:
        # Sent together: the second is parsed before the first is answered.
        connection.sendall(one + one)
        said = b""
        while said.count(str(AGENT).encode()) < 2:
            said += connection.recv(65536)


def test_nobody_may_upgrade_to_something_else(hearth: Running) -> None:
    request = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n"
    assert hearth.ask(client_context(CA.material()), request).startswith(b"HTTP/1.1 200 ")


def ended(connection: ssl.SSLSocket) -> bool:
    try:
        return connection.recv(65536) == b""
    except OSError:
        return True


def test_a_connection_ends_with_the_certificate_that_opened_it(
    hearth: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "FIRST_REQUEST", 60.0)
    with hearth.connect(client_context(CA.material(until=2 * SECOND))) as connection:
        connection.settimeout(20)
        assert ended(connection)


def test_a_certificates_last_answers_say_that_they_are_the_last(hearth: Running) -> None:
    """So no connection ends in the hands of a caller who was about to use it again."""
    with hearth.connect(client_context(CA.material(until=4 * SECOND))) as connection:
        connection.settimeout(20)
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"connection: close" in read(connection)
        assert ended(connection)
    assert b"connection: close" not in hearth.ask(client_context(CA.material()))


def test_what_was_asked_in_time_is_answered_after_the_certificates_end(loop: str) -> None:
    over = 0.0

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(over - time.time())
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with running(Given(CA.material(LISTENER)), slow, loop=loop) as made:
        material = CA.material(until=3 * SECOND)
        over = material.not_after.timestamp() + 0.1
        with made.connect(client_context(material)) as one:
            one.settimeout(20)
            one.sendall(request + request)  # and what waits for its turn is not
            said = b""
            while more := one.recv(65536):
                said += more
    assert said.count(b"HTTP/1.1 204 ") == 1


def test_a_clock_that_was_set_ends_it_too(hearth: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    with hearth.connect(client_context(CA.material())) as connection:
        connection.settimeout(20)
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert body(read(connection))["caller"] == str(AGENT)
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + 7200)
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert ended(connection)


def test_silence_is_not_waited_for(hearth: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "FIRST_REQUEST", 0.2)
    with hearth.connect(client_context(CA.material())) as connection:
        connection.settimeout(20)
        assert ended(connection)


def test_a_slow_handshake_is_ended_and_keeps_nobody_waiting(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "HANDSHAKE", 0.5)
    with running(Given(CA.material(LISTENER)), loop=loop) as hearth:
        slow = [hearth.plain() for _ in range(50)]
        for each in slow:
            each.sendall(b"\x16\x03\x01")
        assert admits(hearth)
        for each in slow:
            each.settimeout(20)
            with contextlib.suppress(ConnectionError):
                assert each.recv(1) == b""
            each.close()
        assert admits(hearth)


def test_no_session_outlives_its_connection(hearth: Running) -> None:
    context = client_context(CA.material()).current
    with context.wrap_socket(hearth.plain(), server_hostname="localhost") as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(65536)
        session = connection.session
        assert session is None or not session.has_ticket


def test_a_new_certificate_is_used_without_a_restart(changing: Running) -> None:
    before = client_context(CA.material())
    with changing.connect(before) as connection:
        other = Ca("another")
        changing.source.material = other.material(LISTENER, trust=CA.trust + other.trust)
        assert changing.keeper.look()
        # An open connection goes on; a new one meets the new certificate.
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert body(read(connection))["caller"] == str(AGENT)
        changing.source.material = other.material(LISTENER, trust=other.trust)
        assert changing.keeper.look()
        # The old authority is nobody's any more: whoever came by it has to come anew.
        with contextlib.suppress(OSError):
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert ended(connection)
    with pytest.raises(ssl.SSLCertVerificationError):
        changing.connect(before)
    assert refused(changing, bare(CA.material(trust=other.trust)))
    assert body(changing.ask(client_context(other.material())))["caller"] == str(AGENT)


def test_swapping_while_many_call(changing: Running) -> None:
    """Each handshake has one whole certificate, whatever is put in place in the middle of it."""
    other = Ca("another")
    trust = CA.trust + other.trust
    choices = [CA.material(LISTENER, trust=trust), other.material(LISTENER, trust=trust)]
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for changing.source.material in choices:
                changing.keeper.look()

    swapping = threading.Thread(target=swap)
    swapping.start()
    try:
        context = client_context(CA.material(trust=trust))
        for _ in range(30):
            assert body(changing.ask(context))["caller"] == str(AGENT)
    finally:
        stop.set()
        swapping.join(60)


def test_it_waits_for_its_first_certificate(loop: str, caplog: pytest.LogCaptureFixture) -> None:
    with running(Given(None), loop=loop, wait=False) as hearth:
        until(lambda: hearth.keeper._fault)
        with pytest.raises(ConnectionRefusedError):
            hearth.plain()
        assert not hearth.listener.listens
        hearth.source.material = CA.material(LISTENER)
        until(lambda: hearth.listener.listens)
        assert admits(hearth)
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(said) == 1
    assert said[0].endswith("The database does not answer. It does not listen until there is one.")


def test_it_looks_for_a_new_certificate_by_itself(loop: str) -> None:
    with running(Given(CA.material(LISTENER, since=-SECOND, until=9 * SECOND)), loop=loop) as hearth:
        hearth.source.material = renewed = CA.material(LISTENER)
        until(lambda: hearth.keeper.material is renewed)
        assert admits(hearth)


def test_a_taken_port_is_one_sentence(hearth: Running) -> None:
    with pytest.raises(OSError, match=r"^Hearth can't listen for internal calls on 127\.0\.0\.1 port \d+: Address al"):
        listener.bind("127.0.0.1", hearth.port)
    assert "HEARTH_INTERNAL_PORT=18000" in listener.taken("::1", 65535, OSError())


@pytest.mark.parametrize("host", ["localhost", "::1"])
def test_names_and_both_families(host: str) -> None:
    with listener.bind(host, 0) as bound:
        assert bound.getsockname()[0] in {"127.0.0.1", "::1"}


def test_it_starts_again_after_a_fault(
    loop: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listener, "RESTART", 0.01)
    source = Given(CA.material(LISTENER))
    real, faults = listener._Server.startup, [RuntimeError("injected"), OSError("injected")]

    async def startup(self: Any, sockets: Any = None) -> None:
        if faults:
            raise faults.pop()
        await real(self, sockets)

    monkeypatch.setattr(listener._Server, "startup", startup)
    with running(source, loop=loop) as hearth:
        assert admits(hearth)
    assert sum("It is started again." in record.getMessage() for record in caplog.records) == 2


def test_calls_in_progress_have_a_moment_when_it_stops(loop: str) -> None:
    begun = threading.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        begun.set()
        await asyncio.sleep(0.3)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    answers: list[bytes] = []
    with running(Given(CA.material(LISTENER)), slow, loop=loop) as hearth:
        asking = threading.Thread(target=lambda: answers.append(hearth.ask(client_context(CA.material()))))
        asking.start()
        assert begun.wait(60)
    asking.join(60)
    assert answers[0].startswith(b"HTTP/1.1 204 ")


def test_stopping_what_never_started_is_fine() -> None:
    asyncio.run(Running(Given(None)).listener.stop())


def test_stopping_what_waits_for_its_certificate_is_fine(loop: str) -> None:
    with running(Given(None), loop=loop, wait=False) as hearth:
        until(lambda: hearth.keeper._fault)
    with pytest.raises(ConnectionRefusedError):
        hearth.plain()
