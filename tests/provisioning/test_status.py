"""Phase and reason are a pure function of what is known."""

from __future__ import annotations

from typing import Any

import pytest
from django.utils import timezone

from provisioning.models import Operation
from provisioning.providers.base import Observation
from provisioning.spec import CLOSED, RUNNING, SUSPENDED
from provisioning.status import DOING, Situation, evaluate

NOW = timezone.now()


def operation(kind: str, state: str, **fields: Any) -> Operation:
    return Operation(kind=kind, state=state, **fields)


def seen(**fields: Any) -> Observation:
    return Observation(server_id="s", **({"exists": True, "running": True} | fields))


FAILED = {"error_code": "DiskFull", "error": "The disk is full."}
TABLE: list[tuple[str, Situation, str, str]] = [
    ("gone", Situation(deleted=True, applied_mode=RUNNING), "deleted", "Deleted"),
    ("nothing yet", Situation(), "pending", "Queued"),
    ("create waits", Situation(operation=operation("create", "queued")), "pending", "Queued"),
    ("create runs", Situation(operation=operation("create", "running", started=NOW)), "progressing", "Creating"),
    ("create backs off", Situation(operation=operation("create", "queued", started=NOW)), "progressing", "Creating"),
    ("create failed", Situation(operation=operation("create", "failed", **FAILED)), "failed", "DiskFull"),
    ("create cancelled", Situation(operation=operation("create", "cancelled")), "failed", "Cancelled"),
    ("ready", Situation(applied_mode=RUNNING, seen=seen(), checked=True), "ready", ""),
    ("just started", Situation(applied_mode=RUNNING, seen=seen()), "progressing", "Checking"),
    (
        "a check fails",
        Situation(applied_mode=RUNNING, seen=seen(), checked=True, check_reason="X", check_message="No."),
        "degraded",
        "X",
    ),
    (
        "crashed",
        Situation(applied_mode=RUNNING, seen=seen(running=False, reason="SynapseCrashed"), checked=True),
        "degraded",
        "SynapseCrashed",
    ),
    ("down without a reason", Situation(applied_mode=RUNNING, seen=seen(running=False)), "degraded", "NotRunning"),
    ("database down", Situation(applied_mode=RUNNING, seen=seen(reason="DatabaseDown")), "degraded", "DatabaseDown"),
    (
        "another key",
        Situation(applied_mode=RUNNING, seen=seen(running=False, reason="SigningKeyMismatch")),
        "failed",
        "SigningKeyMismatch",
    ),
    ("unknown there", Situation(applied_mode=RUNNING, seen=seen(exists=False)), "failed", "ServerMissing"),
    ("nobody answers", Situation(applied_mode=RUNNING, unreachable="No agent."), "degraded", "ProviderUnreachable"),
    ("not looked yet", Situation(applied_mode=RUNNING), "progressing", "Observing"),
    ("suspended", Situation(applied_mode=SUSPENDED, seen=seen(suspended=True)), "suspended", "Suspended"),
    ("in its grace period", Situation(applied_mode=CLOSED, seen=seen()), "suspended", "DeletionScheduled"),
    (
        "an upgrade failed, it runs",
        Situation(applied_mode=RUNNING, seen=seen(), checked=True, operation=operation("upgrade", "failed", **FAILED)),
        "degraded",
        "DiskFull",
    ),
    (
        "an upgrade failed after it stopped the server",
        Situation(
            applied_mode=RUNNING,
            seen=seen(running=False),
            checked=True,
            operation=operation("upgrade", "failed", **FAILED),
        ),
        "degraded",
        "DiskFull",
    ),
    (
        "an upgrade failed, and it crashed",
        Situation(
            applied_mode=RUNNING,
            seen=seen(running=False, reason="SynapseCrashed"),
            operation=operation("upgrade", "failed", **FAILED),
        ),
        "degraded",
        "SynapseCrashed",
    ),
    (
        "a delete failed",
        Situation(applied_mode=CLOSED, seen=seen(), operation=operation("delete", "failed", **FAILED)),
        "failed",
        "DiskFull",
    ),
    (
        "a cancelled change leaves it as it is",
        Situation(applied_mode=RUNNING, seen=seen(), checked=True, operation=operation("upgrade", "cancelled")),
        "ready",
        "",
    ),
    (
        "a new password disturbs nobody",
        Situation(applied_mode=RUNNING, seen=seen(), checked=True, operation=operation("password", "running")),
        "ready",
        "",
    ),
]


@pytest.mark.parametrize(("situation", "phase", "reason"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_table(situation: Situation, phase: str, reason: str) -> None:
    verdict = evaluate(situation)
    assert verdict[:2] == (phase, reason)
    assert verdict[2] or phase == "ready", "every reason has a sentence"


BESIDE = ("restore", "copy", "switch", "go-back", "drop", "export")
"""Kinds that work beside the server until they stop it."""


@pytest.mark.parametrize("kind", [kind for kind in Operation.Kind if kind not in ("password", *BESIDE)])
def test_every_kind_says_what_goes_on(kind: str) -> None:
    running = Situation(
        applied_mode=RUNNING, seen=seen(), checked=True, operation=operation(kind, "running", started=NOW)
    )
    assert evaluate(running) == DOING[kind]


@pytest.mark.parametrize("kind", BESIDE)
@pytest.mark.parametrize("state", ["running", "failed"])
def test_a_server_is_ready_whatever_becomes_of_what_is_brought_back_beside_it(kind: str, state: str) -> None:
    aside = operation(kind, state, error="The store is away.", error_code="StoreAway")
    assert evaluate(Situation(applied_mode=RUNNING, seen=seen(), checked=True, operation=aside))[0] == "ready"


@pytest.mark.parametrize("kind", ["restore", "switch", "go-back"])
def test_while_data_are_exchanged_that_is_what_is_said(kind: str) -> None:
    stopped = seen(running=False)
    now = Situation(applied_mode=RUNNING, seen=stopped, checked=True, operation=operation(kind, "running"))
    assert evaluate(now)[1] == "Restoring"
    failed = operation(kind, "failed", error="The disk is full.", error_code="DiskFull")
    now = Situation(applied_mode=RUNNING, seen=stopped, checked=True, operation=failed)
    assert evaluate(now)[:2] == ("degraded", "DiskFull")
    assert "The server is stopped" in evaluate(now)[2]
