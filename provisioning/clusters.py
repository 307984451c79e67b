"""Kubernetes regions: the verbs that make and change them, and their providers."""

from __future__ import annotations

import uuid
from ipaddress import IPv4Network, ip_network
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cryptography.x509 import load_pem_x509_certificates
from django.db import IntegrityError, transaction
from django.utils import timezone
from django.views.decorators.debug import sensitive_variables

from audit.services import record
from provisioning.models import Cluster, Region
from provisioning.providers.base import ProviderError
from provisioning.providers.kubernetes.kubeconfig import KubeconfigRefused, read
from provisioning.providers.kubernetes.place import Bucket, Place, Postgres
from tenants.errors import Refused
from tenants.models import Server

if TYPE_CHECKING:
    from provisioning.providers.kubernetes.client import Client
    from provisioning.providers.kubernetes.provider import KubernetesProvider

COLUMNS = (
    "synapse_image",
    "postgres_image",
    "redis_image",
    "storage_class",
    "snapshot_class",
    "ingress_class",
    "gateway",
    "issuer",
    "s3_endpoint",
    "s3_bucket",
    "s3_region",
    "s3_access_key",
    "database_host",
    "database_port",
    "database_user",
    "database_authority",
    "database_ranges",
    "network_range",
    "network_prefix",
    "route",
    "prometheus",
    "priority_class",
    "overlay",
    "etcd_encrypted",
)
SECRETS = ("s3_secret_key", "database_password")
"""What is sealed beside the kubeconfig."""
FIXED = (
    "s3_endpoint", "s3_bucket", "storage_class", "database_host", "database_port", "network_range", "network_prefix"
)  # fmt: skip
"""What can't change while servers are there: their data or their addresses lie in it."""
_providers: dict[uuid.UUID, tuple[int, KubernetesProvider]] = {}


def provider_of(region: Region) -> KubernetesProvider:
    """Return the region's provider; a changed region gets a new one. Raises `ProviderError` without credentials."""
    # Kubernetes' client takes a second to import, and a Hearth without such a region never needs it.
    from provisioning.providers.kubernetes.provider import KubernetesProvider  # noqa: PLC0415

    cluster = Cluster.objects.select_related("region").filter(region=region).first()
    if cluster is None:
        raise ProviderError(
            f"The region “{region.name}” says nothing of its cluster. Running servers are not touched. Staff must "
            "complete it.",
            code="RegionIncomplete",
            retry=False,
        )
    held = _providers.get(region.pk)
    if held is None or held[0] != cluster.revision:
        # Whoever still works with the old one goes on with it; its connections go with it.
        held = _providers[region.pk] = (cluster.revision, KubernetesProvider(client_of(cluster), place_of(cluster)))
    return held[1]


@sensitive_variables()
def client_of(cluster: Cluster) -> Client:
    """Return a connection to the cluster."""
    from provisioning.providers.kubernetes.client import connect  # noqa: PLC0415 (as above)

    return connect(None if cluster.kubeconfig is None else str(cluster.kubeconfig))


@sensitive_variables()
def place_of(cluster: Cluster) -> Place:
    """Return what the provider must know of the region."""
    bucket = None
    if cluster.s3_endpoint:
        secret = "" if cluster.s3_secret_key is None else str(cluster.s3_secret_key)
        bucket = Bucket(cluster.s3_endpoint, cluster.s3_bucket, cluster.s3_region, cluster.s3_access_key, secret)
    postgres = None
    if cluster.database_host:
        password = "" if cluster.database_password is None else str(cluster.database_password)
        ranges = tuple(filter(None, (each.strip() for each in cluster.database_ranges.split(","))))
        host, port, user = cluster.database_host, cluster.database_port, cluster.database_user
        postgres = Postgres(host, port, user, password, cluster.database_authority, ranges)
    return Place(
        base_domain=cluster.region.base_domain,
        synapse_image=cluster.synapse_image,
        postgres_image=cluster.postgres_image,
        redis_image=cluster.redis_image,
        storage_class=cluster.storage_class,
        snapshot_class=cluster.snapshot_class,
        ingress_class=cluster.ingress_class,
        gateway=cluster.gateway,
        issuer=cluster.issuer,
        bucket=bucket,
        postgres=postgres,
        route=cluster.route,
        prometheus=cluster.prometheus,
        priority_class=cluster.priority_class,
        overlay=cluster.overlay,
    )


@sensitive_variables("kubeconfig", "s3_secret_key", "database_password")
@transaction.atomic
def create(
    *,
    actor: Any,
    code: str,
    name: str,
    base_domain: str,
    kubeconfig: str | None,
    s3_secret_key: str | None = None,
    database_password: str | None = None,
    **columns: Any,
) -> Cluster:
    """Make a Kubernetes region, closed to servers until somebody opens it. Without a kubeconfig: the pod's account."""
    look(columns, kubeconfig)
    try:
        with transaction.atomic():
            region = Region.objects.create(
                code=code, name=name, base_domain=base_domain, provider=Region.Provider.KUBERNETES, open=False
            )
    except IntegrityError:
        raise Refused(f"There is a region “{code}” already. Nothing was made.", field="code") from None
    secrets = {"kubeconfig": kubeconfig, "s3_secret_key": s3_secret_key, "database_password": database_password}
    cluster = Cluster(region=region, revision=1, **secrets, **columns)
    cluster.save(force_insert=True)
    after = {"code": code, "name": name, "base_domain": base_domain, **_shown(cluster)}
    record(actor=actor, verb="region.create", object=region, after=after)
    return cluster


