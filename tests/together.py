"""Make several people act at the same moment."""

from __future__ import annotations

import threading
from collections.abc import Callable

from django.db import connection

from tenants.errors import Refused


def at_once(calls: list[Callable[[], object]], *, seconds: float = 60) -> list[object]:
    """Make the calls at the same moment, each with a database connection of its own; return results or refusals."""
    gate = threading.Barrier(len(calls))
    outcomes: list[object] = []

    def run(call: Callable[[], object]) -> None:
        try:
            connection.ensure_connection()
            gate.wait(60)
            outcomes.append(call())
        except Refused as refusal:
            outcomes.append(refusal)
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds)
    assert len(outcomes) == len(calls)
    return outcomes
