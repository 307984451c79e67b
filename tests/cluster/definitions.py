"""The custom resources of other people's software, from their Go modules' sources, checked against a known hash.

They are copied once into the cache as JSON without descriptions: a fifth of the size, and so of the API server's work.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.tools import Missing, cache, go

Object = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """One module: its path, version and hash (as in a go.sum), and the files of its resources."""

    module: str
    version: str
    checksum: str
    files: tuple[str, ...]


SOURCES = (
    Source(
        "github.com/cert-manager/cert-manager",
        "v1.19.2",
        "h1:jSprN1h5pgNDSl7HClAmIzXuTxic/5FXJ32kbQHqjlM=",
        tuple(
            f"deploy/crds/cert-manager.io_{name}.yaml"
            for name in ("certificates", "certificaterequests", "issuers", "clusterissuers")
        ),
    ),
    Source(
        "github.com/cloudnative-pg/cloudnative-pg",
        "v1.27.0",
        "h1:mp0zlYO4vKAJmQdArWORWKr1lmB4Hj8JeBQGX5RBnpg=",
        tuple(
            f"config/crd/bases/postgresql.cnpg.io_{name}.yaml"
            for name in (
                "backups",
                "clusterimagecatalogs",
                "clusters",
                "databases",
                "failoverquorums",
                "imagecatalogs",
                "poolers",
                "publications",
                "scheduledbackups",
                "subscriptions",
            )
        ),
    ),
    Source(
        "sigs.k8s.io/gateway-api",
        "v1.4.0",
        "h1:ZwlNM6zOHq0h3WUX2gfByPs2yAEsy/EenYJB78jpQfQ=",
        tuple(
            f"config/crd/standard/gateway.networking.k8s.io_{name}.yaml"
            for name in (
                "backendtlspolicies",
                "gatewayclasses",
                "gateways",
                "grpcroutes",
                "httproutes",
                "referencegrants",
            )
        ),
    ),
    Source(
        "github.com/kubernetes-csi/external-snapshotter/client/v8",
        "v8.2.0",
        "h1:Q3jQ1NkFqv5o+F8dMmHd8SfEmlcwNeo1immFApntEwE=",
        tuple(
            f"config/crd/snapshot.storage.k8s.io_{name}.yaml"
            for name in ("volumesnapshotclasses", "volumesnapshotcontents", "volumesnapshots")
        ),
    ),
    Source(
        "github.com/prometheus-operator/prometheus-operator",
        "v0.85.0",
        "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s=",
        tuple(
            f"example/prometheus-operator-crd/monitoring.coreos.com_{name}.yaml"
            for name in ("podmonitors", "prometheusrules", "servicemonitors")
        ),
    ),
)


def ensure(*, say: Callable[[str], None] = print) -> list[Object]:
    """Return all definitions, fetched first where missing. `Missing` says what went wrong."""
    place = _place()
    if not place.exists():
        say("Fetching the custom resources of cert-manager, CloudNativePG and others (once)")
        found = [each for source in SOURCES for each in _read(source)]
        place.parent.mkdir(parents=True, exist_ok=True)
        fresh = place.with_suffix(".fresh")
        fresh.write_text(json.dumps(found, separators=(",", ":")))
        fresh.replace(place)
    return find()


def find() -> list[Object]:
    """Return all definitions, which must be there already."""
    place = _place()
    if not place.exists():
        raise Missing("the custom resources of the test cluster are not there. Run: make test (needs Go's modules).")
    found: list[Object] = json.loads(place.read_text())
    return found


def folder(source: str) -> Path:
    """Return where a module's source lies, fetched if need be: `source` is a module's path."""
    return _download(next(each for each in SOURCES if each.module == source))


def load(paths: Iterable[Path]) -> list[Object]:
    """Return the objects of YAML files, without the descriptions in their schemas."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [bare(each) for path in paths for each in yaml.load_all(path.read_text(), loader) if each]


def _read(source: Source) -> list[Object]:
    place = _download(source)
    return load(place / name for name in source.files)


def _download(source: Source) -> Path:
    words = [str(go()), "mod", "download", "-json", f"{source.module}@{source.version}"]
    done = subprocess.run(words, cwd="/", capture_output=True, text=True, check=False, timeout=300)
    answer = json.loads(done.stdout) if done.stdout else {"Error": done.stderr}
    if error := answer.get("Error"):
        raise Missing(f"the source of {source.module} {source.version} can't be had: {error}")
    if answer["Sum"] != source.checksum:
        raise Missing(f"{source.module} {source.version} has the hash {answer['Sum']} and not {source.checksum}")
    return Path(answer["Dir"])


def bare(value: Any) -> Any:
    """Drop every description; a *property* of that name has a schema and no text, and stays."""
    if isinstance(value, dict):
        return {key: bare(one) for key, one in value.items() if not (key == "description" and isinstance(one, str))}
    return [bare(one) for one in value] if isinstance(value, list) else value


def _place() -> Path:
    return cache() / f"definitions-{hashlib.sha256(repr(SOURCES).encode()).hexdigest()[:16]}.json"
