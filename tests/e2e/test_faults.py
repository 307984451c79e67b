"""What a customer sees when something dies at the worst moment: for some seconds a reason, and then their server.

All of it happens to one server (`OneServer`), which the last test deletes.
"""

from __future__ import annotations

import os
import re
import signal
import time

import psutil
import pytest

from tests.chaos import check_whole, kill_worker
from tests.e2e.conftest import OneServer
from tests.forms import submit
from tests.way import talk, text

pytestmark = [pytest.mark.xdist_group("e2e"), pytest.mark.timeout(300)]


def test_lost_messages_and_a_killed_worker_cost_seconds(server: OneServer) -> None:
    """`make chaos` kills in every step, and at random moments."""
    check_whole(server.hearth, server.dora, server.path, server.connection)


def test_a_killed_synapse_comes_back_and_the_page_says_so(server: OneServer) -> None:
    dora, path = server.dora, server.path
    for process in _of(path.split("/")[4], "synapse"):
        os.kill(process.pid, signal.SIGKILL)
    end = time.monotonic() + 60
    while "ended by itself" not in text(dora.get(path).text):
        assert time.monotonic() < end, text(dora.get(path).text)
        time.sleep(0.2)
    dora.wait_for(path)
    talk(server.connection)


def test_kill_9_of_the_agent_and_of_the_worker_at_once(server: OneServer) -> None:
    server.hearth.part("local.agent").kill()
    kill_worker(server.hearth)
    end = time.monotonic() + 120
    while True:
        try:
            talk(server.connection)
            break
        except Exception:
            assert time.monotonic() < end
            time.sleep(0.5)


def test_suspended_resumed_and_deleted(server: OneServer) -> None:
    dora, path = server.dora, server.path
    submit(dora.browser, dora.get(f"{path}suspend/"), message="Closed until Monday.")
    dora.wait_for(path, "suspended")
    answer = dora.browser.get(
        f"{server.connection.url.rstrip('/')}/_matrix/client/v3/sync", headers={"Authorization": "Bearer none"}
    )
    assert answer.status_code in {401, 403}
    page = submit(dora.browser, dora.get(path), "/resume/")
    assert page.status_code == 200
    dora.wait_for(path)
    talk(server.connection)
    server.forget()
    dora.delete_server(path, f"{server.name}.hearth.localhost")
    dora.wait_for(path, "deleted")
    deletion = re.search(rf'href="({path}operations?/[^"]+)">Delete<', dora.get(path).text)
    assert deletion, text(dora.get(path).text)
    assert "The final backup is whole" in text(dora.get(deletion[1]).text)
    assert not _of(path.split("/")[4], "")


def _of(server_id: str, words: str) -> list[psutil.Process]:
    """Return the processes of one server whose command line has these words."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or [])
        if server_id in command and words in command:
            found.append(process)
    return found
