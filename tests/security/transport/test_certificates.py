"""The listener's own certificate: where it comes from, how it stays fresh, and that no fault takes it down."""

from __future__ import annotations

import logging
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from django.db import OperationalError

from security.transport import authority, certificates, tls
from security.transport.certificates import LISTENER, Keeper, Mounted, Own
from security.transport.errors import CertificateError
from security.transport.files import Files
from security.transport.models import Authority
from security.transport.requests import private_pem
from security.transport.tls import LiveContext, Material, client_context, server_context
from tests.security.transport.pki import AGENT, HOUR, Ca, store
from tests.security.transport.running import Given

CA = Ca()


def lines(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


@pytest.mark.django_db
def test_its_own_authority_signs_and_it_renews_when_due() -> None:
    own = Own(["localhost"])
    first = own.look(None)
    assert first is not None
    assert first.identity == LISTENER
    assert own.look(first) is None
    old = Material(first.chain, first.key, first.trust, first.identity, *ages(first, 0.7))
    second = own.look(old)
    assert second is not None
    assert (second.chain, second.key) != (first.chain, first.key)


def ages(material: Material, part: float) -> tuple[datetime, datetime]:
    """Return the times of a certificate of which that part of its life is over."""
    now = datetime.now(UTC)
    return now - part * material.life, now + (1 - part) * material.life


@pytest.mark.django_db
def test_a_certificate_of_a_clock_that_was_ahead_is_renewed() -> None:
    first = Own([]).look(None)
    assert first is not None
    ahead = Material(first.chain, first.key, first.trust, LISTENER, first.not_before + 24 * HOUR, first.not_after)
    assert ahead.is_due()
    assert Own([]).look(ahead) is not None


@pytest.mark.django_db
def test_it_learns_new_authorities_and_forgets_old_ones() -> None:
    own = Own([])
    first = own.look(None)
    assert first is not None
    made = Authority.objects.get()
    Authority.objects.filter(pk=made.pk).update(
        not_before=made.not_before - 300 * 24 * HOUR, not_after=made.not_after - 300 * 24 * HOUR
    )
    assert authority.renew_due()
    second = own.look(first)
    assert second is not None
    assert second.chain == first.chain
    assert first.trust in second.trust != first.trust
    authority.replace("x")
    third = own.look(second)
    assert third is not None
    assert third.chain != first.chain
    assert first.trust not in third.trust


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return store(tmp_path / "mounted", CA.material(LISTENER))


def mounted(files: Files) -> Mounted:
    return Mounted(files.certificate, files.key, files.trust)


def test_mounted_files_are_read_again_when_they_change(files: Files, tmp_path: Path) -> None:
    source = mounted(files)
    first = source.look(None)
    assert first is not None
    assert source.look(first) is None
    store(files.key.parent, renewed := CA.material(LISTENER))
    assert source.look(first) == renewed
    for path in (files.certificate, files.key, files.trust):
        path.touch()
    assert source.look(renewed) is None


def test_mounted_files_as_kubernetes_exchanges_them(tmp_path: Path) -> None:
    """A Secret's files are links through one folder, which is exchanged in one step."""
    for name in ("one", "two"):
        store(tmp_path / name, CA.material(LISTENER))
    (tmp_path / "data").symlink_to("one")
    names = ("certificate.pem", "key.pem", "trust.pem")
    for name in names:
        (tmp_path / name).symlink_to(f"data/{name}")
    source = Mounted(*(tmp_path / name for name in names))
    first = source.look(None)
    (tmp_path / "new").symlink_to("two")
    (tmp_path / "new").replace(tmp_path / "data")
    second = source.look(first)
    assert first is not None
    assert second is not None
    assert first.chain != second.chain


def test_mounted_files_that_do_not_fit_are_not_used(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    keeper = Keeper(mounted(files))
    assert keeper.look()
    used = keeper.material
    for spoil in (
        lambda: files.key.write_text(private_pem(ec.generate_private_key(ec.SECP256R1()))),
        lambda: files.key.write_bytes(b"\xff"),
        files.key.unlink,
        lambda: files.certificate.write_text("-----BEGIN CERTIFICATE-----"),
        lambda: files.trust.write_text(""),
        lambda: store(files.key.parent, CA.material(AGENT)),
        lambda: files.certificate.write_text(CA.certify()[0]),
    ):
        spoil()
        for _ in range(3):
            assert keeper.look()
            assert keeper.material is used
        assert len(lines(caplog, logging.ERROR)) == 1
        assert lines(caplog, logging.ERROR)[0].endswith("The one in use stays in use.")
        assert "PRIVATE" not in caplog.text
        caplog.clear()
        store(files.key.parent, CA.material(LISTENER))
        assert keeper.look()
        assert lines(caplog, logging.WARNING) == ["The internal listener's certificate is in order again."]
        used = keeper.material
        caplog.clear()


def test_a_database_that_is_away_costs_one_line_and_no_certificate(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Given(CA.material(LISTENER))
    keeper = Keeper(source)
    assert keeper.look()
    used = keeper.material

    def away(_: Material | None) -> Material | None:
        raise OperationalError("connection refused\nIs the server running?")

    monkeypatch.setattr(source, "look", away)
    assert all(keeper.look() for _ in range(5))
    assert keeper.material is used
    (said,) = lines(caplog, logging.ERROR)
    assert said.endswith("OperationalError: connection refused Is the server running? The one in use stays in use.")
    monkeypatch.undo()
    assert keeper.look()
    assert lines(caplog, logging.WARNING) == ["The internal listener's certificate is in order again."]


def test_a_certificate_that_nobody_renews_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    source = Given(CA.material(LISTENER, since=-10 * HOUR, until=HOUR))
    keeper = Keeper(source)
    assert all(keeper.look() for _ in range(3))
    assert lines(caplog, logging.ERROR) == ["The internal listener's certificate ends in 1.0 hours."]
    source.material = CA.material(LISTENER)
    assert all(keeper.look() for _ in range(3))
    source.material = CA.material(LISTENER, since=-10 * HOUR, until=HOUR)
    assert keeper.look()
    assert len(lines(caplog, logging.ERROR)) == 2


def test_how_often_it_looks() -> None:
    keeper = Keeper(Given(None))
    assert not keeper.look()
    assert keeper.wait == certificates.SHORTEST_WAIT
    keeper = Keeper(Given(CA.material(LISTENER, since=-100 * HOUR, until=100 * HOUR)))
    assert keeper.look()
    assert keeper.wait == certificates.LONGEST_WAIT
    second = timedelta(seconds=1)
    keeper = Keeper(Given(CA.material(LISTENER, since=-10 * second, until=190 * second)))
    assert keeper.look()
    assert keeper.wait == pytest.approx(10, abs=0.2)


def test_material_that_does_not_belong_together() -> None:
    good = CA.material()
    for chain, key, trust in (
        (good.chain, CA.material().key, good.trust),
        ("", good.key, good.trust),
        (good.chain, "", good.trust),
        (good.chain, good.key, ""),
        (CA.certify()[0], good.key, good.trust),
    ):
        with pytest.raises(CertificateError):
            Material.read(chain, key, trust)


def test_what_openssl_does_not_take_leaves_the_present_in_use() -> None:
    context = server_context(CA.material(LISTENER))
    before = context.current
    named = CA.material(LISTENER)
    weak = Material(named.chain, CA.material().key, named.trust, LISTENER, named.not_before, named.not_after)
    with pytest.raises(CertificateError, match="can't be used"):
        context.use(weak)
    assert context.current is before


def test_contexts_are_strict() -> None:
    for made, hostname in ((server_context(CA.material(LISTENER)), False), (client_context(CA.material()), True)):
        assert isinstance(made, LiveContext)
        context = made.current
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname is hostname
        assert len(context.get_ca_certs()) == 1


def test_the_private_key_is_in_no_file_and_no_repr(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    real = ssl.SSLContext.load_cert_chain

    def load(self: ssl.SSLContext, path: str) -> None:
        opened.append((path, Path(path).readlink()))
        real(self, path)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", load)
    material = CA.material(LISTENER)
    server_context(material)
    ((path, target),) = opened
    assert str(target).startswith("/memfd:")
    assert not Path(path).exists() or Path(path).readlink() != target
    assert "PRIVATE" not in repr(material)


def test_refusals_are_counted_not_repeated(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    refusals = tls.Refusals(lambda: now[0])
    for _ in range(100):
        refusals.note("unknown ca")
    refusals.note("http request")
    now[0] = 61
    refusals.note("unknown ca")
    assert lines(caplog, logging.WARNING) == [
        "The internal listener refused a connection: unknown ca.",
        "The internal listener refused a connection: http request.",
        "The internal listener refused a connection: unknown ca (99 more since the last such line).",
    ]
