"""The agent's key and certificate on disk: who may read them, what fits together, what a crash leaves."""

from __future__ import annotations

import os
import ssl
import uuid
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from provisioning.providers.base import ProviderError
from provisioning.providers.local.agent.credentials import Credentials
from provisioning.providers.local.agent.files import write
from security.transport.identities import Identity
from tests.local.authority import WEEK, Authority

ADDRESS = "https://127.0.0.1:18000"


@pytest.fixture
def mine(tmp_path: Path) -> Credentials:
    return Credentials(tmp_path / "identity", str(uuid.uuid4()))


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def certify(mine: Credentials, authority: Authority, **life: float) -> None:
    chain = authority.issue(mine.request(), mine.identity, **life)
    mine.install(chain, authority.trust, ADDRESS)


def key(mine: Credentials) -> str:
    assert mine.material is not None
    return mine.material.key


def test_it_works(mine: Credentials, authority: Authority) -> None:
    assert (mine.wanted(), mine.address, mine.material) == ("CertificateMissing", "", None)
    certify(mine, authority)
    assert (mine.wanted(), mine.address) == ("", ADDRESS)
    context = ssl.create_default_context(cafile=str(mine.trust))
    context.load_cert_chain(mine.pair_file)  # OpenSSL finds that both halves belong together
    assert sorted(path.name for path in mine.folder.iterdir()) == ["address", "agent.pem", "trust.pem"]


def test_nobody_else_may_read_it(mine: Credentials, authority: Authority) -> None:
    mine.request()
    certify(mine, authority)
    mine.request()
    assert mine.folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in mine.folder.iterdir()} == {0o600}
    assert (mine.folder / "next.key").exists()


def test_the_private_key_is_not_in_the_request(mine: Credentials) -> None:
    request = mine.request()
    private = load_pem_private_key((mine.folder / "next.key").read_bytes(), None)
    assert x509.load_pem_x509_csr(request).is_signature_valid
    assert x509.load_pem_x509_csr(request).public_key() == private.public_key()
    assert b"PRIVATE" not in request


def test_killed_between_key_and_certificate(mine: Credentials, authority: Authority, tmp_path: Path) -> None:
    """The answer to the first request comes to an agent that has been started again meanwhile."""
    first = mine.request()
    again = Credentials(mine.folder, mine.identity.name)
    assert x509.load_pem_x509_csr(again.request()).public_key() == x509.load_pem_x509_csr(first).public_key()
    again.install(authority.issue(first, mine.identity), authority.trust, ADDRESS)
    assert again.wanted() == ""


