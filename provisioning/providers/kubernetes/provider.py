"""The Kubernetes provider as the engine sees it. Hearth writes three objects of a server; the operator does the rest.

Every write is fenced: an object carries the fence of its last writer, is read before it is written, and is written only
as it was read (its resource version). So a worker that lost its lease changes nothing, however late it wakes up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from provisioning.providers.base import Observation, Progress, ProviderError, ServerSpec
from provisioning.providers.kubernetes import objects
from provisioning.providers.kubernetes.client import Client
from provisioning.providers.kubernetes.databases import Databases
from provisioning.providers.kubernetes.following import Following
from provisioning.providers.kubernetes.homes import Homes, annotation
from provisioning.providers.kubernetes.objects import INSTANCE_OF, SERVER, STOPPED
from provisioning.providers.kubernetes.place import Place
from provisioning.providers.kubernetes.recoveries import Recoveries
from provisioning.providers.kubernetes.seen import condition, current, observation, used_by
from provisioning.providers.kubernetes.usage import Meter, Sizes, Use, with_database
from provisioning.providers.kubernetes.whose import INSTALLATION, Whose
from provisioning.providers.kubernetes.writing import Writer, paths

Object = dict[str, Any]
LOOK = 0.5
GLANCE = 5.0
"""Seconds in which a look at all servers is tried again: other regions wait for it, and the next look is near."""
SERVERS = "/apis/hearth.host/v1/matrixservers"


class KubernetesProvider(Recoveries):
    """One region. `patience`: seconds in which a server must come up, in which a named trouble may pass by itself, and
    in which a removal must end. `learn` keeps which cluster it is and returns what is known of it then."""

    def __init__(
        self,
        client: Client,
        place: Place,
        *,
        patience: float = 900.0,
        trouble: float = 120.0,
        removal: float = 300.0,
        learn: Callable[[str], str] = str,
    ) -> None:
        self._client, self._place = client, place
        self._writer = Writer(client, {INSTALLATION: place.installation} if place.installation else {})
        self._whose = Whose(client, place.installation, place.cluster_uid, learn)
        self._databases = Databases(place.postgres) if place.postgres else None
        self._homes = Homes(client)
        self._servers = Following(client, SERVERS, SERVER, self._seen)
        self._meter = Meter(client, place.prometheus)
        self._sizes = Sizes(self._databases) if self._databases else None
        self._patience, self._trouble, self._removal = patience, trouble, removal

    def prepare(self, version: str, progress: Progress) -> None:
        """See that the region can run this version; the cluster fetches the image by itself."""
        objects.release_of(version)
        progress(f"The cluster fetches the image of Synapse {version} when it starts it.")

    def ensure_storage(self, spec: ServerSpec, *, fence: int, progress: Progress) -> None:
        """Make the server's namespace. Its volumes and its database come with the MatrixServer."""
        there = self._own(spec.server_id, fence)
        if there is not None and not _ours(there, spec.server_id):
            raise ProviderError(
                f"The cluster has a namespace {_name(there)} that Hearth did not make. Nothing in it "
                "was touched, and nothing was made. Ask support.",
                code="NamespaceTaken",
                retry=False,
            )
        if there is not None and there["metadata"].get("deletionTimestamp"):
            raise ProviderError(
                "What was here before is still being removed from the cluster. Nothing was made yet.",
                code="NamespaceTerminating",
            )
        self._writer.write(objects.namespace(spec, _name(there)), fence)
        progress("The server has a namespace of its own.")
        if self._databases:
            name = objects.database_name(spec.server_id)
            self._databases.ensure(name, spec.secrets["database"], fence)
            progress("It has a database of its own in the region's PostgreSQL.")

    def configure(self, spec: ServerSpec, *, fence: int, progress: Progress) -> None:
        """Write the Secret, then the MatrixServer that names its revision."""
        there, at = self._lives(spec.server_id, fence)
        places, instance = paths(at), annotation(there, INSTANCE_OF)
        if not self._whose.known(there):
            self._writer.change(places.namespace, fence, lambda _: self._whose.mark())
        before = self._client.get(places.server)
        if before is not None:
            self._refuse_another_key(spec, before)
            if before["metadata"].get("deletionTimestamp"):
                raise ProviderError("The server is being removed from its cluster.", code="NamespaceTerminating")
        self._writer.write(objects.secret(spec, self._place, at), fence, secret=True)
        if (backup := objects.backup_secret(spec, self._place, at)) is not None:
            self._writer.write(backup, fence, secret=True)
        wanted = objects.matrix_server(spec, self._place, (before or {}).get("spec"), at=at, instance=bool(instance))
        if instance:
            wanted["metadata"]["annotations"] = {INSTANCE_OF: instance}
        self._writer.write(wanted, fence)
        if before is not None:
            # Another release starts every process again by itself; the mark would start them all twice.
            other = before["spec"]["synapse"]["version"] != spec.version
            self._writer.change(
                places.server, fence, lambda server: _cleared(server, unmark=other, routed=not instance)
            )
        progress("The cluster has the server's configuration.")

    def start(self, spec: ServerSpec, *, fence: int, progress: Progress) -> str:
        """Wait until the operator has brought about what is configured; return the address that clients use."""
        _there, at = self._lives(spec.server_id, fence)
        self._writer.change(paths(at).server, fence, _restarted)
        self._settled(spec, paths(at).server, progress)
        return f"https://{objects.public_host(spec, self._place)}"

    def stop(self, server_id: str, *, fence: int, progress: Progress) -> None:
        """Note that every process must be started again. They are replaced one by one, so none is stopped before.

        An instance, which nobody uses, is stopped.
        """
        there, at = self._lives(server_id, fence)
        closed = {"spec": {"closed": True}} if annotation(there, INSTANCE_OF) else {}

        def stopped(server: Object) -> Object | None:
            if annotation(server, STOPPED) == str(fence) and not closed:
                return None
            return {"metadata": {"annotations": {STOPPED: str(fence)}}, **closed}

        if self._writer.change(paths(at).server, fence, stopped) is None:
            raise ProviderError("The cluster does not know this server.", code="NoSuchServer", retry=False)
        progress("Its processes are replaced one after the other, so nothing needs to be stopped before.")

    def remove(self, server_id: str, *, fence: int, progress: Progress) -> None:
        """Remove the MatrixServer, so that its operator ends it in order, then its namespace and its database."""
        there = self._own(server_id, fence)
        if there is not None and not _ours(there, server_id):
            progress("The namespace of that name is not Hearth's; it is left alone.")
        elif there is not None:
            self._remove_from_cluster(_name(there), fence, progress)
        # Last, because Synapse writes in it until its pods are gone.
        if self._databases and self._databases.remove(objects.database_name(server_id), fence):
            progress("Its database is removed from the region's PostgreSQL.")

    def _remove_from_cluster(self, namespace: str, fence: int, progress: Progress) -> None:
        places = paths(namespace)
        if self._writer.delete(places.server, fence):
            progress("The cluster removes the server.")
        self._gone(places.server, places.namespace)
        if self._writer.delete(places.namespace, fence):
            progress("The cluster removes what is left: volumes, secrets, and the namespace.")
        self._gone(places.namespace, places.namespace)

    def certificate_request(self, server_id: str, *, fence: int) -> bytes:  # noqa: ARG002 (cert-manager's work here)
        """Return nothing: in a cluster cert-manager gives agents their certificates."""
        return b""

    def install_certificate(self, server_id: str, *, chain: str, trust: str, address: str, fence: int) -> None:
        """Do nothing, as cert-manager gives agents their certificates."""

    def observe(self) -> Mapping[str, Observation]:
        """Return every server of this cluster that Hearth made."""
        self._whose.cluster(patience=GLANCE)
        used, sizes = self._meter.read(), self._sizes.read() if self._sizes else {}
        found = {}
        for namespace, each in self._servers.now(patience=GLANCE):
            self._homes.learn(each.server_id, namespace)
            use = used.get(namespace, Use())
            size = sizes.get(objects.database_name(each.server_id))
            found[each.server_id] = used_by(each, with_database(use, size, only=self._place.bucket is not None))
        return found

    def _seen(self, server: Object) -> tuple[str, Observation]:
        seen = observation(server, Use(), other=self._whose.other(server))
        return str(server["metadata"]["namespace"]), seen

    def route(self, server_id: str, url: str) -> str:  # noqa: ARG002 (the other provider's is the clients')
        """Return where Hearth reaches Synapse: inside, because the admin API has no way from outside."""
        return self._place.route.replace("{namespace}", self._homes.soon(server_id))

    def _settled(self, spec: ServerSpec, path: str, progress: Progress) -> None:
        end, told = time.monotonic() + self._patience, ""
        since: tuple[str, float] | None = None
        while True:
            server = self._client.get(path)
            if server is None:
                raise ProviderError(
                    "The server is gone from its cluster. Its steps are done again.", code="NoSuchServer"
                )
            trouble = condition(server, "Degraded")
            if current(server):
                if _reached(server, suspended=spec.suspended):
                    return
                if (said := _doing(server)) != told:
                    progress(said)
                    told = said
            now = time.monotonic()
            name = str(trouble["reason"]) if trouble.get("status") == "True" and current(server) else ""
            if since is None or since[0] != name:
                since = name, now  # another trouble has its own time to pass
            if name and now - since[1] > self._trouble:
                raise _failed(trouble)
            if now > end:
                raise ProviderError(
                    f"The server did not come up within {self._patience / 60:.0f} minutes. Its data is untouched. "
                    f"The cluster says: {told or 'nothing; its operator may not run'}.",
                    code="NotProgressing",
                )
            time.sleep(LOOK)

    def _refuse_another_key(self, spec: ServerSpec, before: Object) -> None:
        """A server signs with one key for ever: other servers would refuse it with another."""
        has, ours = before["spec"]["secret"].get("signingKeyId"), objects.signing_key_id(spec)
        if has and has != ours:
            raise ProviderError(
                f"The cluster's server signs with {has}, and Hearth keeps {ours} for it. Nothing was changed, because "
                "a new key would make other servers refuse it. Ask support.",
                code="SigningKeyMismatch",
                retry=False,
            )

    def _gone(self, path: str, namespace: str) -> None:
        end = time.monotonic() + self._removal
        while self._client.get(path) is not None:
            if time.monotonic() > end:
                raise _stuck(self._client.get(path) or {}, self._client.get(namespace) or {})
            time.sleep(LOOK)


