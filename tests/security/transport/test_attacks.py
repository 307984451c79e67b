"""Callers with a good certificate who mean harm, and what the listener owes to everybody else."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path

from security.transport import listener, tls
from security.transport.errors import IdentityError
from security.transport.handler import AT_ONCE, InternalHandler
from security.transport.identities import Identity, of_certificate
from security.transport.requests import private_pem
from security.transport.tls import Material, client_context
from tests.security.transport.pki import AGENT, LISTENER, Ca
from tests.security.transport.running import LOOPS, Given, Running, read, running, says, until

CA = Ca()
ASK = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(params=LOOPS)
def hearth(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setattr(tls, "refusals", fresh := tls.Refusals())
    monkeypatch.setattr(listener, "refusals", fresh)
    with running(Given(CA.material(LISTENER)), loop=request.param) as made:
        yield made


def ended(connection: ssl.SSLSocket) -> bool:
    connection.settimeout(15)
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


def test_a_leaf_signs_nobody(hearth: Running) -> None:
    """An agent may not make itself another agent: its certificate is no authority."""
    chain, key = CA.certify(AGENT.uri)
    parent = x509.load_pem_x509_certificate(chain.encode())
    private: Any = load_pem_private_key(key.encode(), None)
    mine = ec.generate_private_key(ec.SECP256R1())
    forged = (
        x509.CertificateBuilder(parent.subject, x509.Name([]), mine.public_key(), x509.random_serial_number())
        .not_valid_before(parent.not_valid_before_utc)
        .not_valid_after(parent.not_valid_after_utc)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://hearth.internal/metrics/me")]), True
        )
        .sign(private, hashes.SHA256())
    )
    text = forged.public_bytes(Encoding.PEM).decode() + chain
    context = client_context(Material.read(text, private_pem(mine), CA.trust))
    assert not _or_nothing(hearth, context)


MANY = b"".join(b"a%d: b\r\n" % number for number in range(2000))


@pytest.mark.parametrize(
    ("begun", "more"),
    [
        (ASK[:-2], MANY),
        (ASK[:-2] + b"a: ", b"x" * 20_000),
        (b"GET /", b"x" * 20_000),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", MANY),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;a=", b"x" * 20_000),
    ],
    ids=["many headers", "a long header", "a long address", "trailers", "a chunk's extension"],
)
def test_what_never_ends_is_cut_off(hearth: Running, begun: bytes, more: bytes) -> None:
    with hearth.connect(client_context(CA.material())) as connection:
        connection.settimeout(15)
        end = time.monotonic() + 10
        with contextlib.suppress(OSError):
            connection.sendall(begun)
            while time.monotonic() < end:  # what comes while the connection is closed is thrown away
                connection.sendall(more)
            pytest.fail("It was taken without end.")


def test_what_is_large_and_in_order_is_taken(hearth: Running) -> None:
    headers = b"".join(b"a%d: %s\r\n" % (number, b"x" * 300) for number in range(150))
    post = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 500000\r\n"
    with hearth.connect(client_context(CA.material())) as connection:
        for request in (ASK[:-2] + headers + b"\r\n", post + headers + b"\r\n" + bytes(500_000), ASK * 20):
            connection.sendall(request)
            assert read(connection).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "begun", [b"GET / HTTP/1.1\r\nHost:", b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\na", b"\r\n"]
)
def test_a_request_that_never_ends_is_not_waited_for(
    hearth: Running, begun: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "REQUEST", 0.3)
    with hearth.connect(client_context(CA.material())) as connection:
        connection.sendall(ASK)
        read(connection)
        connection.sendall(begun)
        assert ended(connection)


def test_one_caller_has_so_many_connections_and_disturbs_no_other(
    hearth: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "CONNECTIONS", 3)
    context = client_context(CA.material())
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            connection = stack.enter_context(hearth.connect(context))
            connection.sendall(ASK)
            read(connection)
        assert ended(stack.enter_context(hearth.connect(context)))
        other = client_context(CA.material(Identity("operator", "eu-1")))
        assert b"operator eu-1" in hearth.ask(other)
    until(lambda: b" 200 " in _or_nothing(hearth, context))


def _or_nothing(hearth: Running, context: ssl.SSLContext) -> bytes:
    try:
        return hearth.ask(context)
    except OSError:
        return b""


def test_a_connection_goes_on_when_another_authority_came(hearth: Running) -> None:
    with hearth.connect(client_context(CA.material())) as connection:
        hearth.source.material = CA.material(LISTENER, trust=CA.trust + Ca("the next one").trust)
        assert hearth.keeper.look()
        connection.sendall(ASK)
        assert b" 200 " in read(connection)


def test_a_connection_ends_when_its_authority_is_trusted_no_more(hearth: Running) -> None:
    other = Ca("the next one")
    with hearth.connect(client_context(CA.material())) as connection:
        connection.sendall(ASK)
        read(connection)
        hearth.source.material = other.material(LISTENER)
        assert hearth.keeper.look()
        with contextlib.suppress(OSError):
            connection.sendall(ASK)
        connection.settimeout(15)
        said = b""
        with contextlib.suppress(OSError):
            said = connection.recv(65536)
        assert said == b""


IN_WORK = {"now": 0, "most": 0}
_counting, _go_on = threading.Lock(), threading.Event()


def slow(request: HttpRequest) -> HttpResponse:
    with _counting:
        IN_WORK["now"] += 1
        IN_WORK["most"] = max(IN_WORK.values())
    _go_on.wait(60)
    with _counting:
        IN_WORK["now"] -= 1
    return JsonResponse({})


urlpatterns = [path("slow", slow)]


def _work_reached(count: int) -> bool:
    return IN_WORK["now"] >= count


def test_callers_who_hang_up_leave_no_more_work_than_those_who_wait(db: None) -> None:
    """Whoever asks and goes away again and again must not get more than the turns that there are."""
    _go_on.clear()
    context = client_context(CA.material())
    with running(Given(CA.material(LISTENER)), InternalHandler(__name__)) as hearth:
        try:
            for number in range(AT_ONCE + 8):
                with hearth.connect(context) as connection:
                    connection.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
                    until(functools.partial(_work_reached, min(number + 1, AT_ONCE)))
                    time.sleep(0.05)
            assert IN_WORK["most"] == AT_ONCE
        finally:
            _go_on.set()
        until(lambda: IN_WORK["now"] == 0)
        answered = hearth.ask(context, b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answered.startswith(b"HTTP/1.1 200 ")


def test_a_name_of_a_form_that_nobody_reads_names_nobody() -> None:
    """An EDI party name (RFC 5280) is legal in a certificate, and the library refuses it in its own way."""
    key = ec.generate_private_key(ec.SECP256R1())
    raw = x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, bytes.fromhex("3008a506a1040c026869"))
    made = (
        x509.CertificateBuilder(x509.Name([]), x509.Name([]), key.public_key(), 7)
        .not_valid_before(CA.certificate.not_valid_before_utc)
        .not_valid_after(CA.certificate.not_valid_after_utc)
        .add_extension(raw, critical=False)
        .sign(key, hashes.SHA256())
    )
    with pytest.raises(IdentityError):
        of_certificate(made)


def test_what_waits_behind_another_request_is_not_answered_once_the_authority_went() -> None:
    """Requests sent together are read together; the second has its turn after the trust has changed."""
    go_on = threading.Event()
    asked: list[str] = []

    async def waits(scope: Any, receive: Any, send: Any) -> None:
        asked.append(scope["path"])
        await asyncio.to_thread(go_on.wait, 20)
        await says(scope, receive, send)

    with running(Given(CA.material(LISTENER)), waits) as hearth, hearth.connect(client_context(CA.material())) as made:
        made.sendall(ASK + ASK)
        until(lambda: asked)
        hearth.source.material = Ca("the next one").material(LISTENER)
        assert hearth.keeper.look()
        go_on.set()
        assert ended(made)
    assert len(asked) == 1
