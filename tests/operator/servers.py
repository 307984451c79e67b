"""MatrixServers on a cluster: made as Hearth makes them, looked at as a person would."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Mapping
from typing import Any

from tests.chart import values
from tests.cluster.api import Api, ApiError, Object
from tests.cluster.furnish import NAME
from tests.operator.homeservers import KEY

ISSUER = {"name": NAME, "kind": "ClusterIssuer", "group": "cert-manager.io"}
LABELS = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")}
STATEFUL = ("apps/v1", "StatefulSet")
DEPLOYMENT = ("apps/v1", "Deployment")
SERVER = ("hearth.host/v1", "MatrixServer")


def small(**changes: Any) -> dict[str, Any]:
    """Return the smallest server whose database is made elsewhere."""
    base = values.monolith(
        database={"cluster": None, "managed": {"host": "db.example"}},
        images={"postgres": None},
        routing={"certificate": {"issuerRef": ISSUER}},
        secret={"signingKeyId": KEY},
    )
    return values.changed(base, changes)


def large(**changes: Any) -> dict[str, Any]:
    """Return a server with workers, a Redis and a database cluster of its own, on the test cluster's classes."""
    disk = {"size": "10Gi", "class": NAME}
    base = small(
        size={"cpu": 4, "memory": "16Gi", "disk": "100Gi"},
        images={"postgres": "images.example/postgresql:17.6"},
        workers={"generic": {"min": 1, "max": 3}, "federationSenders": 1},
        database={"managed": None, "cluster": {"storage": disk}},
        redis={"own": {"persistence": True, "storage": {"size": "2Gi", "class": NAME}}},
    )
    return values.changed(base, changes)


class Server:
    """One MatrixServer in its namespace."""

    def __init__(self, api: Api, namespace: str) -> None:
        self.api = api
        self.namespace = namespace

    def now(self) -> Object:
        """Return it as it is now."""
        found = self.api.get(*SERVER, "synapse", self.namespace)
        assert found is not None, f"there is no MatrixServer in {self.namespace}"
        return found

    def status(self) -> dict[str, Any]:
        return dict(self.now().get("status") or {})

    def condition(self, kind: str) -> dict[str, Any]:
        """Return one condition, or an empty one."""
        found = self.status().get("conditions") or ()
        return next((dict(each) for each in found if each["type"] == kind), {})

    def wait(self, kind: str, status: str, reason: str | None = None, *, seconds: float = 60) -> dict[str, Any]:
        """Wait until a condition of the present generation has this status (and reason)."""

        def reached() -> dict[str, Any] | None:
            server = self.now()
            for each in (server.get("status") or {}).get("conditions") or ():
                if each["type"] == kind and each["observedGeneration"] == server["metadata"]["generation"]:
                    return each if each["status"] == status and reason in {None, each["reason"]} else None
            return None

        try:
            return dict(self.api.wait(f"{kind}={status} {reason or ''}", reached, seconds=seconds))
        except TimeoutError as error:
            raise AssertionError(f"{error}; it is {self.status()}") from None

    def wait_ready(self, *, seconds: float = 60) -> None:
        """Wait until it answers and nothing is under way."""
        self.wait("Ready", "True", seconds=seconds)
        self.wait("Progressing", "False", seconds=seconds)

    def change(self, **changes: Any) -> None:
        """Lay changes over its spec, as Hearth does."""
        self.api.patch(self.now(), {"spec": changes})

    def child(self, kind: tuple[str, str], name: str) -> Object | None:
        return self.api.get(*kind, name, self.namespace)

    def need(self, kind: tuple[str, str], name: str) -> Object:
        found = self.child(kind, name)
        assert found is not None, f"there is no {kind[1]} {name}"
        return found

    def wait_child(self, kind: tuple[str, str], name: str, condition: Any, *, seconds: float = 60) -> Object:
        """Wait until a child is there and `condition(child)` is true."""

        def reached() -> Object | None:
            found = self.child(kind, name)
            return found if found is not None and condition(found) else None

        return dict(self.api.wait(f"{kind[1]} {name} as wanted", reached, seconds=seconds))

    def events(self) -> list[tuple[str, str]]:
        """Return reason and note of everything the operator told about it."""
        found = self.api.list("events.k8s.io/v1", "Event", self.namespace)
        ours = [each for each in found if each.get("reportingController") == "hearth.host/operator"]
        return [(each["reason"], each["note"]) for each in ours]

    def wait_event(self, reason: str, *, seconds: float = 60) -> str:
        """Wait for an Event and return its note."""

        def told() -> str | None:
            return next((note for found, note in self.events() if found == reason), None)

        return str(self.api.wait(f"event {reason}", told, seconds=seconds))


class Servers:
    """Makes servers."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self._made: list[str] = []

    def place(self, *, labels: Mapping[str, str] | None = None) -> str:
        """Make a server's namespace with its Secret, as Hearth does."""
        number = uuid.uuid4()
        name = f"hearth-{number}"
        marks = {
            **LABELS,
            "hearth.host/server": str(number),
            "hearth.host/organisation": values.ORGANISATION,
            "app.kubernetes.io/managed-by": "hearth",
            **(labels or {}),
        }
        meta = {"name": name, "labels": marks}
        secret = {"name": "synapse-secrets", "namespace": name}
        self.api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": meta})
        self._made.append(name)
        self.api.wait("default account", lambda: self.api.get("v1", "ServiceAccount", "default", name))
        self.api.apply({"apiVersion": "v1", "kind": "Secret", "metadata": secret, "stringData": {"note": "a test's"}})
        return name

    def make(self, spec: Mapping[str, Any] | None = None, *, namespace: str = "") -> Server:
        """Make a MatrixServer and return at once."""
        namespace = namespace or self.place()
        self.api.apply(values.matrix_server(spec or small(), namespace))
        return Server(self.api, namespace)

    def remove(self) -> None:
        """Remove all of them, whether an operator runs or not."""
        for name in self._made:
            permit(self.api, *SERVER, "synapse", name)
            permit(self.api, "v1", "Namespace", name)
            # First the server: one that is being deleted gets no finalizer from an operator any more.
            self.api.delete(*SERVER, "synapse", name)
            found = self.api.get(*SERVER, "synapse", name)
            if found is not None:
                with contextlib.suppress(ApiError):  # gone in between
                    self.api.patch(found, {"metadata": {"finalizers": None}})
            self.api.delete("v1", "Namespace", name)
        self._made.clear()


def permit(api: Api, version: str, kind: str, name: str, namespace: str | None = None) -> None:
    """Say of something with a customer's data in it, where it is there, that it may be removed by hand."""
    with contextlib.suppress(ApiError):
        found = api.get(version, kind, name, namespace)
        if found is not None:
            api.patch(found, {"metadata": {"annotations": {"hearth.host/may-be-removed": "by a test"}}})


RECOVERY = float(os.environ.get("RECOVERY", "60"))
"""Seconds after the API answers again. `make operator-faults` holds it to ten; no other run measures."""


def carried_out(server: Server, users: int, *, seconds: float = RECOVERY) -> None:
    """Change a server, and wait until a child has changed with it."""
    before = server.need(STATEFUL, "synapse-main")["metadata"]["generation"]
    server.change(limits={"maxUsers": users})
    server.wait_child(STATEFUL, "synapse-main", lambda each: each["metadata"]["generation"] > before, seconds=seconds)
