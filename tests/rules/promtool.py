"""Asks Prometheus's own promtool about alert rules: whether it takes them, and when they fire."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.left_out import need_promtool


@dataclass(frozen=True)
class Case:
    """An alert, the series that it looks at, and when it fires. All times are counted in `step`s from 0 on."""

    alert: str
    series: Mapping[str, str]
    """Numbers one step apart, as Prometheus writes them: `0 1x3` is 0, then 1 at 1, 2, 3 and 4."""
    fires: Sequence[int] = ()
    quiet: Sequence[int] = ()
    labels: str = ""
    """What it carries when it fires, as a selector."""
    step: int = 1
    """Minutes."""


def check(rules: Path) -> str:
    """Return what promtool finds wrong with a file of rules; empty where it takes them all."""
    return _run("check", "rules", "--lint-fatal", str(rules))


def try_out(rules: Path, cases: Iterable[Case], folder: Path) -> str:
    """Return which alerts did not do what the cases say, and when; empty where all did."""
    found = []
    for step, those in _by_step(cases):
        tests = [_test(each) for each in those]
        place = folder / f"cases-{step}.yaml"
        content = {"rule_files": [str(rules)], "evaluation_interval": f"{step}m", "tests": tests}
        place.write_text(yaml.safe_dump(content), encoding="utf-8")
        found.append(_run("test", "rules", str(place)))
    return "".join(found)


def written(groups: Sequence[Mapping[str, Any]], place: Path) -> Path:
    """Write the groups of a PrometheusRule as a file of rules."""
    place.write_text(yaml.safe_dump({"groups": list(groups)}), encoding="utf-8")
    return place


def _by_step(cases: Iterable[Case]) -> Iterator[tuple[int, list[Case]]]:
    cases = list(cases)
    for step in sorted({each.step for each in cases}):
        yield step, [each for each in cases if each.step == step]


def _test(case: Case) -> dict[str, Any]:
    fired = [{"labels": f'{{alertname="{case.alert}"}}', "value": 1}]
    whose = f'alertname="{case.alert}",alertstate="firing"'
    asked = [(at, fired, f"{whose},{case.labels}" if case.labels else whose) for at in case.fires]
    asked += [(at, [], whose) for at in case.quiet]
    return {
        "interval": f"{case.step}m",
        "input_series": [{"series": name, "values": numbers} for name, numbers in case.series.items()],
        "promql_expr_test": [
            {
                "expr": f"count by (alertname) (ALERTS{{{labels}}})",
                "eval_time": f"{at * case.step}m",
                "exp_samples": samples,
            }
            for at, samples, labels in asked
        ],
    }


def _run(*words: str) -> str:
    done = subprocess.run([need_promtool(), *words], capture_output=True, text=True, check=False, timeout=300)
    return f"{done.stdout}{done.stderr}" if done.returncode else ""
