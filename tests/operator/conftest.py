"""An operator on the run's cluster, servers to watch over, and a stand-in that answers for homeservers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.operator.homeservers import Homeservers
from tests.operator.installed import as_hearth, as_operator, installed
from tests.operator.process import Operator
from tests.operator.servers import Server, Servers

if TYPE_CHECKING:
    from tests.cluster.given import Given
    from tests.cluster.launch import Cluster


__all__ = ["as_hearth", "as_operator", "installed"]


@pytest.fixture(scope="session")
def homeservers() -> Iterator[Homeservers]:
    """The stand-in for every homeserver."""
    with Homeservers() as running:
        yield running


@pytest.fixture
def servers(cluster: Cluster | Given, homeservers: Homeservers) -> Iterator[Servers]:
    """Makes MatrixServers. All go after the test."""
    made = Servers(cluster.api)
    yield made
    made.remove()
    homeservers.silent.clear()
    homeservers.versions.clear()


@pytest.fixture(scope="module")
def operator(
    cluster: Cluster | Given, tmp_path_factory: pytest.TempPathFactory, homeservers: Homeservers
) -> Iterator[Operator]:
    """An operator with all rights, for all tests of a file."""
    folder = tmp_path_factory.mktemp("operator")
    with Operator(cluster.kubeconfig, folder, homeservers.address) as running:
        yield running


@pytest.fixture
def server(operator: Operator, servers: Servers) -> Server:
    """The smallest server that needs no database of the cluster's, Ready."""
    made = servers.make()
    made.wait_ready()
    return made


@pytest.fixture
def new_operator(cluster: Cluster | Given, tmp_path: Path, homeservers: Homeservers) -> Callable[..., Operator]:
    """Return a function that gives another operator, to be used as a context manager."""

    def make(*options: str, name: str = "operator", kubeconfig: Path | None = None) -> Operator:
        return Operator(kubeconfig or cluster.kubeconfig, tmp_path, homeservers.address, *options, name=name)

    return make
