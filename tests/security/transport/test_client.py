"""A caller's side: its files, their renewal, and whom it trusts."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from security.transport.client import InternalClient
from security.transport.errors import CallRefused, CertificateError, NotTrusted, Unreachable
from security.transport.files import Files
from security.transport.listener import InternalProtocol
from security.transport.tls import Material, client_context
from tests.bench.floor import free_ports
from tests.security.transport.pki import AGENT, HOUR, LISTENER, Ca, store
from tests.security.transport.running import LOOPS, Given, Running, running

CA = Ca()


@pytest.fixture(params=LOOPS, scope="module")
def hearth(request: pytest.FixtureRequest) -> Iterator[Running]:
    with running(Given(CA.material(LISTENER)), signs, loop=request.param) as made:
        yield made


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return store(tmp_path / "agent", CA.material())


def client(hearth: Running, files: Files) -> InternalClient:
    return InternalClient(f"localhost:{hearth.port}", files.certificate, files.key, files.trust, timeout=10)


async def signs(scope: Any, receive: Any, send: Any) -> None:
    """Answer a path with what is listed for it."""
    sent = await receive()
    body = ANSWERS.get(scope["path"], sent["body"])
    status = 400 if scope["path"] == "/refused" else 200
    length = str(len(body)).encode()
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", length)]})
    await send({"type": "http.response.body", "body": body})


ANSWERS = {
    "/list": b"[]",
    "/text": b"hello",
    "/refused": b"<html>",
    "/v1/certificate": b'{"chain": 1}',
}


def test_it_works(hearth: Running, files: Files) -> None:
    with client(hearth, files) as calling:
        assert calling.post("/echo", {"a": "ü"}) == {"a": "ü"}
        assert calling.get("/text").text == "hello"
        calling.close()
        assert calling.get("/text").text == "hello"
    InternalClient("https://127.0.0.1:1", files.certificate, files.key, files.trust).close()


def test_answers_that_can_not_be_read(hearth: Running, files: Files) -> None:
    with client(hearth, files) as calling:
        for path in ("/list", "/text"):
            with pytest.raises(CallRefused, match="can't be read"):
                calling.post(path, {})
        with pytest.raises(CallRefused, match="can't be read"):
            calling.renew()
        with pytest.raises(CallRefused, match="Hearth answered 400") as caught:
            calling.get("/refused")
        assert (caught.value.status, caught.value.type) == (400, "unknown")


def imposters() -> dict[str, Material]:
    named = CA.material(LISTENER)

    def server(uri: str) -> Material:
        """Return a certificate of our authority for this host, and for serving, but not Hearth's."""
        chain, key = CA.certify(uri, hosts=("localhost", "127.0.0.1"), usage=ExtendedKeyUsageOID.SERVER_AUTH)
        return Material(chain, key, CA.trust, named.identity, named.not_before, named.not_after)

    return {
        "an agent": server(AGENT.uri),
        "nobody": server("https://example.org/"),
        "another authority": Ca().material(LISTENER, trust=CA.trust),
        "another host": CA.material(LISTENER, hosts=("hearth.example",)),
        "expired": CA.material(LISTENER, until=-timedelta(seconds=1)),
        "a certificate for callers": CA.material(LISTENER, usage=ExtendedKeyUsageOID.CLIENT_AUTH),
    }


@pytest.mark.parametrize("who", imposters())
def test_nothing_is_sent_to_whoever_is_not_hearth(who: str, files: Files) -> None:
    asked: list[str] = []

    async def notes(scope: Any, receive: Any, send: Any) -> None:
        asked.append(scope["path"])

    refused = pytest.raises(NotTrusted, match="don't trust one another")
    with running(Given(imposters()[who]), notes) as imposter, client(imposter, files) as calling, refused:
        calling.post("/v1/data-keys", {"secret": "hush"})
    assert asked == []


def test_a_caller_that_hearth_does_not_trust(hearth: Running, tmp_path: Path) -> None:
    """Its handshake is done before the listener has looked at its certificate: what comes back then must be told."""
    for number, material in enumerate((Ca().material(trust=CA.trust), CA.material(until=-timedelta(seconds=1)))):
        with client(hearth, store(tmp_path / str(number), material)) as calling:
            for _ in range(10):
                with pytest.raises(NotTrusted):
                    calling.post("/echo", {"a": "x" * 100_000})


def test_nobody_answers(files: Files) -> None:
    port = free_ports(1)[0]
    calling = InternalClient(f"https://127.0.0.1:{port}", files.certificate, files.key, files.trust)
    with calling, pytest.raises(Unreachable, match=f"does not answer at https://127.0.0.1:{port}") as caught:
        calling.get("/")
    assert not isinstance(caught.value, NotTrusted)


def test_an_answer_that_never_comes(files: Files) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        calling = InternalClient(address, files.certificate, files.key, files.trust, timeout=0.3)
        with calling, pytest.raises(Unreachable) as caught:
            calling.get("/")
    assert not isinstance(caught.value, NotTrusted)


