"""What is never carried out: documents that are no server's, and values of a wrong type."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from provisioning.operator.children import ALWAYS, Place
from provisioning.operator.kube.errors import ApiError
from provisioning.operator.ownership import Owner
from provisioning.operator.reasons import of_api_error
from provisioning.operator.render import Document, RenderError
from provisioning.operator.rendering import Asked, Rendering
from provisioning.operator.store import Store
from tests.chart import render, values
from tests.cluster.api import Api
from tests.cluster.api import ApiError as Refusal

API = {"StatefulSet": "apps/v1", "NetworkPolicy": "networking.k8s.io/v1", "Service": "v1"}
OWNER = Owner("hearth-1", "synapse", "uid")


class Broken:
    """A chart that has lost some of its templates."""

    def __init__(self, places: Iterable[Place]) -> None:
        self._places = list(places)

    async def render(self, *_words: Any, **_options: Any) -> list[Document]:
        return [
            Document(str(number), {"apiVersion": API[place.kind], "kind": place.kind, "metadata": {"name": place.name}})
            for number, place in enumerate(self._places)
        ]

    async def close(self) -> None:
        """Nothing runs."""


def rendered(places: Iterable[Place]) -> list[Place]:
    async def run() -> list[Place]:
        rendering = Rendering(Broken(places), Store(lambda _namespace, _urgent: None))
        async with rendering.of(OWNER, Asked(values.monolith())) as found:
            return [each.place for each in found.wanted]

    return asyncio.run(run())


@pytest.mark.parametrize("lost", [*ALWAYS, None])
def test_a_chart_that_has_lost_a_part_takes_down_no_server(lost: Place | None) -> None:
    there = [] if lost is None else [*(ALWAYS - {lost}), Place("Service", "synapse-main")]
    with pytest.raises(RenderError, match="which every server has"):
        rendered(there)


def test_a_whole_chart_is_carried_out() -> None:
    assert set(rendered(ALWAYS)) == ALWAYS


@pytest.mark.parametrize("change", [{}, {"suspended": {"message": "Back on Monday."}}])
@pytest.mark.parametrize("spec", [values.monolith, values.workers, values.managed])
def test_every_server_has_what_every_server_has(spec: Any, change: dict[str, Any]) -> None:
    found = render.render(spec(**change))
    assert {f"{place.kind}/{place.name}" for place in ALWAYS} <= set(found)


@pytest.mark.xdist_group("cluster-operator")
def test_a_value_of_a_wrong_type_is_refused_for_good(api: Api, namespace: str) -> None:
    meta = {"name": "a", "namespace": namespace, "annotations": {"hearth.host/configuration": 60441116}}
    with pytest.raises(Refusal) as caught:
        api.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta})
    error = ApiError(caught.value.status, "", caught.value.message)
    assert not error.passing
    assert of_api_error(error).reason == "Refused"
