"""Alerts fire when they should and not when they shouldn't, as Prometheus itself sees it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart import values
from tests.chart.render import NAMESPACE, helm, render
from tests.rules.promtool import Case, check, try_out, written

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "platform" / "observability" / "rules").glob("*.yaml"))
BACKUPS = ROOT / "platform" / "observability" / "rules" / "backups.yaml"
SERVERS = {"monolith": values.monolith, "workers": values.workers, "managed": values.managed}
SYSTEM = "hearth-system"
HERE = f'namespace="{NAMESPACE}"'
LEADS, QUEUE = (f'hearth_operator_{each}{{namespace="{SYSTEM}",pod="a"}}' for each in ("leads", "queue"))
AGENT = f'kube_deployment_status_replicas_ready{{{HERE},deployment="backup-agent"}}'
EXPIRES = f'certmanager_certificate_expiration_timestamp_seconds{{{HERE},name="synapse"}}'


def alarms(cause: str, numbers: str) -> dict[str, str]:
    """Return the series of one cause of alarms, beside that of another which never comes true."""
    return {f'hearth_backup_alarms{{cause="{cause}"}}': numbers, 'hearth_backup_alarms{cause="other"}': "0x200"}


def late(seconds: int, numbers: str) -> dict[str, str]:
    return {f'hearth_backup_copy_late_servers{{seconds="{seconds}"}}': numbers}


def at_fault(numbers: str) -> dict[str, str]:
    return {'hearth_backup_copies_at_fault{code="StoreAway"}': numbers}


# Each alert about backups: true for too short a time, then for long enough, then over.
CASES = [
    Case("HearthBackupsAtRisk", alarms("behind", "0 1x3 0x5 2x9 0x9"), [16, 18], [0, 4, 9, 12, 22], 'cause="behind"'),
    Case("HearthBackupEngineSilent", alarms("silent", "0 1x8 0x5 3x14 0x9"), [27], [9, 12, 24, 33], 'cause="silent"'),
    Case("HearthBackupLate", alarms("late", "0 1x25 0x5 1x35 0x9"), [65], [26, 60, 70], 'severity="warning"'),
    Case("HearthBackupProofFailed", alarms("proof", "0 1x3 0x5 1x9 0x9"), [17], [4, 9, 12, 22], 'severity="critical"'),
    Case("HearthBackupDrillFailed", {"hearth_backup_drills_failed": "0 1x3 0x5 1x9 0x9"}, [17], [4, 9, 12, 22]),
    Case("HearthBackupRpo", {"hearth_backup_rpo_seconds": "0 9000x3 900x9 901x9 899x9"}, [22], [4, 13, 17, 27]),
    Case("HearthBackupStoreNotLookedThrough", alarms("expiry", "0 1x50 0x5 1x70 0x9"), [122], [51, 115, 132]),
    Case("HearthBackupKeptLonger", alarms("plan", "0 1x20 0x5 1x30 0x9"), [55], [21, 48, 60], step=60),
    Case("HearthBackupCopyLate", late(900, "0 1x12 0x5 1x20 0x9"), [38], [13, 33, 43]),
    Case("HearthBackupCopyLate", late(300, "0 1x99"), [], [90]),  # of few minutes nobody is told
    Case("HearthBackupCopyAlarm", alarms("copy", "0 1x12 0x5 1x20 0x9"), [38], [13, 33, 43]),
    Case("HearthBackupCopiesAtFault", at_fault("0 1x25 0x5 1x35 0x9"), [67], [26, 60, 72], 'code="StoreAway"'),
    Case("HearthBackupCopiesWait", {"hearth_backup_copy_waiting_seconds": "0 601x12 600x5 601x20 0"}, [38], [13, 33]),
    Case("HearthBackupsUnobserved", {"unrelated": "1x20"}, [6], [3]),
    Case("HearthBackupsUnobserved", alarms("none", "0x60") | {"hearth_heartbeat_age_seconds": "5x60"}, [], [50]),
    Case(
        "HearthBackupsUnobserved",
        alarms("none", "0x60") | {'hearth_heartbeat_age_seconds{worker="a"}': "5x9 121x9 5x9"}, [17], [9, 13, 22],
    ),
]  # fmt: skip

OF_A_SERVER = [
    Case("MatrixServerDown", {f'up{{{HERE},job="synapse-main"}}': "1x5 0x1 1x5 0x9 1x5"}, [18], [3, 7, 12, 26]),
    Case("MatrixServerDown", {'up{namespace="another",job="synapse-main"}': "1x9"}, [4], [1], 'severity="critical"'),
    Case("MatrixDatabaseDown", {f'cnpg_collector_up{{{HERE},cluster="postgres"}}': "1x5 0x9 1x5"}, [10], [4, 18]),
    Case("MatrixBackupsStopped", {AGENT: "1x5 0x50 1x5 0x70 1x5"}, [130], [5, 55, 115, 136], 'severity="critical"'),
    Case("MatrixCertificateExpires", {EXPIRES: "604000x30 2592000x70 604000x70"}, [170], [30, 100, 150]),
]

OF_THE_OPERATOR = [
    Case("HearthOperatorDoesNotAct", {LEADS: "1x5 0x2 1x5 0x9 1x5"}, [22], [5, 8, 13, 27]),
    Case("HearthOperatorDoesNotAct", {"unrelated": "1x20"}, [6], [3], 'severity="critical"'),
    Case("HearthOperatorIsBehind", {QUEUE: "5x10 0x5 5x20 0x5"}, [35], [0, 10, 25, 42]),
]


@pytest.mark.parametrize("rules", FILES, ids=lambda each: each.name)
def test_prometheus_takes_the_rules(rules: Path) -> None:
    assert check(rules) == ""


@pytest.mark.parametrize("name", SERVERS)
def test_prometheus_takes_the_rules_of_a_server(name: str, tmp_path: Path) -> None:
    assert check(of_a_server(name, tmp_path)) == ""


def test_prometheus_takes_the_rules_of_the_operator(tmp_path: Path) -> None:
    assert check(of_the_operator(tmp_path)) == ""


def test_alerts_about_backups_fire_when_they_should(tmp_path: Path) -> None:
    assert try_out(BACKUPS, CASES, tmp_path) == ""


def test_each_alert_about_backups_is_tried_out() -> None:
    groups = yaml.safe_load(BACKUPS.read_text(encoding="utf-8"))["groups"]
    alerts = {rule["alert"] for group in groups for rule in group["rules"]}
    assert {case.alert for case in CASES if case.fires} == alerts
    assert {case.alert for case in CASES if case.quiet} == alerts


def test_alerts_about_a_server_fire_when_they_should(tmp_path: Path) -> None:
    assert try_out(of_a_server("workers", tmp_path), OF_A_SERVER, tmp_path) == ""


def test_alerts_about_the_operator_fire_when_they_should(tmp_path: Path) -> None:
    assert try_out(of_the_operator(tmp_path), OF_THE_OPERATOR, tmp_path) == ""


@pytest.mark.parametrize(
    "wrong",
    [
        Case("HearthBackupLate", alarms("late", "0x40"), [35]),
        Case("HearthBackupLate", alarms("late", "1x40"), [], [35]),
        Case("HearthBackupLate", alarms("late", "1x40"), [35], labels='severity="critical"'),
    ],
    ids=["does-not-fire", "fires", "fires-otherwise"],
)
def test_an_alert_that_does_something_else_is_told(wrong: Case, tmp_path: Path) -> None:
    assert 'alertname=\\"HearthBackupLate\\"' in try_out(BACKUPS, [wrong], tmp_path)


def test_a_rule_that_is_none_is_told(tmp_path: Path) -> None:
    group = {"name": "mine", "rules": [{"alert": "Mine", "expr": "sum("}]}
    assert "could not parse expression" in check(written([group], tmp_path / "rules.yaml"))


def of_a_server(name: str, folder: Path) -> Path:
    """Write the rules that the chart makes for a server that is backed up."""
    groups = render(SERVERS[name](backup=values.BACKUP))["PrometheusRule/synapse"]["spec"]["groups"]
    return written(groups, folder / "server.yaml")


def of_the_operator(folder: Path) -> Path:
    """Write the rules that Hearth's own chart has."""
    words = [helm(), "template", "hearth", str(ROOT / "platform" / "deploy"), "--namespace", SYSTEM]
    options = ["--set", "operator.image=images.example/hearth:1,monitoring.enabled=true"]
    text = subprocess.run([*words, *options], check=True, capture_output=True, text=True, timeout=60).stdout
    found: list[dict[str, Any]] = [each for each in yaml.safe_load_all(text) if each]
    (rule,) = [each for each in found if each["kind"] == "PrometheusRule"]
    return written(rule["spec"]["groups"], folder / "operator.yaml")
