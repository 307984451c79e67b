"""The one module that speaks with boto3: a bucket's address and credentials, and what its errors mean to a person."""

from __future__ import annotations

import ipaddress
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore import UNSIGNED, exceptions, handlers
from botocore.config import Config
from urllib3.exceptions import HTTPError

from backups.engine.stores.base import NoSuchObject, StoreError
from backups.engine.stores.names import misused

# At DEBUG it writes whole requests down, signatures and session tokens too.
logging.getLogger("botocore").setLevel(logging.INFO)

_CODES = {
    "NoSuchBucket": "StoreMissing",
    "AccessDenied": "StoreDenied",
    "AllAccessDisabled": "StoreDenied",
    "AccountProblem": "StoreDenied",
    "ExpiredToken": "StoreDenied",
    "InvalidAccessKeyId": "StoreDenied",
    "InvalidToken": "StoreDenied",
    "InvalidTokenId": "StoreDenied",
    "XAdminUserNotFound": "StoreDenied",
    "RequestTimeTooSkewed": "StoreDenied",
    "SignatureDoesNotMatch": "StoreDenied",
    "401": "StoreDenied",
    "403": "StoreDenied",
    "InsufficientStorage": "StoreFull",
    "QuotaExceeded": "StoreFull",
    "StorageFull": "StoreFull",
    "XMinioAdminBucketQuotaExceeded": "StoreFull",
    "XMinioStorageFull": "StoreFull",
    "507": "StoreFull",
    "BadDigest": "StoreDamaged",
    "InvalidDigest": "StoreDamaged",
    "XAmzContentChecksumMismatch": "StoreDamaged",
    "XAmzContentSHA256Mismatch": "StoreDamaged",
}
_SKEWED = "this machine's clock and the store's differ by many minutes. Correct the clock"
_REASONS = {
    "StoreMissing": "the bucket is not there. Make it, or correct its name",
    "StoreDenied": "the store refuses these credentials ({code}). Correct them, or what they are allowed to do",
    "StoreFull": "it is full, or its quota is used up. Give it more space",
    "StoreDamaged": "the bytes were changed on their way there. Look at the network between",
    "StoreMisused": "the store does not do this, or not in this way ({code}). Look at its address, region and version",
    "StoreAway": "it has trouble of its own ({code}). Look at its state if this goes on",
}
AUTHORITIES = "SSL_CERT_FILE"
"""The variable by which OpenSSL's own programs are told whom to trust; empty: the public authorities."""
_RETRIED = {"StoreAway", "StoreDamaged"}
_PASSING = {0, 408, 409, 429}
"""Answers that time mends; so do those from 500 on, but for 501."""
_NAMED = {"NoSuchKey", "NoSuchUpload", "NoSuchVersion", "404", "NotFound"}


_session: Any = boto3.session.Session()
"""One for all: it keeps the descriptions of S3's calls, which take half a second to read."""
_making = threading.Lock()


class PreconditionFailed(StoreError):
    """The store did not do it because something lies under that name, or is no longer what it was."""


class NotSupported(StoreError):
    """The server does not know such a call."""


class NothingSet(StoreError):
    """The bucket has no configuration of that kind."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """An access key. Never shown."""

    key_id: str = field(repr=False)
    secret: str = field(repr=False)
    token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Bucket:
    """Where a bucket is, and as who to go there."""

    bucket: str
    endpoint: str = ""
    """`https://host:port`; plain HTTP on this machine only. Empty: AWS."""
    region: str = "us-east-1"
    prefix: str = ""
    """What all names begin with, without a slash at its ends."""
    credentials: Credentials | None = None
    """None: those of the environment, such as a machine's or a pod's role."""
    path_style: bool | None = None
    """Whether the bucket's name stands in the path and not in the host. None: in the path unless it is AWS."""
    trust: Path | None = None
    """A PEM file of who may vouch for the server. None: the system's."""
    seconds: float = 60.0
    """How long the server may be silent."""
    tries: int = 5
    """How often a call is sent until it counts as failed."""