def _name(namespace: Object | None) -> str:
    return str(namespace["metadata"]["name"]) if namespace else ""


def _ours(namespace: Object, server_id: str) -> bool:
    labels = namespace["metadata"].get("labels") or {}
    return bool(labels.get(SERVER) == server_id and labels.get(objects.MANAGED) == objects.HEARTH)


def _restarted(server: Object) -> Object | None:
    """Raise `restarts` once for each time that it was told to stop: mark and number change in one write."""
    if not annotation(server, STOPPED):
        return {"spec": {"closed": None}} if server["spec"].get("closed") else None
    restarts = int(server["spec"].get("restarts") or 0) + 1
    return {"metadata": {"annotations": {STOPPED: None}}, "spec": {"restarts": restarts, "closed": None}}


def _cleared(server: Object, *, unmark: bool, routed: bool) -> Object | None:
    """Take away what verbs wrote by themselves, which an apply of the whole leaves alone."""
    found: Object = {}
    if unmark and annotation(server, STOPPED):
        found["metadata"] = {"annotations": {STOPPED: None}}
    gone: Object = {"recovery": None} if "recovery" in server["spec"] else {}
    if routed and server["spec"]["routing"].get("unrouted"):
        gone["routing"] = {"unrouted": None}
    return found | ({"spec": gone} if gone else {})


