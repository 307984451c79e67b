"""A small client of the Kubernetes API for tests: objects in and out as dicts, server-side apply, waiting."""

from __future__ import annotations

import base64
import ssl
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import httpx
import yaml

Object = dict[str, Any]
MANAGER = "hearth-tests"
MERGE = "application/merge-patch+json"


class ApiError(Exception):
    """The API server refused. `status` is the HTTP status, the text its own message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message


class Api:
    """One user's connection to one cluster. Not for several threads."""

    def __init__(self, url: str, verify: ssl.SSLContext, headers: Mapping[str, str] | None = None) -> None:
        self.http = httpx.Client(base_url=url, verify=verify, headers=headers, timeout=60, trust_env=False)
        self._verify = verify
        self._resources: dict[str, dict[str, Object]] = {}

    @classmethod
    def from_kubeconfig(cls, path: Path) -> Self:
        """Return a client of a kubeconfig's current context."""
        return cls(*connection(path))

    def with_token(self, token: str) -> Self:
        """Return a client of the same cluster that has this token and nothing else; close it."""
        authorities = b"".join(self._verify.get_ca_certs(binary_form=True))
        verify = ssl.create_default_context(cadata=authorities)
        return type(self)(str(self.http.base_url), verify, {"Authorization": f"Bearer {token}"})

    def close(self) -> None:
        """Close its connections."""
        self.http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ready(self) -> bool:
        """Say whether the API server answers and all its parts are ready."""
        try:
            return self.http.get("/readyz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def request(self, method: str, path: str, **options: Any) -> Object:
        """Return the answer's object. Raise `ApiError` for any answer that is no success."""
        answer = self.http.request(method, path, **options)
        content = answer.json() if "json" in answer.headers.get("content-type", "") else {"message": answer.text}
        if answer.is_error:
            raise ApiError(answer.status_code, content.get("message", ""))
        return dict(content)

    def path(self, api_version: str, kind: str, namespace: str | None = None, name: str | None = None) -> str:
        """Return the path of a kind, found by discovery, or of one object."""
        resource = self._resource(api_version, kind)
        parts = ["api" if "/" not in api_version else "apis", api_version]
        if resource["namespaced"] and namespace:
            parts += ["namespaces", namespace]
        return "/" + "/".join([*parts, resource["name"], *([name] if name else [])])

    def apply(self, *objects: Object, manager: str = MANAGER, dry_run: bool = False) -> list[Object]:
        """Server-side apply, with the conflicts forced; return what the server made of them."""
        options = {"fieldManager": manager, "force": "true"} | ({"dryRun": "All"} if dry_run else {})
        return [
            self.request(
                "PATCH", self._of(each), params=options, json=each,
                headers={"Content-Type": "application/apply-patch+yaml"},
            )
            for each in objects
        ]  # fmt: skip

    def get(self, api_version: str, kind: str, name: str, namespace: str | None = None) -> Object | None:
        """Return an object, or None if there is none."""
        try:
            return self.request("GET", self.path(api_version, kind, namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def read(self, target: Object) -> Object:
        """Return an object as it is now; `target` names it."""
        return self.request("GET", self._of(target))

    def list(self, api_version: str, kind: str, namespace: str | None = None, **parameters: str) -> list[Object]:
        """Return all objects of a kind; `labelSelector` and the like narrow them."""
        answer = self.request("GET", self.path(api_version, kind, namespace), params=parameters)
        return [{"apiVersion": api_version, "kind": kind, **each} for each in answer["items"] or []]

    def patch(self, target: Object, change: Object, *, sub: str = "") -> Object:
        """Change an object by a JSON merge patch; `sub` is a subresource such as `status`."""
        path = self._of(target) + (f"/{sub}" if sub else "")
        headers = {"Content-Type": MERGE}
        return self.request("PATCH", path, json=change, headers=headers, params={"fieldManager": MANAGER})

    def delete(self, api_version: str, kind: str, name: str, namespace: str | None = None) -> None:
        """Ask for an object's end; one that is gone already is no error."""
        try:
            self.request("DELETE", self.path(api_version, kind, namespace, name))
        except ApiError as error:
            if error.status != 404:
                raise

    def wait(self, what: str, condition: Callable[[], Any], *, seconds: float = 60) -> Any:
        """Return the first true value of `condition()`. `what` is said where it stays false."""
        end = time.monotonic() + seconds
        while not (value := condition()):
            if time.monotonic() > end:
                raise TimeoutError(f"after {seconds:.0f} s there is still no {what}")
            time.sleep(0.05)
        return value

    def token(self, namespace: str, account: str, *, seconds: int = 3600) -> str:
        """Return a token of a service account; the API server grants 600 seconds at least."""
        path = self.path("v1", "ServiceAccount", namespace, account) + "/token"
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": seconds},
        }
        return str(self.request("POST", path, json=body)["status"]["token"])

    def _of(self, each: Object) -> str:
        meta = each["metadata"]
        return self.path(each["apiVersion"], each["kind"], meta.get("namespace"), meta["name"])

    def _resource(self, api_version: str, kind: str) -> Object:
        if kind not in self._resources.get(api_version, {}):
            path = f"/api/{api_version}" if "/" not in api_version else f"/apis/{api_version}"
            found = self.request("GET", path)["resources"]
            self._resources[api_version] = {one["kind"]: one for one in found if "/" not in one["name"]}
        try:
            return self._resources[api_version][kind]
        except KeyError:
            raise ApiError(404, f"the cluster knows no {kind} of {api_version}") from None


def connection(kubeconfig: Path) -> tuple[str, ssl.SSLContext, dict[str, str]]:
    """Return address, TLS context and headers of a kubeconfig: client certificate or token, by file or inline."""
    content = yaml.safe_load(kubeconfig.read_text())
    context = _named(content["contexts"], content["current-context"])["context"]
    cluster = _named(content["clusters"], context["cluster"])["cluster"]
    user = _named(content["users"], context["user"])["user"]
    verify = ssl.create_default_context(cadata=_content(cluster, "certificate-authority", kubeconfig))
    certificate = _content(user, "client-certificate", kubeconfig)
    if certificate:
        with tempfile.NamedTemporaryFile("w", suffix=".pem") as pair:  # ssl reads it from a file only
            pair.write(certificate + (_content(user, "client-key", kubeconfig) or ""))
            pair.flush()
            verify.load_cert_chain(pair.name)
    token = user.get("token") or (Path(user["tokenFile"]).read_text() if "tokenFile" in user else "")
    return cluster["server"], verify, {"Authorization": f"Bearer {token}"} if token else {}


def _named(entries: list[Object], name: str) -> Object:
    return next(each for each in entries if each["name"] == name)


def _content(entry: Object, key: str, kubeconfig: Path) -> str | None:
    """Return what a kubeconfig gives inline or as a path (relative to itself)."""
    if inline := entry.get(f"{key}-data"):
        return base64.b64decode(inline).decode()
    return (kubeconfig.parent / entry[key]).read_text() if key in entry else None