@pytest.mark.parametrize("cut_at", ["trust.pem", "address", "agent.pem", "unlink"])
def test_cut_off_anywhere_in_an_install_leaves_a_whole_pair(
    cut_at: str, mine: Credentials, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    certify(mine, authority)
    before = key(mine)
    chain = authority.issue(mine.request(), mine.identity)

    class CutOffError(Exception):
        pass

    def cut(path: Path, text: str) -> None:
        if path.name == cut_at:
            raise CutOffError
        write(path, text)

    def never(self: Path, missing_ok: bool = False) -> None:
        raise CutOffError

    with monkeypatch.context() as patched:
        patched.setattr("provisioning.providers.local.agent.credentials.write", cut)
        if cut_at == "unlink":
            patched.setattr(Path, "unlink", never)
        with pytest.raises(CutOffError):
            mine.install(chain, authority.trust, "https://127.0.0.1:18001")
    again = Credentials(mine.folder, mine.identity.name)
    assert again.wanted() == ""
    assert (key(again) == before) == (cut_at != "unlink")
    again.install(authority.issue(again.request(), mine.identity), authority.trust, "https://127.0.0.1:18001")
    assert (again.wanted(), again.address) == ("", "https://127.0.0.1:18001")
    assert key(again) != before


def test_the_same_answer_twice_is_fine(mine: Credentials, authority: Authority) -> None:
    """Two workers asked for one key and both were answered."""
    request = mine.request()
    for _ in range(2):
        mine.install(authority.issue(request, mine.identity), authority.trust, ADDRESS)
    assert mine.wanted() == ""


def test_each_certificate_has_a_key_of_its_own(mine: Credentials, authority: Authority) -> None:
    certify(mine, authority)
    first = key(mine)
    certify(mine, authority)
    assert key(mine) != first


@pytest.mark.parametrize(
    "what", ["other server", "other kind", "other key", "other authority", "no certificate", "no trust"]
)
def test_what_does_not_fit_is_refused_and_the_old_one_kept(what: str, mine: Credentials, authority: Authority) -> None:
    certify(mine, authority)
    before = mine.pair_file.read_bytes(), mine.trust.read_bytes()
    identity, request, trust = mine.identity, mine.request(), authority.trust
    if what == "other server":
        identity = Identity("agent", str(uuid.uuid4()))
    elif what == "other kind":
        identity = Identity("operator", mine.identity.name)
    elif what == "other key":
        request = Credentials(mine.folder.with_name("other"), mine.identity.name).request()
    elif what == "other authority":
        trust = Authority().trust
    elif what == "no trust":
        trust = ""
    chain = "nothing" if what == "no certificate" else authority.issue(request, identity)
    with pytest.raises(ProviderError, match=r"is not for it.*is kept") as refusal:
        mine.install(chain, trust, ADDRESS)
    assert refusal.value.code == "CertificateUnfit"
    assert (mine.pair_file.read_bytes(), mine.trust.read_bytes()) == before
    assert mine.wanted() == ""


@pytest.mark.parametrize(
    ("age", "due", "wanted"),
    [
        (-60.0, False, "CertificateNotYetValid"),
        (0.0, False, ""),
        (WEEK * 0.6, False, ""),
        (WEEK * 0.7, True, ""),
        (WEEK * 0.9, True, "CertificateLate"),
        (WEEK + 1, False, "CertificateExpired"),
    ],
)
def test_when_it_is_renewed_and_when_help_is_needed(
    age: float, due: bool, wanted: str, mine: Credentials, authority: Authority
) -> None:
    """As seen by a clock that is right, too slow (the first), or after days of silence (the last)."""
    certify(mine, authority)
    assert mine.material is not None
    now = mine.material.not_before + timedelta(seconds=age)
    assert (mine.due(now), mine.wanted(now)) == (due, wanted)


def test_a_clock_put_back_after_a_renewal_heals(mine: Credentials, authority: Authority) -> None:
    certify(mine, authority, age=-86_400.0)  # signed while the clock was a day ahead
    assert mine.wanted() == "CertificateNotYetValid"
    certify(mine, authority)
    assert mine.wanted() == ""


@pytest.mark.parametrize("damage", ["gone", "cut", "garbage", "other half", "address", "trust"])
def test_a_damaged_folder_asks_for_a_new_certificate(damage: str, mine: Credentials, authority: Authority) -> None:
    certify(mine, authority)
    text = mine.pair_file.read_bytes()
    if damage == "gone":
        mine.pair_file.unlink()
    elif damage == "cut":
        mine.pair_file.write_bytes(text[: len(text) // 2])
    elif damage == "garbage":
        mine.pair_file.write_bytes(b"\x00\xff" * 700)
    elif damage == "other half":
        other = Credentials(mine.folder.with_name("other"), mine.identity.name)
        certify(other, authority)
        certificate = text[text.index(b"-----BEGIN CERTIFICATE") :]
        mine.pair_file.write_bytes(other.pair_file.read_bytes().partition(b"-----BEGIN CERTIFICATE")[0] + certificate)
    else:
        {"address": mine.folder / "address", "trust": mine.trust}[damage].unlink()
    assert mine.wanted() == "CertificateMissing"
    certify(mine, authority)
    assert mine.wanted() == ""


def test_a_damaged_next_key_is_made_anew(mine: Credentials, authority: Authority) -> None:
    mine.request()
    (mine.folder / "next.key").write_text("half a ke")
    certify(mine, authority)
    assert mine.wanted() == ""


def test_a_copy_that_belongs_to_somebody_else_is_taken_back(mine: Credentials, authority: Authority) -> None:
    certify(mine, authority)
    if os.geteuid() == 0:  # nobody else can give files away
        for path in (mine.folder, *mine.folder.iterdir()):
            os.chown(path, 65534, 65534)
    mine.own()
    assert {path.stat().st_uid for path in (mine.folder, *mine.folder.iterdir())} == {os.geteuid()}
    assert mine.wanted() == ""
