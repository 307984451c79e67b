"""The proxy is invisible until it is told to disturb, and then it does what it says."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.cluster.api import Api, ApiError, Object, connection
from tests.cluster.faults import FaultProxy

pytestmark = pytest.mark.xdist_group("cluster")


def config_map(name: str, namespace: str) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace}}


@pytest.fixture
def through(fault_proxy: FaultProxy) -> Iterator[Api]:
    """An administrator's client whose way leads through the proxy."""
    with Api.from_kubeconfig(fault_proxy.kubeconfig()) as api:
        yield api


class Watcher:
    """Watches the ConfigMaps of a namespace until the stream ends; `how` says how it ended."""

    def __init__(self, kubeconfig: Path, namespace: str) -> None:
        self.events: list[Object] = []
        self.how = ""
        self._namespace = namespace
        url, verify, headers = connection(kubeconfig)
        self._http = httpx.Client(base_url=url, verify=verify, headers=headers, timeout=60, trust_env=False)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def names(self) -> list[str]:
        return [each["object"]["metadata"].get("name", "") for each in self.events]

    def join(self) -> str:
        self._thread.join(60)
        assert not self._thread.is_alive()
        self._http.close()
        return self.how

    def _run(self) -> None:
        path = f"/api/v1/namespaces/{self._namespace}/configmaps"
        try:
            with self._http.stream("GET", path, params={"watch": "true"}) as answer:
                for line in answer.iter_lines():
                    self.events.append(json.loads(line))
            self.how = "ended"
        except httpx.TransportError as error:
            self.how = type(error).__name__


@pytest.fixture
def watcher(fault_proxy: FaultProxy, namespace: str, api: Api) -> Iterator[Watcher]:
    """A watch through the proxy that has seen one object."""
    started = Watcher(fault_proxy.kubeconfig(), namespace)
    api.apply(config_map("first", namespace))
    api.wait("first event", lambda: "first" in started.names())
    yield started
    fault_proxy.cut()
    started.join()


def test_nothing_happens_until_something_is_asked_for(
    fault_proxy: FaultProxy, through: Api, api: Api, namespace: str
) -> None:
    through.apply(config_map("one", namespace))
    assert api.get("v1", "ConfigMap", "one", namespace)
    assert through.get("v1", "ConfigMap", "none", namespace) is None
    names = {each["metadata"]["name"] for each in through.list("v1", "ConfigMap", namespace)}
    assert names - {"kube-root-ca.crt"} == {"one"}
    through.delete("v1", "ConfigMap", "one", namespace)
    counts = fault_proxy.counts(kind="configmaps")
    assert counts == {"patch": 1, "get": 1, "list": 1, "delete": 1}
    assert {each.status for each in fault_proxy.requests} == {200, 201, 404}


def test_large_answers_come_through_whole(through: Api, api: Api) -> None:
    kind = ("apiextensions.k8s.io/v1", "CustomResourceDefinition")
    names = {each["metadata"]["name"] for each in api.list(*kind)}
    assert {each["metadata"]["name"] for each in through.list(*kind)} == names


def test_whose_request_it_is(fault_proxy: FaultProxy, api: Api, namespace: str) -> None:
    with Api.from_kubeconfig(fault_proxy.kubeconfig(api.token(namespace, "default"))) as nobody:
        with pytest.raises(ApiError, match=f"system:serviceaccount:{namespace}:default") as refusal:
            nobody.list("v1", "Secret", namespace)
        assert refusal.value.status == 403


def test_429_for_as_often_as_asked(fault_proxy: FaultProxy, through: Api, namespace: str) -> None:
    fault_proxy.refuse(429, verbs="list", path="/configmaps$", times=2, retry_after=1)
    for _ in range(2):
        with pytest.raises(ApiError, match="injected") as refusal:
            through.list("v1", "ConfigMap", namespace)
        assert refusal.value.status == 429
    through.list("v1", "ConfigMap", namespace)
    assert [each.status for each in fault_proxy.requests if each.kind == "configmaps"] == [429, 429, 200]