class Connection:
    """One bucket's calls, by several threads. Each raises `StoreError`."""

    def __init__(self, where: Bucket, name: str, *, connections: int = 32, anonymous: bool = False) -> None:
        _check_endpoint(where.endpoint)
        if where.trust and not where.trust.is_file():
            raise misused(f"The file {where.trust} of who may vouch for {name} is not there. Correct its path.")
        if where.credentials and not (where.credentials.key_id and where.credentials.secret):
            # Half of a key would silently become the environment's.
            raise misused(f"The access key of the store {name} is not whole. Give its id and its secret.")
        self.where = where
        self.name = name
        path_style = where.path_style if where.path_style is not None else bool(where.endpoint)
        config = Config(
            signature_version=UNSIGNED if anonymous else "s3v4",
            connect_timeout=min(where.seconds, 20.0),
            read_timeout=where.seconds,
            retries={"mode": "standard", "total_max_attempts": where.tries},
            max_pool_connections=connections,
            tcp_keepalive=True,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            # The signature covers a checksum of the body; a second one would only cost time.
            s3={"addressing_style": "path" if path_style else "virtual", "payload_signing_enabled": False},
        )
        known = None if anonymous else where.credentials
        self._client: Any = _client(
            region_name=where.region,
            endpoint_url=where.endpoint or None,
            verify=str(where.trust) if where.trust else os.environ.get(AUTHORITIES) or True,
            config=config,
            aws_access_key_id=known.key_id if known else None,
            aws_secret_access_key=known.secret if known else None,
            aws_session_token=(known.token or None) if known else None,
        )
        # Waiting for `100 Continue` costs a round trip for each part, and some servers never send it.
        self._client.meta.events.unregister("before-call.s3", handlers.add_expect_header)

    def __repr__(self) -> str:
        return f"Connection({self.name!r}, {self.where.bucket!r})"

    def close(self) -> None:
        """Close idle connections."""
        self._client.close()

    def call(self, operation: str, what: str = "asked", *, name: str = "", **parameters: Any) -> dict[str, Any]:
        """Call one operation of S3 on the bucket and return its answer.

        `name` is the object it is about: a missing one is `NoSuchObject`. `what` completes "could not be …".
        """
        if name:
            parameters["Key"] = self.key(name)
        try:
            answer: dict[str, Any] = getattr(self._client, operation)(Bucket=self.where.bucket, **parameters)
        except exceptions.ClientError as error:
            raise self._answered(error.response, what, name) from None
        except (exceptions.BotoCoreError, HTTPError, OSError) as error:
            # urllib3's own come from answers that break off: botocore reads those that are no object by itself.
            raise self._away(error, what) from None
        return answer

    def head(self, name: str) -> dict[str, Any]:
        """Return what is known of an object. An answer to a HEAD has no text: what is missing, a read of it tells."""
        try:
            return self.call("head_object", "read", name=name)
        except NoSuchObject:
            try:
                self.call("get_object", "read", name=name, Range="bytes=0-0")["Body"].close()
            except NoSuchObject:
                raise
            except StoreError as error:
                if error.code != "BeyondEnd":
                    raise
        return self.call("head_object", "read", name=name)  # it came at this moment

    def read(self, answer: Mapping[str, Any], size: int) -> bytes:
        """Return up to `size` bytes of an answer's body; fewer only at its end. A cut one is `StoreAway`."""
        try:
            data: bytes = answer["Body"].read(size)
        except (exceptions.BotoCoreError, HTTPError, OSError) as error:
            raise self._away(error, "read") from None
        return data

    def key(self, name: str) -> str:
        return f"{self.where.prefix}/{name}" if self.where.prefix else name

    def named(self, key: str) -> str:
        """Return the object's name that belongs to a key."""
        return key.removeprefix(f"{self.where.prefix}/") if self.where.prefix else key

    def fault(self, code: str, what: str, answered: str = "", reason: str = "") -> StoreError:
        """Return the error for a named reason, in a person's words."""
        reason = reason or _REASONS[code].format(code=answered or "no answer")
        message = f"The store {self.name} (bucket {self.where.bucket}) could not be {what}: {reason}."
        return StoreError(message, code=code, retry=code in _RETRIED)

    def _answered(self, response: Mapping[str, Any], what: str, name: str) -> Exception:
        """Return the error that an answer means. The server's own text is left out: it may name an access key."""
        code = str(response.get("Error", {}).get("Code", ""))
        told = response.get("ResponseMetadata", {})
        status = int(told.get("HTTPStatusCode", 0))
        if name and code in _NAMED:
            return NoSuchObject(name)
        found = self._failed(code, status, what)
        kinds = {412: PreconditionFailed, 501: NotSupported, 405: NotSupported}
        kind = kinds.get(status) or (NothingSet if status == 404 and not name and code not in _CODES else None)
        return kind(str(found), code="StoreMisused", retry=False) if kind else found

    def _failed(self, code: str, status: int, what: str) -> StoreError:
        if code == "InvalidRange" or status == 416:
            return StoreError("Nothing lies there.", code="BeyondEnd", retry=False)
        if code == "BucketAlreadyExists":
            # Simple servers take whatever they don't know of a bucket for its making.
            return self.fault("StoreMisused", what, reason="the bucket's name is taken, or it knows no such rule")
        kind = _CODES.get(code) or _CODES.get(str(status))
        if kind is None:
            passing = status in _PASSING or (status >= 500 and status != 501)
            kind = "StoreAway" if passing else "StoreMisused"
        return self.fault(kind, what, code or str(status), _SKEWED if code == "RequestTimeTooSkewed" else "")

    def _away(self, error: Exception, what: str) -> StoreError:
        if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
            return self.fault("StoreDenied", what, reason="there are no credentials for it. Give it an access key")
        if isinstance(error, exceptions.SSLError):
            reason = "its certificate is not vouched for, or not its own. Correct it, or name who may vouch for it"
            return self.fault("StoreDenied", what, reason=reason)
        if isinstance(error, exceptions.ParamValidationError | exceptions.UnknownEndpointError):
            return self.fault("StoreMisused", what, type(error).__name__)
        reason = f"it does not answer ({type(error).__name__}). Look at the network, and whether it runs"
        return self.fault("StoreAway", what, reason=reason)


