"""What a Kubernetes region brings, as plain data. Imports no Django."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ROUTE = "http://synapse-main.{namespace}.svc:8008"


@dataclass(frozen=True)
class Bucket:
    """Where media lies: one S3 bucket, in which each server has a folder. Without keys pods get a role."""

    endpoint: str
    bucket: str
    region: str = ""
    access_key: str = ""
    secret_key: str = field(default="", repr=False)


@dataclass(frozen=True)
class Postgres:
    """A PostgreSQL in which each server has a database. `user` may make databases and roles."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    authority: str = ""
    """Who signed its certificate, as PEM; empty for a public authority."""
    ranges: tuple[str, ...] = ()
    """Where it may lie."""


@dataclass(frozen=True)
class Place:
    """How servers of one region are made. Empty text: the region has no such thing."""

    base_domain: str
    synapse_image: str
    """With `{version}` where the release belongs."""
    postgres_image: str = ""
    redis_image: str = ""
    storage_class: str = ""
    snapshot_class: str = ""
    ingress_class: str = ""
    gateway: str = ""
    """`namespace/name` of a Gateway."""
    issuer: str = ""
    """A ClusterIssuer of cert-manager; without it the controller has a certificate for the host already."""
    bucket: Bucket | None = None
    """Without it media lies on a volume."""
    postgres: Postgres | None = None
    """Without it each server has a database cluster of its own."""
    route: str = ROUTE
    """Where Hearth reaches Synapse, with `{namespace}`. It needs the admin API, which no Ingress lets through."""
    prometheus: str = ""
    """The address of a Prometheus that reads the cluster's kubelets, for how full volumes are."""
    priority_class: str = ""
    ingress_address: str = ""
    """Where the region's router answers, as host or host:port; empty: not known apart from servers' addresses."""
    tls_minimum: str = "1.2"
    """The lowest TLS version that the router may take."""
    ingress_namespace: str = ""
    monitoring: bool = False
    monitoring_namespace: str = ""
    hearth_namespace: str = ""
    dns_addresses: tuple[str, ...] = ()
    api_server_ranges: tuple[str, ...] = ()
    backup_image: str = ""
    """The backup engine's; without it servers here are not backed up."""
    backup_issuer: str = ""
    """A ClusterIssuer that Hearth's internal listener trusts, for the agents' certificates."""
    internal_address: str = ""
    """Where pods reach that listener, as `https://host:port`."""
    installation: str = ""
    """What this Hearth is called. Servers of another are left alone; empty asks nobody."""
    cluster_uid: str = ""
    """Which cluster it is, by the uid of its namespace kube-system; empty: not known yet."""
    overlay: Mapping[str, Any] = field(default_factory=dict)
    """Laid over each server's spec; `null` takes a key away, `{server}` in a text is the server's id."""
