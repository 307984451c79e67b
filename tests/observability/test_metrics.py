"""What Prometheus would read: every number is right, listed, and there even when nothing is in it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import connection
from django.test import Client
from django.utils import timezone
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families as parse

from config.management.commands.metrics_page import PAGE
from config.management.commands.metrics_page import page as list_of_metrics
from notifications.models import Mail
from observability import gauges, metrics, processes
from provisioning.models import Heartbeat, Operation, ServerStatus
from tenants.models import Organisation, Server
from tests.stack import ROOT

OPEN_METRICS = "application/openmetrics-text; version=1.0.0"


@pytest.fixture(autouse=True)
def _database(db: None) -> None:
    """Every answer asks the database."""


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


def make_server(name: str, phase: str) -> Server:
    organisation, _ = Organisation.objects.get_or_create(name="Alice & Co", slug="alice-co")
    server = Server.objects.create(
        organisation=organisation, name=name, server_name=f"{name}.example", region="local", version="1.150.0", users=9
    )
    ServerStatus.objects.create(server=server, phase=phase)
    return server


def test_the_page_lists_exactly_these_metrics() -> None:
    assert PAGE.read_text(encoding="utf-8") == list_of_metrics(), "Run: manage.py metrics_page"


def test_what_is_scraped_is_listed_and_what_is_listed_is_scraped() -> None:
    Client().get("/healthz")
    Heartbeat.objects.create(name="beat", at=timezone.now())
    text, form = metrics.page("")
    assert form.startswith("text/plain")
    found = {
        f"{family.name}_total" if family.type == "counter" else family.name: family
        for family in parse(text.decode())
        if family.name.startswith("hearth_")
    }
    assert found.keys() == metrics.CATALOGUE.keys()
    for name, family in found.items():
        listed = metrics.CATALOGUE[name]
        assert (family.type, family.documentation) == (listed.kind, listed.help)
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert labels in (set(listed.labels), set())  # none where nothing was counted yet


def test_the_newer_form_too() -> None:
    text, form = metrics.page(OPEN_METRICS)
    assert form.startswith(OPEN_METRICS)
    assert text.endswith(b"# EOF\n")


def test_servers_by_phase() -> None:
    for name, phase in (("a", "ready"), ("b", "ready"), ("c", "failed"), ("d", "deleted")):
        make_server(name, phase)
    assert [value("hearth_servers", phase=phase) for phase in ("ready", "failed", "pending")] == [2, 1, 0]
    assert value("hearth_servers", phase="deleted") is None


def test_operations_by_state() -> None:
    now = timezone.now()
    for number, (state, finished) in enumerate(
        [
            ("queued", None),
            ("running", None),
            ("failed", now - timedelta(hours=23)),
            ("failed", now - timedelta(hours=25)),
            ("succeeded", now),
        ]
    ):
        server = make_server(f"s{number}", "ready")
        Operation.objects.create(
            server=server, kind="create", generation=1, state=state, run_after=now, finished=finished
        )
    states = {state: value("hearth_operations", state=state) for state in Operation.State.values}
    assert states == {"queued": 1, "running": 1, "failed": 1, "succeeded": 1, "cancelled": 0}


def test_the_oldest_waiting_operation() -> None:
    assert value("hearth_operation_oldest_waiting_seconds") == 0
    for number, (state, age) in enumerate([("queued", 60), ("queued", 600), ("running", 6000)]):
        made = Operation.objects.create(
            server=make_server(f"s{number}", "ready"),
            kind="create",
            generation=1,
            state=state,
            run_after=timezone.now(),
        )
        Operation.objects.filter(pk=made.pk).update(created=timezone.now() - timedelta(seconds=age))
    assert value("hearth_operation_oldest_waiting_seconds") == pytest.approx(600, abs=30)


def test_heartbeats_and_mails() -> None:
    assert value("hearth_heartbeat_age_seconds", part="beat") is None
    Heartbeat.objects.create(name="beat", at=timezone.now() - timedelta(seconds=90))
    Heartbeat.objects.create(name="worker", at=timezone.now() + timedelta(hours=1))
    assert value("hearth_heartbeat_age_seconds", part="beat") == pytest.approx(90, abs=30)
    assert value("hearth_heartbeat_age_seconds", part="worker") == 0  # the clock was put back
    for state in ("queued", "queued", "sent", "failed", "inbox"):
        Mail.objects.create(recipient="alice@example.org", subject="Hello", text="Hello", state=state)
    assert value("hearth_mails_waiting") == 2


def test_a_query_that_takes_too_long_costs_its_own_number_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gauges, "LIMIT_MS", 50)
    with another("hearth_slow", "select pg_sleep(60)"):
        text = metrics.page("")[0].decode()
    assert "# TYPE hearth_slow gauge\n" in text
    assert "\nhearth_slow " not in text
    assert "\nhearth_mails_waiting 0.0" in text
    assert "There is no hearth_slow to scrape." in caplog.text


def test_a_database_that_is_away_leaves_no_number() -> None:
    with another("hearth_gone", "select 1 / 0"):
        assert value("hearth_gone") is None
        assert value("hearth_mails_waiting") == 0


@contextmanager
def another(name: str, statement: str) -> Iterator[None]:
    """Have one more gauge, whose query fails."""

    def read() -> gauges.Rows:
        with connection.cursor() as cursor:
            cursor.execute(statement)
        return [([], 1)]

    gauges.gauge(name, "Only for tests.")(read)
    try:
        yield
    finally:
        del gauges.GAUGES._gauges[name], metrics.CATALOGUE[name]


def test_requests_are_counted_by_page_and_never_by_address() -> None:
    labels = {"page": "none", "method": "GET", "status": "404"}
    before = value("hearth_requests_total", **labels) or 0
    for number in range(3):
        Client().get(f"/nothing/{number}/")
    assert value("hearth_requests_total", **labels) == before + 3
    Client().generic("BREW", "/healthz")
    assert value("hearth_requests_total", page="healthz", method="other", status="405") == 1
    assert (value("hearth_request_seconds_count", page="healthz") or 0) >= 1


COUNT = "from observability.metrics import TASKS; TASKS.labels(task='t', event='done').inc()"


def test_processes_are_added_up_and_one_that_comes_back_goes_on(tmp_path: Path) -> None:
    for name in ("web", "worker", "worker"):
        assert python(tmp_path, name, COUNT).returncode == 0
    shown = python(tmp_path, "reader", "from observability.metrics import page; print(page('')[0].decode())").stdout
    assert 'hearth_tasks_total{event="done",task="t"} 3.0' in shown
    assert {file.name for file in tmp_path.glob("counter_w*")} == {"counter_web.db", "counter_worker.db"}


def python(folder: Path, name: str, program: str) -> subprocess.CompletedProcess[str]:
    environment = {processes.FOLDER: str(folder), processes.PROCESS: name, "PYTHONPATH": str(ROOT / "platform")}
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, check=False, capture_output=True, text=True, timeout=60
    )


def test_a_full_disk_can_not_end_a_process_that_counts(tmp_path: Path) -> None:
    folder = tmp_path / "metrics"
    processes.begin(folder, ["web"])
    assert python(folder, "web", COUNT).returncode == 0
    assert {file.name for file in folder.iterdir()} == {"counter_web.db", "histogram_web.db"}
    for file in folder.iterdir():
        found = file.stat()
        assert found.st_blocks * 512 >= found.st_size == processes.ROOM  # room that is there, not only promised
    processes.begin(folder, ["web"])
    shown = python(folder, "reader", "from observability.metrics import page; print(page('')[0].decode())").stdout
    assert "hearth_tasks_total{" not in shown


def test_counting_needs_no_django() -> None:
    program = (
        "import observability.metrics, sys; sys.exit(any(name.partition('.')[0] == 'django' for name in sys.modules))"
    )
    environment = {"PYTHONPATH": str(ROOT / "platform")}
    assert subprocess.run([sys.executable, "-c", program], env=environment, check=False, timeout=60).returncode == 0