def test_the_answer_says_when_to_come_again(fault_proxy: FaultProxy, through: Api) -> None:
    with fault_proxy.refusing(429, retry_after=7):
        assert through.http.get("/api/v1/pods").headers["Retry-After"] == "7"
    assert through.http.get("/api/v1/pods").status_code == 200


def test_only_what_fits_is_refused(fault_proxy: FaultProxy, through: Api, namespace: str) -> None:
    end = fault_proxy.refuse(503, verbs="patch", path="/secrets/")
    through.apply(config_map("fine", namespace))
    with pytest.raises(ApiError, match="503"):
        through.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "no", "namespace": namespace}})
    end()
    end()  # twice is once


def test_a_connection_cut_before_the_answer(fault_proxy: FaultProxy, through: Api) -> None:
    fault_proxy.refuse(0, path="/pods", times=1)
    with pytest.raises(httpx.TransportError):
        through.http.get("/api/v1/pods")
    assert through.http.get("/api/v1/pods").status_code == 200
    assert [each.status for each in fault_proxy.requests] == [0, 200]


def test_a_request_that_is_never_answered(fault_proxy: FaultProxy, through: Api) -> None:
    fault_proxy.refuse(-1, path="/pods", times=1)
    with pytest.raises(httpx.ReadTimeout):
        through.http.get("/api/v1/pods", timeout=0.5)


def test_the_server_is_away(fault_proxy: FaultProxy, through: Api, watcher: Watcher) -> None:
    with fault_proxy.down():
        assert watcher.join() in {"ReadError", "RemoteProtocolError"}
        assert not through.ready()
    assert through.ready()


def test_watches_end(fault_proxy: FaultProxy, watcher: Watcher) -> None:
    assert fault_proxy.watches == 1
    assert fault_proxy.end_watches() == 1
    assert watcher.join() == "ended"
    assert {each["type"] for each in watcher.events} == {"ADDED"}


def test_watches_expire(fault_proxy: FaultProxy, watcher: Watcher) -> None:
    assert fault_proxy.expire_watches() == 1
    assert watcher.join() == "ended"
    last = watcher.events[-1]
    assert (last["type"], last["object"]["code"], last["object"]["reason"]) == ("ERROR", 410, "Expired")


def test_watches_break(fault_proxy: FaultProxy, watcher: Watcher) -> None:
    fault_proxy.break_watches(500)
    assert watcher.join() == "ended"
    assert watcher.events[-1]["object"]["code"] == 500


def test_watches_that_say_nothing_more(fault_proxy: FaultProxy, watcher: Watcher, api: Api, namespace: str) -> None:
    assert fault_proxy.stall_watches() == 1
    api.apply(config_map("second", namespace))
    other = Watcher(fault_proxy.kubeconfig(), namespace)
    api.wait("second event in a new watch", lambda: "second" in other.names())
    assert "second" not in watcher.names()
    assert watcher.how == ""
    assert fault_proxy.cut() >= 2
    other.join()


def test_a_client_that_leaves_ends_its_watch(fault_proxy: FaultProxy, api: Api, namespace: str) -> None:
    url, verify, headers = connection(fault_proxy.kubeconfig())
    with (
        httpx.Client(base_url=url, verify=verify, headers=headers, trust_env=False) as http,
        http.stream("GET", "/api/v1/configmaps", params={"watch": "true"}),
    ):
        api.wait("watch", lambda: fault_proxy.watches == 1)
    api.wait("end of the watch", lambda: fault_proxy.watches == 0)


def test_the_record_knows_moments(fault_proxy: FaultProxy, through: Api) -> None:
    through.list("v1", "Pod")
    later = time.monotonic()
    through.list("v1", "Pod")
    through.list("v1", "Node")
    assert fault_proxy.counts(since=later, kind="pods") == {"list": 1}
    assert fault_proxy.counts(since=later)["list"] == 2
