"""Watches a server's pods of Synapse from the side, to tell which of them ever lived together."""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import httpx

from provisioning.operator.arrangement import SYNAPSE
from tests.cluster.api import Api
from tests.operator.servers import Server

CONFIGURATION = "hearth.host/configuration"


class Watched:
    """Every pod from its making until it is gone, its end included. `together`: configurations that lived at once."""

    def __init__(self, server: Server) -> None:
        self._api: Api = server.api
        self._path = f"/api/v1/namespaces/{server.namespace}/pods"
        found = self._api.request("GET", self._path, params={"labelSelector": SYNAPSE})
        self._version = found["metadata"]["resourceVersion"]
        self._live = {each["metadata"]["name"]: _configuration(each) for each in found["items"]}
        self.together: list[dict[str, str]] = []
        self.configurations = set(self._live.values())
        self.made: list[str] = []
        self._answer: httpx.Response | None = None
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Self:
        options = {"labelSelector": SYNAPSE, "watch": "1", "resourceVersion": self._version}
        request = self._api.http.build_request("GET", self._path, params=options, timeout=httpx.Timeout(5, read=None))
        self._answer = self._api.http.send(request, stream=True)
        assert self._answer.status_code == 200
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._answer is not None
        # Closing it from here would not wake who reads it.
        stream = self._answer.extensions["network_stream"].get_extra_info("socket")
        with suppress(OSError):
            stream.shutdown(2)
        self._thread.join(60)
        self._answer.close()

    def _follow(self) -> None:
        assert self._answer is not None
        with suppress(httpx.HTTPError):
            for line in self._answer.iter_lines():
                event = json.loads(line)
                self._take(event["type"], event["object"])

    def _take(self, kind: str, pod: dict[str, Any]) -> None:
        name = pod["metadata"]["name"]
        if kind == "DELETED":
            self._live.pop(name, None)
            return
        if name not in self._live:
            self.made.append(name)
        self._live[name] = _configuration(pod)
        self.configurations.add(_configuration(pod))
        if len(set(self._live.values())) > 1:
            self.together.append(dict(self._live))


def _configuration(pod: dict[str, Any]) -> str:
    return str(pod["metadata"]["annotations"][CONFIGURATION])
