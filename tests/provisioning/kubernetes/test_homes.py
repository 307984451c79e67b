"""Who lives in which namespace, on a real API server: at any point of an exchange, and however it was cut off."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from provisioning.providers.base import ProviderError, StaleFence
from provisioning.providers.kubernetes import homes, objects
from provisioning.providers.kubernetes.client import connect
from provisioning.providers.kubernetes.homes import Exchange, Homes
from provisioning.providers.kubernetes.writing import Writer, paths
from tests.cluster.api import Api
from tests.cluster.given import Given
from tests.cluster.launch import Cluster
from tests.provisioning.kubernetes.conftest import SERVER, inline, sweep
from tests.provisioning.kubernetes.test_objects import PLACE, SPEC

pytestmark = pytest.mark.xdist_group("cluster")


class Cut(Exception):
    """The worker ended here."""


class CutOff(Writer):
    """A writer whose worker ends before its n-th write."""

    left = 10**6

    def change(self, path: str, fence: int, change: Callable[[Any], Any]) -> Any:
        self.left -= 1
        if self.left < 0:
            raise Cut
        return super().change(path, fence, change)


class Ground:
    """A server and two instances of it, each with a namespace and a MatrixServer."""

    def __init__(self, kubeconfig: str) -> None:
        self.client = connect(kubeconfig)
        self.writer = CutOff(self.client)
        self.homes = Homes(self.client)
        self.server, self.first, self.second = (str(uuid.uuid4()) for _ in range(3))
        for each in (self.server, self.first, self.second):
            spec = replace(SPEC, server_id=each)
            instance = each != self.server
            made = objects.namespace(spec), objects.matrix_server(spec, PLACE, instance=instance)
            for one in made:
                if instance:
                    one["metadata"]["annotations"] = {objects.INSTANCE_OF: self.server}
                self.writer.write(one, 1)

    def where(self) -> dict[str, str]:
        """Say who lives where, as a Hearth that was just started finds it."""
        found = Homes(self.client)
        return {each: found.of(each) for each in (self.server, self.first, self.second)}

    def exchange(self, instance: str, *, restored: bool) -> None:
        """Do what the provider does, but for the waiting."""
        for each in (self.server, instance):
            if pending := self.homes.pending(self.homes.find(each)):
                homes.move(self.writer, pending, 2)
                homes.end(self.writer, pending, 2)
        if homes.exchanged(self.homes.find(instance)) == restored:
            return
        found = Exchange(self.server, instance, self.homes.of(self.server), self.homes.of(instance), restored)
        homes.begin(self.writer, found, 2)
        homes.move(self.writer, found, 2)
        homes.end(self.writer, found, 2)


@pytest.fixture
def ground(cluster: Cluster | Given, api: Api) -> Iterator[Ground]:
    made = Ground(inline(cluster.kubeconfig))
    yield made
    for each in (made.server, made.first, made.second):
        sweep(api, f"hearth-{each}")


def born(*ids: str) -> list[str]:
    return [f"hearth-{each}" for each in ids]


def test_whoever_was_never_exchanged_lives_where_they_were_born(ground: Ground) -> None:
    nobody = str(uuid.uuid4())
    assert [*ground.where().values()] == born(ground.server, ground.first, ground.second)
    assert ground.homes.find(nobody) is None
    assert ground.homes.soon(nobody) == ground.homes.of(nobody) == f"hearth-{nobody}"


def test_one_exchange_after_the_other_and_back(ground: Ground, api: Api) -> None:
    server, first, second = ground.server, ground.first, ground.second
    ground.exchange(first, restored=True)
    ground.exchange(first, restored=True)
    assert [*ground.where().values()] == born(first, server, second)
    ground.exchange(second, restored=True)
    assert [*ground.where().values()] == born(second, server, first)
    # The instance that was put back last goes, and with it the namespace that has the other's name.
    ground.exchange(second, restored=False)
    ground.exchange(second, restored=False)
    assert [*ground.where().values()] == born(first, server, second)
    ground.exchange(first, restored=False)
    assert [*ground.where().values()] == born(server, first, second)
    assert [homes.exchanged(ground.homes.find(each)) for each in (first, second)] == [False, False]
    for each in (server, first):
        held = api.get(*SERVER, f"hearth-{each}")
        assert held is not None
        assert held["metadata"]["labels"]["hearth.host/server"] == each
        assert (held["metadata"]["annotations"].get(objects.INSTANCE_OF) == server) == (each == first)
        assert held["spec"]["closed"] is True


def test_a_namespace_may_go_though_it_has_the_servers_name(ground: Ground, api: Api) -> None:
    ground.exchange(ground.first, restored=True)
    born_as = api.get("v1", "Namespace", f"hearth-{ground.server}")
    assert born_as is not None
    api.patch(born_as, {"metadata": {"labels": {"hearth.host/server": None}}})  # as good as gone, and seconds sooner
    assert ground.homes.of(ground.server) == f"hearth-{ground.first}"
    assert ground.homes.find(ground.first) is None, "whoever lived there is gone too"
    ground.exchange(ground.second, restored=True)
    assert ground.homes.of(ground.server) == f"hearth-{ground.second}"
    assert ground.homes.of(ground.second) == f"hearth-{ground.first}"


def test_wherever_it_is_cut_off_everybody_lives_in_one_place_and_the_next_call_ends_it(ground: Ground) -> None:
    server, first = ground.server, ground.first
    restored, cut, made = True, 0, []
    while True:
        ground.writer.left = cut
        before = {each: ground.homes.of(each) for each in (server, first)}
        try:
            ground.exchange(first, restored=restored)
        except Cut:
            where = ground.where()
            assert where[server] != where[first], cut
            done = where[server] != before[server]
            assert homes.exchanged(ground.homes.find(first)) == (done == restored), cut
            made.append(done)
        ground.writer.left = 10**6
        ground.exchange(first, restored=restored)
        assert ground.where()[server] != before[server], cut
        if len(made) == cut:
            break
        restored, cut = not restored, cut + 1
    assert made == sorted(made), "once it is made it stays made"
    assert (made[:2], made[2:]) == ([False, False], [True] * (len(made) - 2))
    assert len(made) == 8, "two writes say so, four do it, two end it"


def test_once_the_server_is_configured_no_verb_on_the_instance_closes_it_again(ground: Ground, api: Api) -> None:
    """Cut off before its last write, and the next verbs are the server's: the other namespace keeps its marks."""
    server, first = ground.server, ground.first
    ground.writer.left = 7
    with pytest.raises(Cut):
        ground.exchange(first, restored=True)
    ground.writer.left = 10**6
    assert ground.homes.pending(ground.homes.find(server)) is None
    held = api.get(*SERVER, ground.homes.of(server))
    assert held is not None
    api.patch(held, {"spec": {"closed": None}})
    ground.exchange(first, restored=True)
    held = api.get(*SERVER, f"hearth-{first}")
    assert held is not None
    assert "closed" not in held["spec"]
    ground.exchange(ground.second, restored=True)
    assert [*ground.where().values()] == born(ground.second, server, first), "the marks that stayed harm nobody"


