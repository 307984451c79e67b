"""A region whose address answers nonsense, or whose credentials can't be opened, is one region's trouble alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from kubernetes import client as library

from provisioning import clusters, observer
from provisioning.models import Cluster, Region, ServerStatus
from provisioning.providers.base import ProviderError
from provisioning.providers.kubernetes.client import Client
from provisioning.providers.kubernetes.provider import KubernetesProvider
from security.errors import KeyGone
from tenants.models import Server
from tests.provisioning.fakes import ScriptedProvider
from tests.provisioning.kubernetes.test_objects import PLACE
from tests.provisioning.test_observer import look, made

__all__ = ["made"]


@pytest.fixture(params=["<html>Sign in to the network</html>", "", "[]", "7", "null"])
def portal(request: pytest.FixtureRequest) -> Iterator[str]:
    """What stands before an API server and answers in its place: its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = str(request.param).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_words: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_what_is_no_api_server_is_told_in_words(portal: str) -> None:
    client = Client(library.ApiClient(library.Configuration(host=portal)), patience=0.5)
    with pytest.raises(ProviderError, match=r"something else.*not touched") as caught:
        KubernetesProvider(client, PLACE).observe()
    assert (caught.value.code, caught.value.retry) == ("RegionUnreachable", True)
    client.close()


@pytest.mark.django_db(transaction=True)
def test_a_region_that_can_not_be_opened_hides_no_other(
    made: Server, provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_cluster: Cluster) -> Client:
        raise KeyGone("Its key is gone.")

    monkeypatch.setattr(clusters, "client_of", gone)
    region = Region.objects.create(
        code="aaa", provider=Region.Provider.KUBERNETES, base_domain="aaa.example", open=True
    )
    Cluster.objects.create(region=region, kubeconfig="{}", synapse_image="s:{version}")
    assert look(made, provider).phase == "ready"
    ServerStatus.objects.filter(server=made).update(last_seen=None)
    observer.observe()
    assert ServerStatus.objects.get(server=made).last_seen
    Server.objects.filter(pk=made.pk).update(region=region.code)
    observer.observe()
    found = ServerStatus.objects.get(server=made)
    assert (found.phase, found.reason) == ("degraded", "ProviderUnreachable")
    assert "Hearth itself could not look" in found.message
    assert "key" not in found.message
