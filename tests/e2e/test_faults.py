"""What a customer sees when something dies at the worst moment: for some seconds a reason, and then their server."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator

import psutil
import pytest
import redis

from tests.chaos import check_whole, kill_during_step, kill_worker
from tests.forms import submit
from tests.stack import Stack
from tests.way import Person, talk, text

pytestmark = [pytest.mark.xdist_group("e2e"), pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def dora(hearth: Stack) -> Iterator[Person]:
    """Dora has an organisation with room for all these servers."""
    person = Person(hearth, "dora@example.org")
    person.sign_up()
    yield person
    person.browser.close()


@pytest.fixture(scope="module")
def organisation(dora: Person) -> str:
    return dora.create_organisation("Faults", "beacon")


@pytest.mark.parametrize("step", ["storage", "start", "accounts"])
def test_the_worker_is_killed_while_it_makes_a_server(
    hearth: Stack, dora: Person, organisation: str, step: str
) -> None:
    path = dora.create_server(organisation, f"killed-at-{step}")
    kill_during_step(hearth, path.split("/")[4], step)
    check_whole(hearth, dora, path)


def test_lost_broker_messages_cost_seconds(hearth: Stack, dora: Person, organisation: str) -> None:
    address = hearth.part("uvicorn").environ()["REDIS_URL"]
    broker = redis.Redis.from_url(address)
    broker.flushall()
    path = dora.create_server(organisation, "flushed")
    broker.flushall()
    broker.close()
    check_whole(hearth, dora, path)


def test_a_killed_synapse_comes_back_and_the_page_says_so(hearth: Stack, dora: Person, organisation: str) -> None:
    path = dora.create_server(organisation, "crashing")
    dora.wait_for(path)
    connection = dora.connection(path)
    for process in _of(path.split("/")[4], "synapse"):
        os.kill(process.pid, signal.SIGKILL)
    end = time.monotonic() + 30
    while "ended by itself" not in text(dora.get(path).text):
        assert time.monotonic() < end, text(dora.get(path).text)
        time.sleep(0.2)
    dora.wait_for(path)
    talk(connection)


def test_suspended_resumed_and_deleted(hearth: Stack, dora: Person, organisation: str) -> None:
    path = dora.create_server(organisation, "verbs")
    dora.wait_for(path)
    connection = dora.connection(path)
    submit(dora.browser, dora.get(f"{path}suspend/"), message="Closed until Monday.")
    dora.wait_for(path, "suspended")
    answer = dora.browser.get(
        f"{connection.url.rstrip('/')}/_matrix/client/v3/sync", headers={"Authorization": "Bearer none"}
    )
    assert answer.status_code in {401, 403}
    page = submit(dora.browser, dora.get(path), "/resume/")
    assert page.status_code == 200
    dora.wait_for(path)
    talk(connection)
    dora.delete_server(path, "verbs.hearth.localhost")
    dora.wait_for(path, "deleted")
    deletion = re.search(rf'href="({path}operations?/[^"]+)">Delete<', dora.get(path).text)
    assert deletion, text(dora.get(path).text)
    assert "The final backup is whole" in text(dora.get(deletion[1]).text)
    assert not _of(path.split("/")[4], "")


def test_kill_9_of_the_agent_and_of_the_worker_at_once(hearth: Stack, dora: Person, organisation: str) -> None:
    path = dora.create_server(organisation, "both")
    dora.wait_for(path)
    connection = dora.connection(path)
    hearth.part("local.agent").kill()
    kill_worker(hearth)
    end = time.monotonic() + 60
    while True:
        try:
            talk(connection)
            break
        except Exception:
            assert time.monotonic() < end
            time.sleep(0.5)


def _of(server_id: str, words: str) -> list[psutil.Process]:
    """Return the processes of one server whose command line has these words."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or [])
        if server_id in command and words in command:
            found.append(process)
    return found
