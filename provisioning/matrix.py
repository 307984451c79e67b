"""Hearth's own conversation with a homeserver, over the Matrix client-server API and Synapse's admin API.

Signing in is done by JWT (`org.matrix.login.jwt`, HS256 per RFC 7515): unlike a password it costs Synapse no bcrypt.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import httpx

from provisioning.providers.base import ProviderError

SERVICE, ADMIN = "hearth-service", "admin"
TIMEOUT = httpx.Timeout(10.0, connect=3.0)
TOKEN_SECONDS = 60
PLAIN = {"Accept-Encoding": "identity"}
LARGEST, LONGEST = 1024 * 1024, 30.0
"""Bytes and seconds of one answer. A homeserver belongs to a customer: it may not keep Hearth from the others."""


class MatrixError(ProviderError):
    """The homeserver answered with an error, or not at all. Always worth another try."""

    def __init__(self, message: str, *, code: str = "HomeserverError", status: int = 0, errcode: str = "") -> None:
        super().__init__(message, code=code)
        self.status = status
        self.errcode = errcode


class Homeserver:
    """One homeserver at `url`. Use it as a context manager; it closes its connections at the end."""

    def __init__(self, url: str, server_name: str, *, seconds: float | None = None) -> None:
        """`seconds`: for all requests together; None: each has its own."""
        self.server_name = server_name
        self._end = None if seconds is None else time.monotonic() + seconds
        self._client = httpx.Client(
            base_url=url.rstrip("/"), timeout=TIMEOUT, trust_env=False, verify=_verify(url), headers=PLAIN
        )

    def __enter__(self) -> Homeserver:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def request(self, method: str, path: str, *, token: str = "", body: Any = None) -> dict[str, Any]:
        """Return the answer's JSON object, or raise `MatrixError` with a sentence that has no secret in it."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            left = LONGEST if self._end is None else min(LONGEST, self._end - time.monotonic())
            if left <= 0:
                raise httpx.ReadTimeout("All its answers together take too long.")
            patience = httpx.Timeout(min(10.0, left), connect=min(3.0, left))
            with self._client.stream(method, path, headers=headers, json=body, timeout=patience) as response:
                answer = json.loads(bounded(response, seconds=left))
        except httpx.HTTPError as error:
            raise MatrixError(
                f"The homeserver did not answer {path} ({type(error).__name__}).", code="HomeserverUnreachable"
            ) from None
        except (ValueError, RecursionError):
            raise MatrixError(
                f"The homeserver's answer to {path} is not JSON (status {response.status_code})."
            ) from None
        if not isinstance(answer, dict):
            raise MatrixError(f"The homeserver's answer to {path} is not an object.")
        if response.status_code >= 400:
            errcode = str(answer.get("errcode", ""))
            raise MatrixError(
                f"The homeserver refused {path}: {errcode or response.status_code} {answer.get('error', '')}".strip(),
                status=response.status_code,
                errcode=errcode,
            )
        return answer

    @contextmanager
    def signed_in(self, name: str, secret: str) -> Iterator[str]:
        """Sign in as `name` by a JWT, give its access token, and sign out: no device is left behind."""
        body = {
            "type": "org.matrix.login.jwt",
            "token": json_web_token(name, secret),
            "initial_device_display_name": "Hearth",
        }
        token = str(self.request("POST", "/_matrix/client/v3/login", body=body)["access_token"])
        try:
            yield token
        finally:
            self.request("POST", "/_matrix/client/v3/logout", token=token, body={})

    def register_admin(self, name: str, password: str, secret: str) -> str | None:
        """Register a server admin by the shared secret; return its access token, or None if the name is taken.

        https://element-hq.github.io/synapse/latest/admin_api/register_api.html
        """
        path = "/_synapse/admin/v1/register"
        nonce = str(self.request("GET", path)["nonce"])
        signed = b"\0".join([nonce.encode(), name.encode(), password.encode(), b"admin"])
        mac = hmac.new(secret.encode(), signed, hashlib.sha1).hexdigest()
        body = {"nonce": nonce, "username": name, "password": password, "admin": True, "mac": mac}
        try:
            return str(self.request("POST", path, body=body)["access_token"])
        except MatrixError as error:
            if error.errcode == "M_USER_IN_USE":
                return None
            raise

    def put_user(self, name: str, token: str, **fields: Any) -> None:
        """Create or change the account `@name:server_name` as a server admin."""
        user = quote(f"@{name}:{self.server_name}")
        self.request("PUT", f"/_synapse/admin/v2/users/{user}", token=token, body=fields)


def bounded(response: httpx.Response, largest: int = LARGEST, *, seconds: float = LONGEST) -> bytes:
    """Read an answer to its end, or raise `httpx.ReadError` when it has none in sight.

    It is read as it was sent: packed, a few kilobytes can become gigabytes before anybody has counted them.
    """
    body, end = bytearray(), time.monotonic() + seconds
    for chunk in response.iter_raw():
        body += chunk
        if len(body) > largest or time.monotonic() > end:
            raise httpx.ReadError("It answers without end.")
    return bytes(body)


def json_web_token(subject: str, secret: str) -> str:
    """Return a short-lived HS256 token for `subject`."""
    now = int(time.time())
    parts = [{"alg": "HS256", "typ": "JWT"}, {"sub": subject, "iat": now, "nbf": now - 5, "exp": now + TOKEN_SECONDS}]
    signed = ".".join(_base64url(json.dumps(part, separators=(",", ":")).encode()) for part in parts)
    return f"{signed}.{_base64url(hmac.digest(secret.encode(), signed.encode(), 'sha256'))}"


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _verify(url: str) -> bool:
    # Making a TLS context reads the system's certificates: 20 ms that a plain loopback address does not need.
    return url.startswith("https://")
