"""The real API server takes all that the chart renders, under Pod Security `restricted` and the server's own quota."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.chart import values
from tests.chart.render import Rendered, render
from tests.cluster.api import Api, ApiError, Object

pytestmark = pytest.mark.xdist_group("cluster")
RESTRICTED = {f"pod-security.kubernetes.io__{mode}": "restricted" for mode in ("enforce", "audit", "warn")}
SERVERS: dict[str, Callable[..., dict[str, Any]]] = {
    "monolith": values.monolith,
    "workers": values.workers,
    "managed": values.managed,
}


@pytest.fixture
def restricted(new_namespace: Callable[..., str], api: Api) -> str:
    """A namespace as Hearth makes it, with the accounts that the chart's pods have."""
    name = new_namespace(**RESTRICTED)
    for account in ("synapse", "backup-agent"):
        api.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account, "namespace": name}})
    return name


def pods(rendered: Rendered, namespace: str) -> list[Object]:
    """Return a pod of each workload, as its controller would make it."""
    return [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {**template["metadata"], "name": name, "namespace": namespace},
            "spec": {**template["spec"], "volumes": [*template["spec"]["volumes"], *claims(rendered, name)]},
        }
        for name, template in rendered.pods().items()
    ]


def claims(rendered: Rendered, name: str) -> list[Object]:
    """Return the volumes that a StatefulSet's controller adds."""
    spec = rendered.get(f"StatefulSet/{name}", {}).get("spec", {})
    names = [each["metadata"]["name"] for each in spec.get("volumeClaimTemplates", [])]
    return [{"name": each, "persistentVolumeClaim": {"claimName": f"{each}-{name}-0"}} for each in names]


def apply(api: Api, each: Object, *, dry_run: bool = True) -> Object:
    """Apply strictly, and fail on a warning."""
    meta = each["metadata"]
    options = {"fieldManager": "tests", "force": "true", "fieldValidation": "Strict"}
    options |= {"dryRun": "All"} if dry_run else {}
    path = api.path(each["apiVersion"], each["kind"], meta.get("namespace"), meta["name"])
    headers = {"Content-Type": "application/apply-patch+yaml"}
    answer = api.http.patch(path, params=options, json=each, headers=headers)
    assert answer.is_success, f"{each['kind']} {meta['name']}: {answer.text}"
    assert "warning" not in answer.headers, answer.headers["warning"]
    return dict(answer.json())


EXTRAS: dict[str, dict[str, Any]] = {
    "": {},
    "suspended": {"suspended": {"message": "x"}},
    "backed up": {"backup": values.BACKUP},
}
CASES = [
    (name, extra) for name in SERVERS for label, extra in EXTRAS.items() if (name, label) != ("managed", "backed up")
]
CASES.append(("monolith", {"recovery": values.RECOVERY}))


@pytest.mark.parametrize(("name", "extra"), CASES)
def test_all_objects_and_pods_are_taken(name: str, extra: dict[str, Any], restricted: str, api: Api) -> None:
    spec = SERVERS[name](priorityClass=None, **extra)
    rendered = render(spec, namespace=restricted, uid="")
    for each in [*rendered.objects, *pods(rendered, restricted)]:
        apply(api, each)


def test_a_pod_that_wants_more_is_refused(restricted: str, api: Api) -> None:
    pod = pods(render(values.monolith(), namespace=restricted, uid=""), restricted)[0]
    more: list[Object] = [{"allowPrivilegeEscalation": True}, {"capabilities": {}}, {"runAsNonRoot": False}]
    for change in more:
        wrong = copy.deepcopy(pod)
        wrong["spec"]["containers"][0]["securityContext"] |= change
        with pytest.raises(ApiError, match="violates PodSecurity"):
            api.apply(wrong, dry_run=True)


@pytest.mark.parametrize("name", SERVERS)
def test_the_quota_has_room_for_every_pod_of_the_server_and_not_for_many_more(
    name: str, restricted: str, api: Api
) -> None:
    rendered = render(SERVERS[name](priorityClass=None), namespace=restricted, uid="")
    limits = rendered.kind("ResourceQuota", "LimitRange", "PersistentVolumeClaim")
    for each in limits:
        apply(api, each, dry_run=False)
    templates = {each["metadata"]["name"]: each for each in pods(rendered, restricted)}
    for name_, count in wanted(rendered).items():
        for number in range(count):
            pod = copy.deepcopy(templates[name_])
            pod["metadata"]["name"] = f"{name_}-{number}"
            apply(api, pod, dry_run=False)
    greedy = copy.deepcopy(templates["synapse-main"])
    greedy["spec"]["containers"][0]["resources"]["requests"]["memory"] = "64Gi"
    greedy["spec"]["containers"][0]["resources"]["limits"]["memory"] = "64Gi"
    with pytest.raises(ApiError, match="exceeded quota: server"):
        api.apply(greedy, dry_run=True)


def wanted(rendered: Rendered) -> dict[str, int]:
    """Return the most pods of each workload: all replicas, and one more where an update makes one."""
    most = {}
    for each in rendered.kind("Deployment", "StatefulSet"):
        name = each["metadata"]["name"]
        count = each["spec"].get("replicas")
        if count is None:
            count = rendered[f"HorizontalPodAutoscaler/{name}"]["spec"]["maxReplicas"]
        most[name] = count + (1 if each["kind"] == "Deployment" else 0)
    return most


def test_the_quota_would_stop_a_node_port(restricted: str, api: Api) -> None:
    rendered = render(values.monolith(), namespace=restricted, uid="")
    apply(api, rendered["ResourceQuota/server"], dry_run=False)
    service = copy.deepcopy(rendered["Service/synapse-main"])
    service["spec"]["type"] = "NodePort"
    with pytest.raises(ApiError, match="exceeded quota"):
        api.apply(service)
