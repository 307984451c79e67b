"""What stands in for other people's controllers does what the operator waits for, and can be told to fail."""

from __future__ import annotations

import base64
from functools import partial

import pytest
from cryptography import x509

from tests.cluster.api import Api, Object
from tests.cluster.stand_ins import HANDS_OFF

pytestmark = pytest.mark.xdist_group("cluster")


def certificate(namespace: str, *, issuer: str = "test", hosts: tuple[str, ...] = ("matrix.alice.example",)) -> Object:
    return {
        "apiVersion": "cert-manager.io/v1",
        "kind": "Certificate",
        "metadata": {"name": "synapse", "namespace": namespace},
        "spec": {
            "secretName": "synapse-tls",
            "dnsNames": list(hosts),
            "issuerRef": {"name": issuer, "kind": "ClusterIssuer"},
        },
    }


def claim(namespace: str, size: str, **spec: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "media", "namespace": namespace},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}, **spec},
    }


def database(namespace: str, **annotations: str) -> Object:
    return {
        "apiVersion": "postgresql.cnpg.io/v1",
        "kind": "Cluster",
        "metadata": {"name": "postgres", "namespace": namespace, "annotations": annotations},
        "spec": {"instances": 2, "storage": {"size": "1Gi"}},
    }


def condition(api: Api, each: Object, kind: str = "Ready") -> Object:
    conditions = (api.read(each).get("status") or {}).get("conditions") or []
    return next((one for one in conditions if one["type"] == kind), {})


def addressed(api: Api, each: Object) -> bool:
    return bool(api.read(each)["status"].get("loadBalancer", {}).get("ingress"))


def names(secret: Object) -> list[str]:
    signed = x509.load_pem_x509_certificate(base64.b64decode(secret["data"]["tls.crt"]))
    extension = signed.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return extension.value.get_values_for_type(x509.DNSName)


def test_a_certificate_is_signed_and_signed_again(api: Api, namespace: str) -> None:
    api.apply(certificate(namespace))
    api.wait("ready certificate", lambda: condition(api, certificate(namespace)).get("status") == "True")
    secret = api.get("v1", "Secret", "synapse-tls", namespace)
    assert secret is not None
    assert secret["type"] == "kubernetes.io/tls"
    assert names(secret) == ["matrix.alice.example"]

    more = ("matrix.alice.example", "alice.example")
    api.apply(certificate(namespace, hosts=more))
    api.wait("new names", lambda: names(api.get("v1", "Secret", "synapse-tls", namespace) or {}) == list(more))


def test_an_issuer_that_refuses(api: Api, namespace: str) -> None:
    api.apply(certificate(namespace, issuer="broken"))
    api.wait("refusal", lambda: condition(api, certificate(namespace)).get("reason") == "Failed")
    assert api.get("v1", "Secret", "synapse-tls", namespace) is None


def test_a_claim_is_bound_grows_and_its_volume_goes(api: Api, namespace: str) -> None:
    each = claim(namespace, "1Gi")
    api.apply(each)
    api.wait("bound claim", lambda: api.read(each)["status"].get("phase") == "Bound")
    api.apply(claim(namespace, "2Gi"))
    api.wait("room", lambda: api.read(each)["status"]["capacity"]["storage"] == "2Gi")
    volume = api.read(each)["spec"]["volumeName"]
    api.delete("v1", "PersistentVolumeClaim", "media", namespace)
    api.wait("end of the volume", lambda: api.get("v1", "PersistentVolume", volume) is None)


def test_a_claim_of_a_storage_class_that_is_not_there_waits(api: Api, namespace: str) -> None:
    each = claim(namespace, "1Gi", storageClassName="nowhere")
    api.apply(each)
    api.wait("event", lambda: [one for one in api.list("v1", "Event", namespace) if "nowhere" in one["message"]])
    assert api.read(each)["status"]["phase"] == "Pending"


def test_a_database_wakes_and_sleeps(api: Api, namespace: str) -> None:
    api.apply(database(namespace))
    api.wait("healthy database", lambda: condition(api, database(namespace)).get("status") == "True")
    assert api.read(database(namespace))["status"]["readyInstances"] == 2
    api.apply(database(namespace, **{"cnpg.io/hibernation": "on"}))
    kind = "cnpg.io/hibernation"
    api.wait("sleep", lambda: condition(api, database(namespace), kind).get("status") == "True")
    assert api.read(database(namespace))["status"]["readyInstances"] == 0


def test_what_they_are_told_to_leave_alone(api: Api, namespace: str) -> None:
    each = database(namespace, **{HANDS_OFF: "true"})
    api.apply(each)
    api.patch(each, {"status": {"phase": "Setting up primary"}}, sub="status")
    # Another database made later is answered: so this one was passed over.
    second = {**database(namespace), "metadata": {"name": "second", "namespace": namespace}}
    api.apply(second)
    api.wait("healthy database", lambda: condition(api, second).get("status") == "True")
    assert api.read(each)["status"]["phase"] == "Setting up primary"


def test_addresses(api: Api, namespace: str) -> None:
    meta = {"name": "web", "namespace": namespace}
    ports = [{"port": 443, "protocol": "TCP"}]
    service: Object = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta,
        "spec": {"type": "LoadBalancer", "ports": ports},
    }
    ingress: Object = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": meta,
        "spec": {"defaultBackend": {"service": {"name": "web", "port": {"number": 443}}}},
    }
    api.apply(service, ingress)
    for each in (service, ingress):
        api.wait("address", partial(addressed, api, each))