def _reached(server: Object, *, suspended: bool) -> bool:
    ready, progressing = condition(server, "Ready"), condition(server, "Progressing")
    if ready.get("reason") == "SigningKeyMismatch":
        raise ProviderError(str(ready["message"]), code="SigningKeyMismatch", retry=False)
    if progressing.get("status") != "False":
        return False
    return bool(ready.get("reason") == "Suspended" if suspended else ready.get("status") == "True")


def _doing(server: Object) -> str:
    for kind in ("Degraded", "Progressing", "Ready"):
        found = condition(server, kind)
        if found.get("message") and (found["status"] == "True" or kind == "Ready"):
            return str(found["message"])
    return ""


def _failed(trouble: Mapping[str, Any]) -> ProviderError:
    return ProviderError(
        f"The server does not come up in its cluster, and its data is untouched. {trouble['message']}",
        code=str(trouble["reason"])[:40],
        retry=False,
    )


def _stuck(server: Object, namespace: Object) -> ProviderError:
    """Say what holds a removal up: what is left, by Kubernetes' own conditions, and who must let it go."""
    conditions = (namespace.get("status") or {}).get("conditions") or ()
    said = [str(each["message"]) for each in conditions if each["status"] == "True" and each.get("message")]
    holders = ", ".join(server.get("metadata", {}).get("finalizers") or ())
    detail = " ".join(said) or (f"It is held by {holders}." if holders else "")
    return ProviderError(
        f"The server is closed, but its removal from the cluster does not end. {detail[:900]} Nothing else is "
        "affected. Try again later; if it stays so, support must look into the cluster.",
        code="RemovalStuck",
    )
