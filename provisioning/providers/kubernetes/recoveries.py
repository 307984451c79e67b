"""Bringing a server in a cluster back from its backups: into an instance, which is a MatrixServer in its own namespace.

A pod there fetches what was backed up, and a new database cluster is copied from it (decision 26). To switch, server
and instance exchange their homes (`homes`): no data move.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from provisioning.providers.base import Progress, ProviderError, Recovering, Recovery, ServerSpec
from provisioning.providers.kubernetes import homes, objects, recovering
from provisioning.providers.kubernetes.client import MERGE, METADATA, Client, Refused
from provisioning.providers.kubernetes.homes import COMING, NAMESPACES, Exchange, Homes, annotation
from provisioning.providers.kubernetes.objects import INSTANCE_OF, SERVER, STOPPED, namespace_of
from provisioning.providers.kubernetes.place import Place
from provisioning.providers.kubernetes.seen import condition, current
from provisioning.providers.kubernetes.whose import Whose
from provisioning.providers.kubernetes.writing import Writer, paths

Object = dict[str, Any]
LOOK = 0.5
AT_REST = {"Closed", "Suspended"}


class Recoveries:
    """The verbs of `Provider` for instances that hold what was backed up."""

    _client: Client
    _writer: Writer
    _whose: Whose
    _homes: Homes
    _place: Place
    _patience: float

    def recover(self, spec: ServerSpec, recovery: Recovery, *, fence: int, progress: Progress) -> None:
        """Write the instance with what is to be brought back into it; its operator does the rest."""
        recovering.refuse(spec, recovery, self._place)
        at = self._instance(spec, recovery, fence)
        self._may_exchange(at, recovery.source)
        server = self._client.get(paths(at).server)
        secret, revision = recovering.secret(spec, recovery, self._place, at)
        self._writer.write(objects.secret(spec, self._place, at), fence, secret=True)
        self._writer.write(secret, fence, secret=True)
        wanted = objects.matrix_server(spec, self._place, (server or {}).get("spec"), at=at, instance=True)

        def part(there: Object, *, settle: bool) -> Object:
            return recovering.part(recovery, self._place, revision, spec=there["spec"], settle=settle)

        if server is None:
            wanted["metadata"]["annotations"] = {INSTANCE_OF: recovery.source}
            wanted["spec"]["recovery"] = objects.without_nothing(part(wanted, settle=False))
            self._writer.write(wanted, fence)
            written: Object | None = wanted
        else:
            # By what is there when it is written: it may have become whole just now, and is only settled then.
            written = self._writer.change(
                paths(at).server,
                fence,
                lambda there: {"spec": {"recovery": part(there, settle=not recovering.goes_on(there))}},
            )
        if written is None:
            raise _gone()
        settles = written["spec"]["recovery"].get("settle")
        progress("The cluster settles what it has." if settles else "The cluster has what is to be brought back.")

    def recovering(self, instance: str) -> Recovering:
        """Return how far that is, as the operator has written it down."""
        self._whose.cluster()
        there = self._homes.find(instance)
        if there is None:
            return Recovering()
        exchanged = homes.exchanged(there)
        server = self._client.get(paths(_name(there)).server)
        return Recovering(exchanged=exchanged) if server is None else recovering.told(server, exchanged=exchanged)

    def cancel_recovery(self, instance: str, *, fence: int) -> None:
        """Have its pod ended; what it fetched stays."""
        there, at = self._lives(instance, fence)
        if there is None:
            raise _gone()

        def cancelled(server: Object) -> Object | None:
            runs = "recovery" in server["spec"] and recovering.told(server, exchanged=False).state == "running"
            return {"spec": {"recovery": {"cancelled": True}}} if runs else None

        if self._writer.change(paths(at).server, fence, cancelled) is None:
            raise _gone()

    def since(self, server_id: str, *, fence: int | None = None) -> Mapping[str, Any] | None:
        """Say where its database can be asked: who it has accounts of is no business of the API server.

        A server that was told to stop under `fence` is closed first. By the mark alone it is not: one that another
        operation left behind is on a server that people use. The database of a suspended one sleeps.
        """
        self._whose.cluster()
        there = self._homes.find(server_id)
        server = None if there is None else self._client.get(paths(_name(there)).server)
        if (
            there is None
            or server is None
            or "suspended" in server["spec"]
            or "cluster" not in server["spec"]["database"]
        ):
            return None
        self._whose.server(there)
        if fence is not None and annotation(server, STOPPED):
            self._close(_name(there), fence)
        return {"from": {"namespace": _name(there)}}

    def exchange(self, server_id: str, instance: str, *, restored: bool, fence: int, progress: Progress) -> None:
        """Let the server live where its restored data are, and the instance where the server was; or the other way."""
        (ours, _), (other, _) = self._lives(server_id, fence), self._lives(instance, fence)
        if ours is None or other is None:
            raise _gone()
        if annotation(other, INSTANCE_OF) != server_id or annotation(ours, INSTANCE_OF):
            raise ProviderError(
                "That is no instance of this server. Nothing was changed.", code="BadRequest", retry=False
            )
        if homes.exchanged(other) == restored:
            return
        told = self.recovering(instance)
        if told.state in ("running", "failed", "cancelled"):
            raise ProviderError(
                "What was brought back is not whole yet, so the server keeps what it has. Nothing was changed.",
                code="NotWhole",
                retry=told.state == "running",
            )
        here, there = _name(ours), _name(other)
        for name in (here, there):
            self._close(name, fence)
        progress("Nobody writes to either of them any more.")
        exchange = Exchange(server_id, instance, here, there, restored=restored)
        homes.begin(self._writer, exchange, fence)
        self._move(exchange, fence)
        progress("The server lives with the other data now.")

    def _own(self, server_id: str, fence: int) -> Object | None:
        """Return the server's namespace, unless the cluster or the server is not this Hearth's.

        An exchange that somebody began is carried to its end before.
        """
        self._whose.cluster()
        found = self._homes.find(server_id) or self._client.get(f"{NAMESPACES}/{namespace_of(server_id)}")
        self._whose.server(found)
        if (exchange := self._homes.pending(found)) is not None:
            self._move(exchange, fence)
            found = self._homes.find(server_id)
        return found

    def _lives(self, server_id: str, fence: int) -> tuple[Object | None, str]:
        """Return the server's namespace and its name, or what that would be; refuses somebody else's."""
        there = self._own(server_id, fence)
        whose = ((there or {}).get("metadata", {}).get("labels") or {}).get(SERVER, server_id)
        if whose != server_id:
            raise _gone()
        return there, _name(there) if there else namespace_of(server_id)

    def _instance(self, spec: ServerSpec, recovery: Recovery, fence: int) -> str:
        """Return the instance's namespace, made where there was none."""
        there = self._own(spec.server_id, fence)
        if there is None:
            made = objects.namespace(spec)
            made["metadata"]["annotations"] = {INSTANCE_OF: recovery.source}
            self._writer.write(made, fence)
            return namespace_of(spec.server_id)
        if annotation(there, INSTANCE_OF) != recovery.source or there["metadata"].get("deletionTimestamp"):
            raise ProviderError(
                "What is in the cluster under this name is no instance of this server, or is being removed. Nothing "
                "was changed.",
                code="BadRequest",
                retry=bool(there["metadata"].get("deletionTimestamp")),
            )
        return _name(there)

    def _may_exchange(self, namespace: str, server_id: str) -> None:
        """Refuse an account that could not switch afterwards: else that shows after hours, with the server closed."""
        try:
            self._client.request(
                "PATCH",
                paths(namespace).namespace,
                {"metadata": {"labels": {COMING: server_id}}},
                kind=MERGE,
                accept=METADATA,
                query={"dryRun": "All"},
            )
        except Refused as error:
            if error.status not in (403, 422):
                raise
            raise ProviderError(
                "The cluster lets only its account hearth-provider say who lives in which namespace, and Hearth has "
                "another one. So servers here can't be brought back. Nothing was fetched, and the server runs on. "
                "Staff must give the region a kubeconfig of that account.",
                code="NotHere",
                retry=False,
            ) from None

    def _move(self, exchange: Exchange, fence: int) -> None:
        """Carry an exchange to its end. Its last mark goes when nobody outside reaches what the server had."""
        homes.move(self._writer, exchange, fence)
        for name in (exchange.here, exchange.there):
            self._at_rest(name)
        homes.end(self._writer, exchange, fence)
        self._homes.learn(exchange.server, exchange.there)
        self._homes.learn(exchange.instance, exchange.here)

    def _close(self, namespace: str, fence: int) -> None:
        """End all processes of what lives there, but for the database, and wait until they are gone."""

        def closed(server: Object) -> Object | None:
            gone = {"recovery": None} if "recovery" in server["spec"] else {}
            if server["spec"].get("closed") and not gone:
                return None
            return {"spec": {"closed": True, **gone}}

        if self._writer.change(paths(namespace).server, fence, closed) is None:
            raise _gone()
        self._at_rest(namespace)

    def _at_rest(self, namespace: str) -> None:
        end = time.monotonic() + self._patience
        while True:
            server = self._client.get(paths(namespace).server)
            if server is None:
                raise _gone()
            ready, progressing = condition(server, "Ready"), condition(server, "Progressing")
            if current(server) and ready.get("reason") in AT_REST and progressing.get("status") == "False":
                return
            if time.monotonic() > end:
                raise ProviderError(
                    f"The server's processes did not end within {self._patience / 60:.0f} minutes. Its data is "
                    f"untouched. The cluster says: {ready.get('message') or 'nothing; its operator may not run'}.",
                    code="NotProgressing",
                )
            time.sleep(LOOK)


def _name(namespace: Object) -> str:
    return str(namespace["metadata"]["name"])


def _gone() -> ProviderError:
    return ProviderError("The cluster does not know this server.", code="NoSuchServer", retry=False)
