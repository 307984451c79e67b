"""What a cluster must have for a region, looked at by Hearth itself: definitions, versions, rights, classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from provisioning.providers.base import ProviderError
from provisioning.providers.kubernetes import tls, usage
from provisioning.providers.kubernetes.client import Client
from provisioning.providers.kubernetes.databases import Databases
from provisioning.providers.kubernetes.objects import SERVER
from provisioning.providers.kubernetes.place import Place

OLDEST = (1, 31)
SERVERS = "/apis/hearth.host/v1/matrixservers"
NEEDED = (("hearth.host", "MatrixServer", "Install Hearth's chart for clusters (platform/deploy), which brings it."),)
RIGHTS = (
    ("", "namespaces", "", ("get", "create", "list", "patch", "delete")),
    ("hearth.host", "matrixservers", "", ("get", "list", "create", "patch", "delete")),
    ("", "secrets", "", ("create", "patch")),
)
TOO_MUCH = (("", "secrets", ("list", "watch")), ("", "pods/exec", ("create",)))
Finding = dict[str, str]


def check_region(client: Client, place: Place, *, etcd_encrypted: bool) -> list[Finding]:
    """Return one finding for each thing: `what`, `state` (good, warn, missing) and a sentence."""
    found = [_version(client), *_definitions(client, place), *_rights(client), *_classes(client, place)]
    found += [*_postgres(place), *_figures(client, place), *_inside(client, place), _lowest_tls(client, place)]
    text = "Whoever runs the cluster says that Secrets are encrypted in etcd. It can't be seen from here."
    if not etcd_encrypted:
        text = (
            "Nobody has said that Secrets are encrypted in etcd. Every server's keys lie there. Encrypt, then say so."
        )
    return [*found, _finding("Encryption of etcd", "good" if etcd_encrypted else "missing", text)]


def _version(client: Client) -> Finding:
    said = client.request("GET", "/version")
    number = tuple(int("".join(filter(str.isdigit, str(said[key]))) or 0) for key in ("major", "minor"))
    text = f"It runs Kubernetes {said.get('gitVersion', '')}."
    if number < OLDEST:
        return _finding("Version", "missing", f"{text} Hearth needs {OLDEST[0]}.{OLDEST[1]} or later.")
    return _finding("Version", "good", text)


def _definitions(client: Client, place: Place) -> Iterator[Finding]:
    groups = {group["name"] for group in client.request("GET", "/apis")["groups"]}
    needed = [*NEEDED]
    if place.postgres is None:
        needed.append(("postgresql.cnpg.io", "CloudNativePG", "Install CloudNativePG 1.27 or later."))
    if place.issuer or place.backup_issuer:
        needed.append(("cert-manager.io", "cert-manager", "Install cert-manager."))
    if place.gateway:
        needed.append(("gateway.networking.k8s.io", "Gateway API", "Install the Gateway API's definitions."))
    if place.snapshot_class:
        needed.append(("snapshot.storage.k8s.io", "Snapshots of volumes", "Install the snapshot controller."))
    for group, name, cure in needed:
        there = group in groups
        yield _finding(name, "good" if there else "missing", "It is there." if there else f"It is not there. {cure}")


def _rights(client: Client) -> Iterator[Finding]:
    lacking = [
        f"{verb} {resource}"
        for group, resource, _, verbs in RIGHTS
        for verb in verbs
        if not _may(client, group, resource, verb)
    ]
    if lacking:
        text = f"Hearth may not: {', '.join(lacking)}. Bind its account to the role hearth-provider of Hearth's chart."
        yield _finding("Rights", "missing", text)
    else:
        yield _finding("Rights", "good", "Hearth may do what it must.")
    excess = [f"{verb} {name}" for group, name, verbs in TOO_MUCH for verb in verbs if _may(client, group, name, verb)]
    if excess:
        text = (
            f"Hearth may do more than it needs: {', '.join(excess)}. Give it an account with the role hearth-provider."
        )
        yield _finding("Least privilege", "warn", text)


def _may(client: Client, group: str, resource: str, verb: str) -> bool:
    name, _, sub = resource.partition("/")
    attributes = {"group": group, "resource": name, "subresource": sub, "verb": verb}
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    answer = client.request("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body)
    return bool(answer["status"].get("allowed"))


def _classes(client: Client, place: Place) -> Iterator[Finding]:
    wanted = [
        ("Storage class", "/apis/storage.k8s.io/v1/storageclasses", place.storage_class),
        ("Snapshot class", "/apis/snapshot.storage.k8s.io/v1/volumesnapshotclasses", place.snapshot_class),
        ("Ingress class", "/apis/networking.k8s.io/v1/ingressclasses", place.ingress_class),
        ("Issuer", "/apis/cert-manager.io/v1/clusterissuers", place.issuer),
        ("Issuer of backups", "/apis/cert-manager.io/v1/clusterissuers", place.backup_issuer),
        ("Priority class", "/apis/scheduling.k8s.io/v1/priorityclasses", place.priority_class),
    ]
    for what, path, name in wanted:
        if name:
            yield _class(client, what, f"{path}/{name}", name)


def _postgres(place: Place) -> Iterator[Finding]:
    if place.postgres is None:
        return
    try:
        faults = Databases(place.postgres).faults()
    except ProviderError as error:
        faults = [str(error)]
    yield from (_finding("PostgreSQL", "missing", fault) for fault in faults)
    if not faults:
        yield _finding("PostgreSQL", "good", "Hearth reaches it by verified TLS and may make databases in it.")


def _figures(client: Client, place: Place) -> Iterator[Finding]:
    """Say what of the servers' use will be unknown."""
    try:
        client.request("GET", usage.PODS, query={"limit": "1", "labelSelector": SERVER}, patience=0.0)
        yield _finding("Processors and memory", "good", "metrics.k8s.io tells how much of them servers use.")
    except ProviderError as error:
        cure = "Install metrics-server." if error.code != "RegionForbidden" else "Hearth's account may not ask it."
        text = f"metrics.k8s.io does not say how much of them servers use, so pages show no figures. {cure}"
        yield _finding("Processors and memory", "warn", text)
    if not place.prometheus:
        yield _finding("Volumes", "warn", "No Prometheus is named, so pages don't show how full volumes are.")


