"""A PostgreSQL and a Redis that speak TLS (Debian's: the wheels' have none), and authorities to vouch for them."""

from __future__ import annotations

import datetime
import ipaddress
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from provisioning.providers.local.processes import Command, spawn_argv
from tests.bench.floor import free_ports
from tests.prepare import postgres_tls, redis_tls
from tests.services import NOBODY, wait

UID = NOBODY if os.geteuid() == 0 else None
HERE = ("localhost", "127.0.0.1")
USAGES = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    certificate: Path
    key: Path


class Authority:
    """One that vouches, in a folder of its own."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, _name(name)
        self._key = ec.generate_private_key(ec.SECP256R1())
        signed = self._builder(self._name, self._key, 3650).add_extension(x509.BasicConstraints(True, None), True)
        self.file = self._write(f"{name}.crt", _pem(signed.sign(self._key, hashes.SHA256())))

    def issue(self, name: str, hosts: Sequence[str] = HERE, *, days: int = 30) -> Pair:
        """Return a new pair for these hosts. With negative `days` it has expired that long ago."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([_host(host) for host in hosts])
        builder = self._builder(_name(name), key, days).add_extension(names, False)
        builder = builder.add_extension(x509.ExtendedKeyUsage(USAGES), False)
        text = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        certificate = _pem(builder.sign(self._key, hashes.SHA256()))
        return Pair(self._write(f"{name}.crt", certificate), self._write(f"{name}.key", text))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, days: int) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self._name).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number())
        return builder.not_valid_before(now - datetime.timedelta(days=3660)).not_valid_after(
            now + datetime.timedelta(days=days)
        )

    def _write(self, name: str, text: bytes) -> Path:
        path = self._folder / name
        path.touch(mode=0o600)
        path.write_bytes(text)
        if UID is not None:
            os.chown(path, UID, UID)
        return path


class TlsServices:
    """Both, one start at a time and each in one folder: another certificate needs another start."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="hearth-tls-", dir="/tmp"))
        self.folder.chmod(0o1777 if UID is not None else 0o700)
        self._data = self.folder / "postgres"
        self._postgres = postgres_tls() or Path()
        self._redis = redis_tls() or Path()

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def postgres(self, *options: str, pair: Pair | None, clients: Path | None = None) -> Iterator[int]:
        """Run it on `localhost` and yield its port. Without `pair` it is plain; `clients` vouches for clients."""
        if not self._data.exists():
            self._initdb()
        port = free_ports(1)[0]
        lines = "local all all trust\n"
        lines += f"host all all 127.0.0.1/32 trust{' clientcert=verify-ca' if clients else ''}\n"
        if clients:
            lines = lines.replace("host ", "hostssl ")
        (self._data / "pg_hba.conf").write_text(lines)
        settings = [f"port={port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={self.folder}", "fsync=off"]
        if pair is not None:
            settings += ["ssl=on", f"ssl_cert_file={pair.certificate}", f"ssl_key_file={pair.key}"]
        if clients is not None:
            settings += [f"ssl_ca_file={clients}"]
        words = [f"--{setting}" for setting in (*settings, *options)]
        with self._run(signal.SIGQUIT, str(self._postgres / "postgres"), "-D", str(self._data), *words):
            pid_file = self._data / "postmaster.pid"
            wait(lambda: pid_file.exists() and pid_file.read_text().rstrip().endswith("ready"))
            yield port

    @contextmanager
    def redis(self, *options: str, pair: Pair, trust: Path, clients: bool = False) -> Iterator[int]:
        """Run it with TLS alone and yield its port; with `clients` it wants a certificate that `trust` vouches for."""
        port = free_ports(1)[0]
        words = ["--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self.folder)]
        words += ["--tls-cert-file", str(pair.certificate), "--tls-key-file", str(pair.key)]
        words += ["--tls-ca-cert-file", str(trust), "--tls-auth-clients", "yes" if clients else "no", *options]
        with self._run(signal.SIGKILL, str(self._redis), *words):
            wait(lambda: _listens(port))
            yield port

    def _initdb(self) -> None:
        flags = ("-U", "hearth", "-A", "trust", "--no-sync", "--encoding=UTF8", "--locale=C", "--no-instructions")
        argv = (str(self._postgres / "initdb"), "-D", str(self._data), *flags)
        with self._run(signal.SIGKILL, *argv) as process:
            assert process.wait(60) == 0, (self.folder / "initdb.log").read_text()
        single = (str(self._postgres / "postgres"), "--single", "-D", str(self._data), "postgres")
        with self._run(signal.SIGKILL, *single, say=b"create database hearth\n") as process:
            assert process.wait(60) == 0

    @contextmanager
    def _run(self, end: signal.Signals, *argv: str, say: bytes = b"") -> Iterator[subprocess.Popen[bytes]]:
        name = Path(argv[0]).name
        command = Command(name, argv, self.folder, {}, uid=UID, death_signal=end)
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                spawn_argv(command), cwd=self.folder, env={"LC_ALL": "C"}, stdin=subprocess.PIPE, stdout=log,
                stderr=log, start_new_session=True,
            )  # fmt: skip
        assert process.stdin is not None
        with process.stdin as standard_input:
            standard_input.write(say)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(end)
            process.wait(60)


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1):
            return True
    except OSError:
        return False


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