def test_whoever_lives_where_they_were_seen_is_found_without_a_list(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    ground.exchange(ground.first, restored=True)
    where = {each: ground.homes.of(each) for each in (ground.server, ground.first, ground.second)}
    with monkeypatch.context() as patched:
        patched.delattr(type(ground.client), "listed")
        assert {each: ground.homes.of(each) for each in where} == where
    ground.exchange(ground.first, restored=False)
    assert [*ground.where().values()] == born(ground.server, ground.first, ground.second)


def test_the_routed_one_is_never_the_instance(ground: Ground, api: Api) -> None:
    ground.exchange(ground.first, restored=True)
    here = api.get(*SERVER, f"hearth-{ground.server}")
    assert here is not None
    assert here["spec"]["routing"]["unrouted"] is True
    assert here["spec"]["federation"]["enabled"] is False
    assert here["spec"]["backup"]["enabled"] is False


def test_a_worker_that_lost_its_lease_exchanges_nothing(ground: Ground) -> None:
    here, there = born(ground.server, ground.first)
    found = Exchange(ground.server, ground.first, here, there, restored=True)
    ground.writer.change(paths(found.here).namespace, 3, lambda _: None)
    with pytest.raises(StaleFence):
        homes.begin(ground.writer, found, 2)
    assert [*ground.where().values()] == born(ground.server, ground.first, ground.second)


def test_a_namespace_that_is_gone_is_told(ground: Ground) -> None:
    found = Exchange(ground.server, ground.first, "hearth-nowhere", f"hearth-{ground.first}", restored=True)
    with pytest.raises(ProviderError, match="hearth-nowhere is gone"):
        homes.begin(ground.writer, found, 2)
    assert ground.homes.of(ground.first) == f"hearth-{ground.first}"