@sensitive_variables("kubeconfig", "s3_secret_key", "database_password")
@transaction.atomic
def change(
    *,
    actor: Any,
    cluster: Cluster,
    kubeconfig: str | None = None,
    in_cluster: bool = False,
    s3_secret_key: str | None = None,
    database_password: str | None = None,
    **columns: Any,
) -> Cluster:
    """Change what a region is made of; secrets that are not given stay. Servers take it over with their next change."""
    # The region too: a placement holds it, so no server comes between the look for servers and the change.
    row = Cluster.objects.select_for_update(of=("self", "region")).select_related("region").get(pk=cluster.pk)
    look({**_shown(row), **columns}, kubeconfig)
    refuse_move(row, columns)
    before = _shown(row)
    for key, value in columns.items():
        setattr(row, key, value)
    if kubeconfig or in_cluster:
        row.kubeconfig = kubeconfig or None
    given = {"s3_secret_key": s3_secret_key, "database_password": database_password}
    for key in SECRETS:
        if given[key]:
            setattr(row, key, given[key])
    row.revision += 1
    row.save()
    told = {"kubeconfig": "replaced"} if kubeconfig else {"kubeconfig": "removed"} if in_cluster else {}
    told |= {key: "replaced" for key in SECRETS if given[key]}
    record(actor=actor, verb="region.change", object=row.region, before=before, after={**_shown(row), **told})
    return row


def check(*, actor: Any, cluster: Cluster) -> list[dict[str, str]]:
    """Ask the cluster what it lacks for this region; keep what was found for the page, and return it."""
    from provisioning.providers.kubernetes.checking import check_region  # noqa: PLC0415 (as above)

    try:
        client = client_of(cluster)
        try:
            found = check_region(client, place_of(cluster), etcd_encrypted=cluster.etcd_encrypted)
        finally:
            client.close()
    except ProviderError as error:
        found = [{"what": "Connection", "state": "missing", "text": str(error)}]
    missing = [each["what"] for each in found if each["state"] == "missing"]
    with transaction.atomic():
        Cluster.objects.filter(pk=cluster.pk).update(findings=found, checked=timezone.now())
        record(actor=actor, verb="region.check", object=cluster.region, after={"missing": missing})
    return found


def refuse_move(cluster: Cluster, columns: dict[str, Any]) -> None:
    """Refuse other storage while servers are there: what exists stays where it is, and half of it would be lost."""
    now = _shown(cluster)
    moved = [key for key in FIXED if columns.get(key, now[key]) != now[key]]
    if moved and Server.objects.filter(region=cluster.region.code, deleted__isnull=True).exists():
        raise Refused(
            "This region has servers, and their data lies there. Nothing was changed. For other storage make a new "
            "region.",
            field=moved[0],
        )


@sensitive_variables("kubeconfig")
def look(columns: dict[str, Any], kubeconfig: str | None) -> None:
    """Refuse what could never work."""
    if kubeconfig:
        try:
            read(kubeconfig)
        except KubeconfigRefused as refusal:
            raise Refused(str(refusal), field="kubeconfig") from None
    if not columns.get("ingress_class") and not columns.get("gateway") and not columns.get("overlay"):
        raise Refused(
            "Nobody could reach servers of this region. Nothing was changed. Give an ingress class or a gateway.",
            field="ingress_class",
        )
    if "{namespace}" not in columns["route"]:
        raise Refused("The route must have {namespace} in it. Nothing was changed.", field="route")
    if "{version}" not in columns["synapse_image"]:
        raise Refused(
            "Synapse's image must have {version} in it, or no server could be upgraded. Nothing was changed.",
            field="synapse_image",
        )
    if bool(columns.get("s3_endpoint")) != bool(columns.get("s3_bucket")):
        raise Refused("S3 needs an endpoint and a bucket. Nothing was changed.", field="s3_bucket")
    _look_at_postgres(columns)
    _look_at_network(columns)
    if (prometheus := columns.get("prometheus")) and urlsplit(prometheus).scheme not in {"http", "https"}:
        raise Refused("Prometheus needs an http or https address. Nothing was changed.", field="prometheus")
    if not isinstance(columns.get("overlay", {}), dict):
        raise Refused("The overlay must be a JSON object. Nothing was changed.", field="overlay")


def _look_at_postgres(columns: dict[str, Any]) -> None:
    if not columns.get("database_host"):
        return
    if not columns.get("database_user"):
        raise Refused("PostgreSQL needs a user. Nothing was changed.", field="database_user")
    if authority := columns.get("database_authority"):
        try:
            load_pem_x509_certificates(str(authority).encode())
        except ValueError:
            raise Refused("That is no certificate in PEM. Nothing was changed.", field="database_authority") from None
    for each in filter(None, (part.strip() for part in str(columns.get("database_ranges") or "").split(","))):
        try:
            ip_network(each)
        except ValueError:
            raise Refused(
                f"“{each[:50]}” is no range of addresses such as 10.9.0.0/24. Nothing was changed.",
                field="database_ranges",
            ) from None


def _look_at_network(columns: dict[str, Any]) -> None:
    if not columns.get("network_range"):
        return
    try:
        whole = IPv4Network(columns["network_range"])
    except ValueError:
        raise Refused(
            "That is no range of addresses such as 10.64.0.0/12. Nothing was changed.", field="network_range"
        ) from None
    if not whole.is_private or not 8 <= whole.prefixlen <= columns.get("network_prefix", 24):
        raise Refused(
            "The range must be private, and have room for at least one server's network. Nothing was changed.",
            field="network_range",
        )


def _shown(cluster: Cluster) -> dict[str, Any]:
    """Return what the trail may know: everything but secrets."""
    return {key: getattr(cluster, key) for key in COLUMNS}
