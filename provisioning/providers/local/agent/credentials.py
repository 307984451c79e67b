"""The key and certificate with which a server's agent speaks to Hearth.

The private key is made here and never leaves: Hearth sees a request (PKCS #10, RFC 2986) and gives a certificate. The
folder `identity/` is closed to the server's own user, which a customer's homeserver runs as. Key and certificate lie in
one file, so that no crash and no reader can ever meet a new key with an old certificate.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from provisioning.providers.base import ProviderError
from provisioning.providers.local.agent.files import write
from security.transport.errors import CertificateError
from security.transport.identities import Identity
from security.transport.requests import certificate_request, private_pem
from security.transport.tls import Material

AGENT = "agent"
LATE = 5 / 6
"""The part of a certificate's life after which Hearth is asked for help; the agent renews it at two thirds."""


class Credentials:
    """The folder `identity/` of one server. The caller sees to it that only one method writes at a time."""

    def __init__(self, folder: Path, server_id: str) -> None:
        self.folder = folder
        self.identity = Identity(AGENT, server_id)
        self.pair_file = folder / "agent.pem"
        """Private key, then its certificate and those above it."""
        self.trust = folder / "trust.pem"
        self._address = folder / "address"
        self._next = folder / "next.key"
        self.refused = False
        """Hearth and the agent did not accept one another at the last try."""
        self._seen: tuple[tuple[int, ...], Material | None] | None = None

    def make(self) -> None:
        """Make the folder, which our own user alone may pass."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self.folder.chmod(0o700)
        self.own()

    def own(self) -> None:
        """Take back what a copy from elsewhere may have given to somebody else."""
        if not self.folder.exists():
            return
        for path in (self.folder, *self.folder.iterdir()):
            found = path.lstat()
            if (found.st_uid, found.st_gid) != (os.geteuid(), os.getegid()):
                os.chown(path, os.geteuid(), os.getegid(), follow_symlinks=False)

    @property
    def address(self) -> str:
        """Return Hearth's internal address, or "" as long as nobody told."""
        try:
            return self._address.read_text(encoding="utf-8").strip()
        except (FileNotFoundError, NotADirectoryError):
            return ""

    @property
    def material(self) -> Material | None:
        """Return key, certificate and trust as they lie in the folder now; None if they are not whole, or not ours."""
        try:
            found = [path.stat() for path in (self.pair_file, self.trust)]
        except OSError:
            return None
        signature = tuple(number for one in found for number in (one.st_ino, one.st_mtime_ns, one.st_size))
        if self._seen is None or self._seen[0] != signature:
            self._seen = signature, self._read()
        return self._seen[1]

    def due(self, now: datetime | None = None) -> bool:
        """Tell whether the agent should renew its certificate: it is old, and still good to ask with."""
        now, material = now or datetime.now(UTC), self.material
        return material is not None and material.not_before <= now < material.not_after and material.is_due(now)

    def wanted(self, now: datetime | None = None) -> str:
        """Return why Hearth must give a certificate, as a named reason; "" while the agent can help itself."""
        now, material = now or datetime.now(UTC), self.material
        if material is None or not self.address:
            return "CertificateMissing"
        if now < material.not_before:
            return "CertificateNotYetValid"
        if now >= material.not_after:
            return "CertificateExpired"
        if now >= material.not_before + material.life * LATE:
            return "CertificateLate"
        return "CertificateRefused" if self.refused else ""

    def request(self) -> bytes:
        """Return a certificate request (PEM) for the key that comes next, which is made when there is none.

        Asked again before the certificate has come, it is for the same key: two answers both fit.
        """
        return certificate_request(self._next_key())

    def install(self, chain: str, trust: str, address: str) -> None:
        """Put a certificate into use that Hearth gave for our request, or raise `ProviderError` and change nothing."""
        try:
            text = self._fitting(chain, trust)
        except ValueError as error:
            raise ProviderError(
                f"The certificate that came for this server's agent is not for it: {error} The one it had is kept.",
                code="CertificateUnfit",
            ) from None
        # First what a new certificate needs, last what makes it count: cut off in between, the old one goes on.
        write(self.trust, trust.strip() + "\n")
        if address != self.address:
            write(self._address, address + "\n")
        write(self.pair_file, text)
        self._next.unlink(missing_ok=True)
        self.refused = False

    def _fitting(self, chain: str, trust: str) -> str:
        """Return what the file of the pair will hold, or raise `ValueError`: all of it must fit together, and us."""
        leaf, *above = x509.load_pem_x509_certificates(chain.encode())
        key = self._key_of(leaf.public_key())
        if (found := Material.read(chain, key, trust).identity) != self.identity:
            raise CertificateError(f"It is that of {found}.")
        _check_signed(leaf, above, x509.load_pem_x509_certificates(trust.encode()))
        return f"{key.strip()}\n{chain.strip()}\n"

    def _key_of(self, public: PublicKeyTypes) -> str:
        """Return the PEM of our key with that public half: the next one, or the present one if this is said again."""
        for path in (self._next, self.pair_file):
            key = _key(path)
            if key is not None and _der(key.public_key()) == _der(public):
                return private_pem(key)
        raise CertificateError("It is for a key that this agent does not have.")

    def _next_key(self) -> ec.EllipticCurvePrivateKey:
        """Return the key that waits for its certificate. One that has it already was left by a crash."""
        key, present = _key(self._next), _key(self.pair_file)
        if key is not None and (present is None or _der(present.public_key()) != _der(key.public_key())):
            return key
        self.make()
        key = ec.generate_private_key(ec.SECP256R1())
        write(self._next, private_pem(key))
        return key

    def _read(self) -> Material | None:
        try:
            text, trust = self.pair_file.read_text(encoding="utf-8"), self.trust.read_text(encoding="utf-8")
            key, mark, chain = text.partition("-----BEGIN CERTIFICATE-----")
            material = Material.read(mark + chain, key, trust)
        except (OSError, ValueError):
            return None
        return material if material.identity == self.identity else None


def _key(path: Path) -> ec.EllipticCurvePrivateKey | None:
    """Return the first private key in a file; None when there is none that is whole."""
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError):
        return None
    return key if isinstance(key, ec.EllipticCurvePrivateKey) else None


def _check_signed(
    leaf: x509.Certificate, above: Sequence[x509.Certificate], anchors: Sequence[x509.Certificate]
) -> None:
    """Raise `CertificateError` unless each is signed by the one above it, up to one that is trusted."""
    below = leaf
    for one in above:
        if not _signs(one, below):
            raise CertificateError("Its chain does not hold together.")
        below = one
    if below not in anchors and not any(_signs(anchor, below) for anchor in anchors):
        raise CertificateError("It is not signed by an authority that came with it.")


def _signs(issuer: x509.Certificate, below: x509.Certificate) -> bool:
    try:
        below.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _der(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
