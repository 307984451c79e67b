"""The few requests that Hearth makes of a cluster, by Kubernetes' own client; what goes wrong, in words for a person.

Requests are tried again for a while where that can help: the API server is away, busy (429), or restarting.
"""

from __future__ import annotations

import base64
import json
import random
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

import urllib3
from kubernetes import client as library
from kubernetes.config import ConfigException
from kubernetes.config.incluster_config import SERVICE_CERT_FILENAME, SERVICE_TOKEN_FILENAME, InClusterConfigLoader

from provisioning.providers.base import ProviderError
from provisioning.providers.kubernetes.kubeconfig import KubeconfigRefused, read
from security.transport.tls import load_pair

Object = dict[str, Any]
MANAGER = "hearth"
APPLY, MERGE = "application/apply-patch+yaml", "application/merge-patch+json"
METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
TIMEOUT = (5.0, 20.0)
PATIENCE = 30.0
"""Seconds that one request is tried again for."""
PAGE = 500
SAFE = "Running servers and their data are not touched."
PASSING = {429, 500, 502, 503, 504}
UNCOUNTED = "status unknown for quota"
"""How the API server refuses while a quota that was made a moment ago has not been counted yet."""


class Refused(ProviderError):
    """The API server answered with an error. `status` is the HTTP status, `reason` Kubernetes' own word for it."""

    def __init__(self, message: str, *, code: str, retry: bool, status: int, reason: str = "") -> None:
        super().__init__(message, code=code, retry=retry)
        self.status, self.reason = status, reason


class Client:
    """One cluster, as one user. May be used from many threads."""

    def __init__(
        self, api: library.ApiClient, *, patience: float | None = None, renew: Callable[[], None] | None = None
    ) -> None:
        """`renew` lets the credentials be read again before the next request."""
        self._api: Any = api  # half of the library has no types
        self._renew = renew
        self._patience = PATIENCE if patience is None else patience

    def close(self) -> None:
        """Close its connections."""
        self._api.close()

    def get(self, path: str, *, patience: float | None = None) -> Object | None:
        """Return an object, or None if there is none."""
        try:
            return self.request("GET", path, patience=patience)
        except Refused as error:
            if error.status == 404:
                return None
            raise

    def metadata(self, path: str) -> Object | None:
        """Return an object's metadata without a right to read it: by a change of nothing, which is not stored.

        Hearth writes Secrets that it may not read.
        """
        try:
            return self.request("PATCH", path, {"metadata": {}}, kind=MERGE, accept=METADATA, query={"dryRun": "All"})
        except Refused as error:
            if error.status == 404:
                return None
            raise

    def listed(self, path: str, *, patience: float | None = None, **query: str) -> Iterator[Object]:
        """Give all objects of a kind, page by page. A list that grew too old meanwhile (410) begins anew."""
        yield from self.whole(path, patience=patience, **query)[0]

    def whole(self, path: str, *, patience: float | None = None, **query: str) -> tuple[list[Object], str]:
        """Return all objects of a kind, with the resource version from which their changes can be watched."""
        for _ in range(3):
            try:
                return self._pages(path, query, patience)
            except Refused as error:
                if error.status != 410:
                    raise
        raise Refused(f"The cluster's lists end too early. {SAFE}", code="RegionBusy", retry=True, status=410)

    def _pages(self, path: str, query: Mapping[str, str], patience: float | None) -> tuple[list[Object], str]:
        found: list[Object] = []
        more = ""
        while True:
            words = {**query, "limit": str(PAGE), **({"continue": more} if more else {})}
            page = self.request("GET", path, query=words, patience=patience)
            found += page.get("items") or []
            more = page["metadata"].get("continue") or ""
            if not more:
                return found, str(page["metadata"].get("resourceVersion") or "")

    def events(self, path: str, query: Mapping[str, str], *, patience: float | None = None) -> list[Object]:
        """Return what a watch tells until it ends by itself, as `timeoutSeconds` of the query says."""
        lines = self._asked("GET", path, None, {"Accept": "application/json"}, query, patience=patience).splitlines()
        return [_understood(line) for line in lines if line]

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        kind: str = "application/json",
        accept: str = "application/json",
        query: Mapping[str, str] | None = None,
        patience: float | None = None,
    ) -> Object:
        """Return the answer, or raise `ProviderError`. Nothing of the body is ever in the error."""
        headers = {"Accept": accept} | ({"Content-Type": kind} if body is not None else {})
        return _understood(self._asked(method, path, body, headers, query or {}, patience=patience))

    def _asked(
        self,
        method: str,
        path: str,
        body: Any,
        headers: Mapping[str, str],
        query: Mapping[str, str],
        *,
        patience: float | None,
    ) -> str:
        end, wait = time.monotonic() + (self._patience if patience is None else patience), 0.2
        renewed = False
        while True:
            try:
                status, answered, text = self._once(method, path, body, headers, query)
            except (library.ApiException, urllib3.exceptions.HTTPError, OSError, ConfigException) as error:
                if time.monotonic() + wait > end:
                    raise _unreachable(error) from None
            else:
                if status < 400:
                    return text
                if status == 401 and self._renew is not None and not renewed:
                    renewed = True  # once: the one in the file may be newer than the one that was just sent
                    self._renew()
                    continue
                said = _message(text)
                if not _passes(status, said) or time.monotonic() + wait > end:
                    raise explained(status, said)
                wait = max(wait, _told_to_wait(answered))
            time.sleep(wait * random.uniform(0.8, 1.2))  # noqa: S311 (spreads load)
            wait = min(wait * 2, 4.0)

    def _once(
        self, method: str, path: str, body: Any, headers: Mapping[str, str], query: Mapping[str, str]
    ) -> tuple[int, Mapping[str, str], str]:
        made = self._api.param_serialize(
            method,
            path,
            query_params=list(query.items()),
            header_params=dict(headers),
            body=body,
            auth_settings=["BearerToken"],
        )
        answer = self._api.call_api(*made, _request_timeout=TIMEOUT)
        return answer.status, answer.headers, answer.read().decode(errors="replace")


