"""A cluster that is there already takes the place of a new one: KUBECONFIG names it."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn, Self

from tests.cluster.api import Api
from tests.cluster.furnish import MARK, furnish
from tests.left_out import leave_out


class Given:
    """Somebody's cluster. Tests may fill it but never stop a part of it."""

    def __init__(self, kubeconfig: Path) -> None:
        """Raise `RuntimeError` unless the cluster says of itself that tests may use it."""
        self.kubeconfig = kubeconfig
        self.api = Api.from_kubeconfig(kubeconfig)
        self.url = str(self.api.http.base_url)
        labels = (self.api.get("v1", "Namespace", "kube-system") or {}).get("metadata", {}).get("labels", {})
        if not MARK.items() <= labels.items():
            self.api.close()
            mark = "=".join(*MARK.items())
            raise RuntimeError(
                f"KUBECONFIG names the cluster {self.url}, and tests would make and delete things in it. Nothing was "
                f"changed. If it is for tests, say so: kubectl label namespace kube-system {mark}. If not, run the "
                "tests without KUBECONFIG: they start a cluster of their own."
            )

    def __enter__(self) -> Self:
        furnish(self.api, nodes=0, keep=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.api.close()

    def restart_api_server(self, *_: object, **__: object) -> NoReturn:
        """Leave the running test out."""
        leave_out("the cluster of KUBECONFIG is not ours to restart.")

    stop_api_server = start_api_server = restart_api_server

    def tail(self, *_: object) -> str:
        """Return nothing: its logs are not here."""
        return ""
