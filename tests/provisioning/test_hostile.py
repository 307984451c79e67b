"""A homeserver that answers what does most harm costs Hearth and the operator neither memory nor a way inside."""

from __future__ import annotations

import asyncio
import contextlib
import tracemalloc
from collections.abc import Callable

import pytest

from provisioning import checks
from provisioning.matrix import Homeserver
from provisioning.operator.probe import Prober
from provisioning.providers.base import ProviderError
from tests.provisioning.hostile import UNPACKED, WAYS, hostile


def _hearth(url: str) -> None:
    with pytest.raises(ProviderError), Homeserver(url, "alice.example") as homeserver:
        checks.check_key(homeserver, "ed25519 a_Test 1uP0Wb6hW0Yq1Yxr0h1kz9Wk7dQ7Ww2mWn2p0t5r6sE")


def _metrics(url: str) -> None:
    with contextlib.suppress(ProviderError):
        assert checks.count_users(f"{url}/metrics") is None


def _operator(url: str) -> None:
    async def ask() -> None:
        prober = Prober(url)
        server = {
            "metadata": {"namespace": "hearth-1"},
            "spec": {"serverName": "alice.example", "synapse": {"version": "1.163.2"}},
        }
        try:
            found = await prober.ask(server)
        finally:
            await prober.close()
        assert not found.ok
        assert len(found.message) < 1000

    asyncio.run(ask())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ask", [_hearth, _metrics, _operator])
def test_a_hostile_answer_does_no_harm(way: str, ask: Callable[[str], None]) -> None:
    with hostile(way) as homeserver:
        tracemalloc.start()
        try:
            ask(homeserver.url)
            assert tracemalloc.get_traced_memory()[1] < UNPACKED
        finally:
            tracemalloc.stop()
        assert "/inside" not in homeserver.asked
