"""Another Hearth's servers, another cluster, and a Hearth whose database is of an earlier moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from provisioning import clusters, observer
from provisioning.models import Cluster, Operation, Region, ServerStatus
from provisioning.providers.base import ProviderError
from provisioning.providers.kubernetes.whose import INSTALLATION
from provisioning.providers.kubernetes.writing import FENCE
from tenants.errors import Refused
from tenants.models import Server
from tests.cluster.api import Api
from tests.cluster.launch import Cluster as Running
from tests.operator.process import Operator
from tests.provisioning.kubernetes.conftest import SERVER, inline
from tests.provisioning.kubernetes.test_faults import carry_out, place
from tests.provisioning.kubernetes.test_life import becomes

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.xdist_group("cluster")]


@pytest.fixture
def made(server: Server, operator: Operator) -> Server:
    """A server that runs."""
    operation = carry_out(server)
    assert operation.state == "succeeded", operation.error
    becomes(server, "ready")
    return server


def objects(api: Api, server: Server) -> list[dict[str, Any]]:
    """Return what Hearth wrote of it."""
    name = place(server)
    found = (api.get("v1", "Namespace", name), api.get("v1", "Secret", "synapse-secrets", name), api.get(*SERVER, name))
    return [each for each in found if each is not None]


def marked(api: Api, server: Server, key: str, text: str) -> None:
    for each in objects(api, server):
        api.patch(each, {"metadata": {"annotations": {key: text}}})


def versions(api: Api, server: Server) -> list[str]:
    return [str(each["metadata"]["generation" if each["kind"] == "MatrixServer" else "annotations"])
            for each in objects(api, server)]  # fmt: skip


def test_each_server_says_whose_it_is(made: Server, api: Api, settings: Any) -> None:
    found = [each["metadata"]["annotations"][INSTALLATION] for each in objects(api, made)]
    assert found == [settings.INSTALLATION] * 3


def test_a_copy_of_hearth_touches_nothing(made: Server, api: Api, settings: Any) -> None:
    """Staging has a copy of production's database, its kubeconfig and a higher fence, and another name."""
    before = versions(api, made)
    clusters._providers.clear()
    settings.INSTALLATION = "staging.example"
    Operation.objects.update(fence=1000)
    Server.objects.update(users=77, generation=2)
    operation = carry_out(made)
    assert (operation.state, operation.error_code) == ("failed", "AnotherHearth")
    assert "belongs to another Hearth" in operation.error
    provider = clusters.provider_of(Region.objects.get())
    for verb in (provider.stop, provider.remove):
        with pytest.raises(ProviderError, match="another Hearth"):
            verb(str(made.pk), fence=2000, progress=lambda _: None)
    assert provider.observe()[str(made.pk)].reason == "AnotherHearth"
    assert versions(api, made) == before
    clusters._providers.clear()


def test_a_server_from_before_is_taken_over(made: Server, api: Api) -> None:
    marked(api, made, INSTALLATION, "")
    Server.objects.update(users=78, generation=2)
    assert carry_out(made).state == "succeeded"
    assert all(each["metadata"]["annotations"][INSTALLATION] for each in objects(api, made))


def test_a_database_of_an_earlier_moment_catches_up(made: Server, api: Api) -> None:
    marked(api, made, FENCE, "500")
    Server.objects.update(users=79, generation=2)
    operation = carry_out(made)
    assert operation.state == "succeeded", operation.error
    assert operation.fence > 500
    assert "catches up" in str(list(operation.events.values_list("message", flat=True)))
    found = api.get(*SERVER, place(made))
    assert found is not None
    assert found["spec"]["limits"]["maxUsers"] == 79


def test_a_fence_that_no_hearth_wrote_is_told(made: Server, api: Api) -> None:
    marked(api, made, FENCE, "9" * 30)
    Server.objects.update(users=80, generation=2)
    operation = carry_out(made)
    assert (operation.state, operation.error_code) == ("failed", "FenceAhead")


def test_the_cluster_is_known_from_the_first_look(made: Server, api: Api) -> None:
    system = api.get("v1", "Namespace", "kube-system")
    assert system is not None
    assert Cluster.objects.get().cluster_uid == system["metadata"]["uid"]


@pytest.fixture(scope="module")
def other() -> Iterator[Running]:
    """Another cluster, without anything in it."""
    with Running() as running:
        yield running


def test_another_cluster_is_refused_while_servers_are_there(made: Server, other: Running) -> None:
    row = Cluster.objects.get()
    known = row.cluster_uid
    with pytest.raises(Refused, match="another cluster") as refused:
        clusters.change(actor="staff", cluster=row, kubeconfig=inline(other.kubeconfig), **clusters._shown(row))
    assert refused.value.field == "kubeconfig"
    row.kubeconfig, row.revision = inline(other.kubeconfig), 50  # it did not answer when it was given
    row.save()
    assert Cluster.objects.get().cluster_uid == known
    observer.observe()
    status = ServerStatus.objects.get(server=made)
    assert "another cluster" in status.message
    Server.objects.update(users=81, generation=2)
    operation = carry_out(made)
    assert (operation.state, operation.error_code) == ("failed", "AnotherCluster")
    assert not other.api.list("v1", "Namespace", labelSelector="hearth.host/server")


def test_without_servers_a_region_may_move(make_region: Callable[..., Cluster], other: Running) -> None:
    row = make_region()
    clusters.provider_of(row.region).observe()
    row.refresh_from_db()
    known = row.cluster_uid
    clusters.change(actor="staff", cluster=row, kubeconfig=inline(other.kubeconfig), **clusters._shown(row))
    clusters.provider_of(row.region).observe()
    assert Cluster.objects.get().cluster_uid not in {"", known}


def test_one_that_does_not_answer_is_asked_later(made: Server, cluster: Running) -> None:
    row, content = Cluster.objects.get(), yaml.safe_load(inline(cluster.kubeconfig))
    content["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:9"
    clusters.change(actor="staff", cluster=row, kubeconfig=yaml.safe_dump(content), **clusters._shown(row))
    assert Cluster.objects.get().cluster_uid == row.cluster_uid
