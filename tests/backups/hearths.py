"""Hearth's side of the engine's calls, in memory."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec

from backups.engine.hearth import SYNC, Answer, Order, OrderReport, Report


class Hearth:
    """Takes reports, gives orders until they have ended."""

    def __init__(self) -> None:
        self.orders: list[Order] = []
        self.reports: list[Report] = []
        self.points: set[str] = set()

    def post(self, path: str, body: dict[str, Any], *, repeatable: bool = False) -> dict[str, Any]:
        assert (path, repeatable) == (SYNC, True)
        report = msgspec.convert(body, Report)
        self.reports.append(report)
        self.points |= {each.manifest.id for each in report.points}
        orders = tuple(each for each in self.orders if not self.ended(each.id))
        answer = Answer(orders=orders, known=tuple(self.points))
        found: dict[str, Any] = msgspec.to_builtins(answer)
        return found

    def ended(self, order: uuid.UUID) -> OrderReport | None:
        """How an order ended, as soon as it was told."""
        told = (each for report in list(self.reports) for each in report.orders)
        return next((each for each in told if each.id == order and each.state != "taken"), None)