class Body:
    """Bytes to send, in blocks: a server may be silent for the time limit at each of them, and not in all together."""

    BLOCK = 256 * 1024

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._data = memoryview(data)
        self._at = 0
        self._stopped = False

    def __len__(self) -> int:
        return len(self._data)

    def __iter__(self) -> Iterator[memoryview]:
        while block := self.read():
            yield block

    def read(self, _size: int | None = None) -> memoryview:
        """Return the next block, whatever size is asked for: HTTP clients ask for far too little."""
        if self._stopped:
            raise Stopped
        block = self._data[self._at : self._at + self.BLOCK]
        self._at += len(block)
        return block

    def seek(self, place: int, whence: int = 0) -> int:
        self._at = place + (0, self._at, len(self._data))[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def stop(self) -> None:
        """Let whoever sends this end at its next block."""
        self._stopped = True


class Stopped(BaseException):
    """Nobody wants that body sent any more. No `Exception`, because those are tried again."""


def _client(**options: Any) -> Any:
    try:
        with _making:  # a session makes one client at a time
            return _session.client("s3", **options)
    except (exceptions.BotoCoreError, ValueError) as error:
        kind = type(error).__name__
        raise misused(f"The store's address or its credentials make no sense ({kind}). Correct them.") from None


def _check_endpoint(endpoint: str) -> None:
    if not endpoint:
        return
    address = urlsplit(endpoint)
    if address.scheme == "https" and address.hostname:
        return
    if address.scheme == "http" and _is_loopback(address.hostname or ""):
        return
    raise misused("The address of a store must be `https://host:port`; plain http goes to this machine only.")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