def _inside(client: Client, place: Place) -> Iterator[Finding]:
    """Look whether the namespaces are there from which servers let anybody in."""
    wanted = [("Namespace of the router", place.ingress_namespace or "ingress")]
    wanted.append(("Namespace of the operator", place.hearth_namespace or "hearth"))
    if place.monitoring:
        wanted.append(("Namespace of Prometheus", place.monitoring_namespace or "monitoring"))
    for what, name in wanted:
        try:
            there = client.get(f"/api/v1/namespaces/{name}") is not None
        except ProviderError as error:
            if error.code != "RegionForbidden":
                raise
            yield _finding(what, "warn", f"Hearth may not look whether “{name}” is there.")
            continue
        if there:
            yield _finding(what, "good", f"“{name}” is there; servers let in what runs there.")
        else:
            text = f"The cluster has no namespace “{name}”, and servers let nothing else in. Say where it is."
            yield _finding(what, "missing", text)


def _lowest_tls(client: Client, place: Place) -> Finding:
    """Ask the router, as anybody could from outside, which versions of TLS it takes."""
    what = "Lowest TLS version"
    host = _some_host(client)
    address, name = place.ingress_address or host, host or f"hearth-check.{place.base_domain}"
    if not address:
        text = "It was not probed: the region has no server yet. Say where the router answers to have it probed now."
        return _finding(what, "warn", text)
    try:
        taken = tls.versions(address, name)
    except (OSError, UnicodeError) as error:
        text = f"It could not be probed: {address} does not answer ({type(error).__name__})."
        return _finding(what, "warn", text)
    if not taken:
        return _finding(what, "warn", f"It could not be probed: {address} takes no version of TLS for {name}.")
    below = [version for version in taken if version < place.tls_minimum]
    said = f"The router takes TLS {', '.join(taken)} for {name}."
    if below:
        cure = f"It must refuse anything below {place.tls_minimum}: docs/kubernetes.md says how for each router."
        return _finding(what, "missing", f"{said} {cure}")
    return _finding(what, "good", f"{said} The lowest that this region permits is {place.tls_minimum}.")


def _some_host(client: Client) -> str:
    """Return the public host of one of the servers, or nothing."""
    try:
        page = client.request("GET", SERVERS, query={"limit": "1", "labelSelector": SERVER})
    except ProviderError as error:
        if error.code not in {"RegionForbidden", "RegionKindMissing"}:
            raise
        return ""
    return next((str(each["spec"]["publicHost"]) for each in page.get("items") or ()), "")


def _class(client: Client, what: str, path: str, name: str) -> Finding:
    try:
        found: dict[str, Any] | None = client.get(path)
    except ProviderError as error:
        if error.code == "RegionForbidden":
            return _finding(what, "warn", f"Hearth may not look whether “{name}” is there.")
        raise
    if found is None:
        return _finding(what, "missing", f"The cluster has no “{name}”.")
    if what == "Storage class" and not found.get("allowVolumeExpansion"):
        return _finding(what, "missing", f"“{name}” does not let volumes grow, so no server of it could.")
    return _finding(what, "good", f"“{name}” is there.")


def _finding(what: str, state: str, text: str) -> Finding:
    return {"what": what, "state": state, "text": text}
