"""Kubernetes regions: the verbs that make and change them, and their providers."""

from __future__ import annotations

import re
import uuid
from functools import partial
from ipaddress import IPv4Network, ip_network
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cryptography.x509 import load_pem_x509_certificates
from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils import timezone
from django.views.decorators.debug import sensitive_variables

from audit.services import record
from provisioning.models import Cluster, Region
from provisioning.providers.base import ProviderError
from provisioning.providers.kubernetes.kubeconfig import KubeconfigRefused, read
from provisioning.providers.kubernetes.place import Bucket, Place, Postgres
from security.transport.places import internal_address
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
    "ingress_address",
    "tls_minimum",
    "ingress_namespace",
    "monitoring",
    "monitoring_namespace",
    "hearth_namespace",
    "dns_addresses",
    "api_server_ranges",
    "priority_class",
    "backup_image",
    "backup_issuer",
    "internal_address",
    "overlay",
    "etcd_encrypted",
)
SECRETS = ("s3_secret_key", "database_password")
"""What is sealed beside the kubeconfig."""
FIXED = (
    "s3_endpoint", "s3_bucket", "storage_class", "database_host", "database_port", "network_range", "network_prefix"
)  # fmt: skip
"""What can't change while servers are there: their data or their addresses lie in it."""
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
ADDRESS = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?|\[[0-9a-fA-F:]+\])(:[0-9]{1,5})?")
LOOK_S = 5.0
"""Seconds that a page waits for a cluster to say which one it is."""
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
        made = KubernetesProvider(client_of(cluster), place_of(cluster), learn=partial(learn, cluster.pk))
        held = _providers[region.pk] = (cluster.revision, made)
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
        host, port, user = cluster.database_host, cluster.database_port, cluster.database_user
        ranges = split(cluster.database_ranges)
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
        ingress_address=cluster.ingress_address,
        tls_minimum=cluster.tls_minimum,
        ingress_namespace=cluster.ingress_namespace,
        monitoring=cluster.monitoring,
        monitoring_namespace=cluster.monitoring_namespace,
        hearth_namespace=cluster.hearth_namespace,
        dns_addresses=split(cluster.dns_addresses),
        api_server_ranges=split(cluster.api_server_ranges),
        backup_image=cluster.backup_image,
        backup_issuer=cluster.backup_issuer,
        internal_address=cluster.internal_address or internal_address(settings.HEARTH),
        installation=settings.INSTALLATION,
        cluster_uid=cluster.cluster_uid,
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
    refuse_another(row, kubeconfig=kubeconfig, in_cluster=in_cluster)
    before = _shown(row)
    for key, value in columns.items():
        setattr(row, key, value)
    if kubeconfig or in_cluster:
        row.kubeconfig = kubeconfig or None
        if not _has_servers(row):
            row.cluster_uid = ""  # it may be another one: the next look tells
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


def learn(region_id: uuid.UUID, uid: str) -> str:
    """Keep which cluster a region is, unless that is known; return what is known then."""
    Cluster.objects.filter(pk=region_id, cluster_uid="").update(cluster_uid=uid)
    return Cluster.objects.values_list("cluster_uid", flat=True).get(pk=region_id)


@sensitive_variables()
def refuse_another(cluster: Cluster, *, kubeconfig: str | None, in_cluster: bool) -> None:
    """Refuse the way into another cluster while servers are in this one. Nothing is said of one that does not answer:

    the provider asks before it touches a server there.
    """
    if not (kubeconfig or in_cluster) or not cluster.cluster_uid or not _has_servers(cluster):
        return
    from provisioning.providers.kubernetes.client import connect  # noqa: PLC0415 (as above)
    from provisioning.providers.kubernetes.whose import ANOTHER, uid_of  # noqa: PLC0415 (as above)

    try:
        client = connect(kubeconfig or None)
        try:
            uid = uid_of(client, patience=LOOK_S)
        finally:
            client.close()
    except ProviderError:
        return
    if uid != cluster.cluster_uid:
        raise Refused(f"{ANOTHER} Nothing was changed. For another cluster make a new region.", field="kubeconfig")


def _has_servers(cluster: Cluster) -> bool:
    return Server.objects.filter(region=cluster.region.code, deleted__isnull=True).exists()


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
    if moved and _has_servers(cluster):
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
    _look_inside(columns)
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
    _look_at_ranges(columns, "database_ranges")


def _look_at_ranges(columns: dict[str, Any], field: str) -> None:
    for each in split(str(columns.get(field) or "")):
        try:
            ip_network(each)
        except ValueError:
            raise Refused(
                f"“{each[:50]}” is no range of addresses such as 10.9.0.0/24. Nothing was changed.", field=field
            ) from None


def _look_inside(columns: dict[str, Any]) -> None:
    for field in ("dns_addresses", "api_server_ranges"):
        _look_at_ranges(columns, field)
    for field in ("ingress_namespace", "monitoring_namespace", "hearth_namespace"):
        if (name := columns.get(field)) and not LABEL.fullmatch(name):
            raise Refused(f"“{name[:70]}” is no name of a namespace. Nothing was changed.", field=field)
    if (address := columns.get("internal_address")) and urlsplit(address).scheme != "https":
        raise Refused("The internal listener has an https address. Nothing was changed.", field="internal_address")
    if bool(columns.get("backup_image")) != bool(columns.get("backup_issuer")):
        raise Refused(
            "Backups need an image and an issuer. Nothing was changed. Give both, or neither.", field="backup_issuer"
        )
    if (address := columns.get("ingress_address")) and not ADDRESS.fullmatch(address):
        raise Refused("The router's address is a host, or host:port. Nothing was changed.", field="ingress_address")


def split(text: str) -> tuple[str, ...]:
    """Return the parts of what staff wrote with commas between them."""
    return tuple(filter(None, (each.strip() for each in text.split(","))))


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