@pytest.fixture
def cut(hearth: Running, monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """Have each connection end when the second thing is asked of it, as if both happened at one moment."""
    asked: Counter[int] = Counter()
    real = InternalProtocol.on_message_begin

    def begin(self: InternalProtocol) -> None:
        real(self)
        asked[self.client[1]] += 1  # type: ignore[index]  # a connection's port
        if asked[self.client[1]] > 1:  # type: ignore[index]
            self.transport.close()

    monkeypatch.setattr(InternalProtocol, "on_message_begin", begin)
    return asked


def test_a_kept_connection_that_ends_is_nobodys_fault(hearth: Running, files: Files, cut: Counter[int]) -> None:
    with client(hearth, files) as calling:
        for _ in range(3):
            assert calling.post("/echo", {"a": 1}, repeatable=True) == {"a": 1}
            assert calling.get("/text").text == "hello"
    assert sorted(cut.values()) == [1] + [2] * 5


def test_what_may_have_been_done_is_not_done_again(hearth: Running, files: Files, cut: Counter[int]) -> None:
    with client(hearth, files) as calling:
        assert calling.post("/echo", {"a": 1}) == {"a": 1}
        with pytest.raises(Unreachable, match="disconnected"):
            calling.post("/echo", {"a": 1})
        assert cut.total() == 2
        assert calling.post("/echo", {"a": 1}) == {"a": 1}


def test_a_new_connection_that_ends_is_an_answer(
    hearth: Running, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def begin(self: InternalProtocol) -> None:
        asked.append(1)
        self.transport.close()

    monkeypatch.setattr(InternalProtocol, "data_received", lambda self, _: begin(self))
    with client(hearth, files) as calling, pytest.raises(Unreachable):
        calling.get("/text")
    assert asked == [1]


def test_files_that_are_missing_or_damaged(hearth: Running, files: Files, tmp_path: Path) -> None:
    calling = InternalClient(hearth.address, tmp_path / "none", files.key, files.trust)
    with calling, pytest.raises(CertificateError, match="can't be read"):
        calling.get("/")
    files.key.write_text("junk")
    with client(hearth, files) as calling, pytest.raises(CertificateError):
        calling.get("/")
    files.key.write_bytes(b"\xff")
    with pytest.raises(CertificateError):
        files.read()


def test_files_that_are_exchanged_are_used_at_the_next_call(hearth: Running, files: Files) -> None:
    with client(hearth, files) as calling:
        assert calling.get("/text")
        first, _ = calling._ready()
        store(files.key.parent, CA.material())
        assert calling.get("/text")
        assert calling._ready()[0].chain != first.chain
        # Half written by somebody: what is in memory is used on.
        files.certificate.write_text("-----BEGIN")
        assert calling.get("/text")
        files.certificate.unlink()
        assert calling.get("/text")


def test_renewal_is_for_whom_it_is_due(hearth: Running, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    renewed = []
    with client(hearth, files) as calling:
        monkeypatch.setattr(calling, "renew", lambda: renewed.append(1))
        now = CA.material().not_before
        assert not calling.renew_if_due(now + HOUR)
        assert calling.renew_if_due(now + 1.5 * HOUR)
        assert calling.renew_if_due(now - HOUR)  # a clock was wrong
        with pytest.raises(CertificateError, match="Hearth has to give a new one"):
            calling.renew_if_due(now + 2 * HOUR)
    assert renewed == [1, 1]


def test_key_and_certificate_in_one_file(hearth: Running, tmp_path: Path) -> None:
    both = Files(tmp_path / "agent.pem", tmp_path / "agent.pem", tmp_path / "trust.pem")
    material = CA.material()
    both.install(material.chain, material.key, material.trust)
    assert both.read().chain.endswith(material.chain)
    assert (tmp_path / "agent.pem").stat().st_mode & 0o777 == 0o600
    with client(hearth, both) as calling:
        assert calling.get("/text").text == "hello"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["agent.pem", "trust.pem"]


def test_a_renewal_that_is_cut_off_anywhere_leaves_a_pair_that_fits(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    real_replace, real_unlink = Path.replace, Path.unlink
    for cut in range(12):
        steps = [0]

        def step(real: Any, steps: list[int] = steps, cut: int = cut) -> Any:
            def counted(*args: Any, **kwargs: Any) -> Any:
                steps[0] += 1
                if steps[0] > cut:
                    raise Killed
                return real(*args, **kwargs)

            return counted

        renewed = CA.material()
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", step(real_replace))
            patch.setattr(Path, "unlink", step(real_unlink))
            try:
                files.install(renewed.chain, renewed.key, renewed.trust)
            except Killed:
                pass
            else:
                assert cut >= 7
                assert files.read() == renewed
        found = files.read()
        assert Material.read(found.chain, found.key, found.trust)
        assert files.read() == found


def test_what_does_not_fit_is_not_installed(files: Files) -> None:
    before = files.read()
    with pytest.raises(CertificateError):
        files.install(CA.material().chain, CA.material().key, CA.trust)
    assert files.read() == before


def test_a_full_disk_leaves_the_present_one(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    before, renewed = files.read(), CA.material()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device", "key.pem")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CertificateError, match=r"could not be stored: No space left on device \(key.pem\)"):
        files.install(renewed.chain, renewed.key, renewed.trust)
    assert files.read() == before


def test_many_threads_share_one_client(hearth: Running, files: Files) -> None:
    faults: list[Exception] = []
    with client(hearth, files) as calling:

        def call() -> None:
            try:
                for _ in range(5):
                    assert calling.post("/echo", {"a": 1}) == {"a": 1}
            except Exception as error:
                faults.append(error)

        threads = [threading.Thread(target=call) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert faults == []


def test_no_secret_is_shown(files: Files) -> None:
    assert "PRIVATE" not in repr(files.read()) + repr(files)


def test_a_callers_context_serves_event_loops_too(hearth: Running, files: Files) -> None:
    async def call() -> bytes:
        context = client_context(files.read())
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", hearth.port, ssl=context, server_hostname="localhost"
        )
        writer.write(b"GET /text HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        return answer

    assert asyncio.run(call()).endswith(b"hello")
