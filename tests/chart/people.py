"""Alice and Bob on a server that the chart made, spoken to through the right process for each path."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from typing import Any

import httpx

from tests.chart.processes import Fleet, pods_of
from tests.chart.render import Rendered

NULL = "\0"


class Router:
    """Sends each request where the server's HTTPRoute sends it, as a gateway would."""

    def __init__(self, fleet: Fleet) -> None:
        self.rules = rules_of(fleet.rendered)
        pods = pods_of(fleet.rendered)
        self.clients = {pod: fleet.client(pod) for pod in pods}
        self.first = {service: next(pod for pod in pods if pod.startswith(f"{service}-")) for service, _ in self.rules}

    def close(self) -> None:
        for client in self.clients.values():
            client.close()

    def pod(self, path: str) -> str:
        """Return the pod that serves a path."""
        return self.first[route(self.rules, path)]

    def request(self, method: str, path: str, token: str = "", **options: Any) -> httpx.Response:
        """Ask the pod that serves the path, as patiently as a client of whom the server wants patience."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        client = self.clients[self.pod(path.partition("?")[0])]
        while True:
            response = client.request(method, path, headers=headers, **options)
            if response.status_code != 429:
                return response
            time.sleep(response.json()["retry_after_ms"] / 1000)

    def ask(self, method: str, path: str, token: str = "", **options: Any) -> dict[str, Any]:
        """Ask, expect success, and return the JSON."""
        response = self.request(method, path, token, **options)
        assert response.status_code == 200, f"{method} {path} by {self.pod(path)}: {response.text}"
        content: dict[str, Any] = response.json()
        return content


def rules_of(rendered: Rendered) -> list[tuple[str, dict[str, str]]]:
    """Return service and path match of each rule of the HTTPRoute, in its order."""
    return [
        (rule["backendRefs"][0]["name"], match["path"])
        for rule in rendered["HTTPRoute/synapse"]["spec"]["rules"]
        for match in rule["matches"]
    ]


def route(rules: list[tuple[str, dict[str, str]]], path: str) -> str:
    """Return the service that serves a path; patterns go before prefixes."""
    found = [service for service, match in rules if matches(match, path)]
    patterns = [service for service, match in rules if match["type"] == "RegularExpression" and matches(match, path)]
    assert len(set(patterns)) <= 1, f"{path} is claimed by {patterns}"
    assert found, f"nobody serves {path}"
    return found[0]


def matches(match: dict[str, str], path: str) -> bool:
    """Tell whether a path match of an HTTPRoute holds."""
    if match["type"] == "RegularExpression":
        return re.fullmatch(match["value"], path) is not None
    return path == match["value"] or path.startswith(match["value"].rstrip("/") + "/")


def make_user(fleet: Fleet, name: str) -> str:
    """Make an account by the registration secret, inside of the server; return its access token."""
    with fleet.client("synapse-main-0") as main:
        nonce = main.get("/_synapse/admin/v1/register").json()["nonce"]
        words = (nonce, name, "password-of-" + name, "notadmin")
        key = fleet.secret["registration"].encode()
        mac = hmac.new(key, NULL.join(words).encode(), hashlib.sha1).hexdigest()
        body = {"nonce": nonce, "username": name, "password": words[2], "admin": False, "mac": mac}
        response = main.post("/_synapse/admin/v1/register", json=body)
    assert response.status_code == 200, response.text
    token: str = response.json()["access_token"]
    return token
