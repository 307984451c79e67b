"""The alert rules for Prometheus are PromQL over numbers that Hearth has, and leave out none of its causes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest
import yaml

from backups.metrics import LATE
from backups.models import Alarm
from config.env import ROOT

RULES = ROOT / "platform" / "observability" / "rules" / "backups.yaml"
METRIC = re.compile(r"^\| `(?P<name>hearth_\w+)` \| \w+ \| (?P<labels>[^|]*) \|", re.MULTILINE)
DURATION = re.compile(r"\d+[mhd]")


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def selectors(found: Any) -> Iterator[Any]:
    """Yield each vector that an expression asks for."""
    if isinstance(found, promql_parser.VectorSelector):
        yield found
    parts = [getattr(found, name, None) for name in ("lhs", "rhs", "expr")] + list(getattr(found, "args", None) or ())
    for part in parts:
        if part is not None:
            yield from selectors(part)


def known() -> dict[str, set[str]]:
    """Return the metrics that there are, and their labels: `docs/metrics.md` is written from the code."""
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    return {each["name"]: set(re.findall(r"`(\w+)`", each["labels"])) for each in METRIC.finditer(page)}


@pytest.mark.parametrize("rule", rules(), ids=lambda each: each["alert"])
def test_a_rule_asks_for_what_there_is_and_says_what_to_do(rule: dict[str, Any]) -> None:
    found, there = list(selectors(promql_parser.parse(rule["expr"]))), known()
    assert found
    for each in found:
        assert each.name in there
        assert {matcher.name for matcher in each.matchers.matchers} <= there[each.name]
    assert DURATION.fullmatch(rule["for"])
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert set(rule["annotations"]) == {"summary", "description"}
    labels = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
    assert labels <= set(re.findall(r"by \((\w+)\)", rule["expr"]))


def test_each_cause_has_a_rule_and_each_rule_a_cause_that_there_is() -> None:
    said = re.findall(r'hearth_backup_alarms\{cause=~?"([^"]+)"\}', " ".join(each["expr"] for each in rules()))
    assert sorted("|".join(said).split("|")) == sorted(Alarm.Cause.values)


def test_a_threshold_of_a_rule_is_one_that_is_counted() -> None:
    for seconds in re.findall(r'seconds="(\d+)"', RULES.read_text(encoding="utf-8")):
        assert int(seconds) in LATE