def connect(kubeconfig: str | None) -> Client:
    """Return a client by a kubeconfig, or by the account of the pod that this runs in. Asks nothing yet."""
    configuration = library.Configuration()
    configuration.retries = False  # `request` alone knows what may be sent twice
    try:
        return _of_the_pod(configuration) if kubeconfig is None else _by(read(kubeconfig), configuration)
    except (ConfigException, ValueError, ssl.SSLError) as error:
        told = str(error) if kubeconfig is None or isinstance(error, KubeconfigRefused) else "it can't be understood"
        raise ProviderError(
            f"Hearth has no way into this region's cluster: {told.rstrip('.')}. {SAFE} Staff can give the region a "
            "kubeconfig.",
            code="RegionCredentials",
            retry=False,
        ) from None


def _by(found: Mapping[str, Any], configuration: Any) -> Client:
    """Return a client by a kubeconfig. The library's own loader would leave a client's key in a file under /tmp."""
    cluster, user = found["clusters"][0]["cluster"], found["users"][0]["user"]
    configuration.host = str(cluster["server"]).rstrip("/")
    configuration.tls_server_name = cluster.get("tls-server-name")
    if token := user.get("token"):
        configuration.api_key["BearerToken"] = f"Bearer {token}"
    context = ssl.create_default_context(cadata=_pem(cluster, "certificate-authority-data"))
    if user.get("client-certificate-data") and user.get("client-key-data"):
        load_pair(context, key=_pem(user, "client-key-data"), chain=_pem(user, "client-certificate-data"))
    api: Any = library.ApiClient(configuration)
    name = {"server_hostname": configuration.tls_server_name} if configuration.tls_server_name else {}
    size = configuration.connection_pool_maxsize
    api.rest_client.pool_manager = urllib3.PoolManager(ssl_context=context, retries=False, maxsize=size, **name)
    return Client(api)


def _pem(section: Mapping[str, Any], name: str) -> str:
    return base64.b64decode(str(section[name]), validate=True).decode()


def _of_the_pod(configuration: Any) -> Client:
    """Return a client by the pod's own account. The kubelet writes a new token long before the old one ends."""
    # Nothing of this class has types. It reads the token's file again each minute.
    account: Any = InClusterConfigLoader(SERVICE_TOKEN_FILENAME, SERVICE_CERT_FILENAME)  # type: ignore[no-untyped-call]
    account.load_and_set(configuration)

    def renew() -> None:
        account.token_expires_at = datetime.min  # noqa: DTZ901 (the library compares it with a local time)

    return Client(library.ApiClient(configuration), renew=renew)


def _passes(status: int, said: Mapping[str, Any]) -> bool:
    """Tell whether the same request may be answered otherwise in a moment."""
    return status in PASSING or (status == 403 and UNCOUNTED in str(said.get("message")))


def explained(status: int, said: Mapping[str, Any]) -> Refused:
    """Return what an answer of the API server means."""
    text, reason = str(said.get("message") or "")[:600], str(said.get("reason") or "")
    if status == 403 and (lacks := _LACKS.search(text)):
        text = f"Hearth may not {lacks[1]} {lacks[2]}."  # people need neither the account's name nor the path
    for test, code, retry, sentence in _MEANINGS:
        if test(status, text):
            message = f"{sentence} {text}".strip() if code not in _SILENT else sentence
            return Refused(message, code=code, retry=retry, status=status, reason=reason)
    return Refused(
        f"The cluster answered with an error ({status}). {SAFE} {text}",
        code="RegionError",
        retry=True,
        status=status,
        reason=reason,
    )


_LACKS = re.compile(r'cannot (\w+) resource "([^"]+)"')
_SILENT = {"RegionCredentials", "RegionBusy"}
_MEANINGS: tuple[tuple[Callable[[int, str], bool], str, bool, str], ...] = (
    (
        lambda status, _: status == 401,
        "RegionCredentials",
        False,
        f"The cluster does not accept Hearth's credentials for it. {SAFE} Staff must renew them; then try again.",
    ),
    (
        lambda status, text: status == 403 and "exceeded quota" in text,
        "QuotaExceeded",
        False,
        f"The cluster has a quota that leaves no room for this. {SAFE} Ask support. It says:",
    ),
    (
        lambda status, text: status == 403 and UNCOUNTED in text,
        "RegionBusy",
        True,
        f"The cluster is still counting what a new quota allows. {SAFE}",
    ),
    (
        lambda status, text: status == 403 and "being terminated" in text,
        "NamespaceTerminating",
        True,
        "What an earlier server left is still being removed there. Nothing was made yet. It says:",
    ),
    (
        lambda status, _: status == 403,
        "RegionForbidden",
        False,
        f"The cluster does not permit Hearth to do this. {SAFE} Staff can check the region for its rights. It says:",
    ),
    (
        lambda status, _: status == 404,
        "RegionKindMissing",
        False,
        f"The cluster lacks what this needs. {SAFE} It says:",
    ),
    (lambda status, _: status == 409, "Conflict", True, "Somebody else wrote in the same moment. It is tried again."),
    (lambda status, _: status in (400, 422), "SpecRefused", False, f"The cluster refused the change. {SAFE} It says:"),
    (lambda status, _: status == 429, "RegionBusy", True, f"The cluster is too busy to answer. {SAFE}"),
)


def _message(text: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _understood(text: str) -> Object:
    found = _message(text)
    if not found:  # an API server always says something: this is a page of whatever stands before it
        raise ProviderError(
            f"What answers at the address of this region's API server is something else. {SAFE} Hearth keeps trying.",
            code="RegionUnreachable",
        )
    return dict(found)


def _told_to_wait(headers: Mapping[str, str]) -> float:
    after = str(headers.get("Retry-After", ""))
    return min(float(after), 5.0) if after.isdigit() else 0.0


def _unreachable(error: Exception) -> ProviderError:
    if isinstance(error, ConfigException):
        return ProviderError(
            f"Hearth can't read the account of its own pod ({error}). {SAFE} Hearth keeps trying.",
            code="RegionCredentials",
        )
    reason = getattr(error, "reason", None)
    # What it could not even send the library tells by an exception of its own, with the kind in its text.
    kind = (
        str(reason).partition("\n")[0][:60]
        if isinstance(error, library.ApiException)
        else type(reason or error).__name__
    )
    what = "can't be trusted: its certificate is not the one that Hearth knows" if "SSL" in kind else "does not answer"
    return ProviderError(
        f"The API server of this region's cluster {what} ({kind}). {SAFE} Hearth keeps trying.",
        code="RegionUnreachable",
    )
