"""A whole Hearth, scraped as Prometheus does it: over the internal listener, with a certificate."""

from __future__ import annotations

import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from config.embedded.state import FORMAT
from tests.bench.floor import free_ports
from tests.stack import ROOT, Stack

pytestmark = [pytest.mark.xdist_group("scrape"), pytest.mark.timeout(300)]
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture(scope="module")
def hearth() -> Iterator[Stack]:
    with tempfile.TemporaryDirectory(prefix="hearth-scrape-", dir="/tmp") as folder:
        Path(folder).chmod(0o711)
        port, internal = free_ports(2)
        state = Path(folder) / "state"
        old = state / "metrics" / "counter_old.db"  # of an earlier start
        old.parent.mkdir(mode=0o711, parents=True)
        old.write_bytes(b"x" * 100)
        (state / "format").write_text(FORMAT)
        stack = Stack(state, port, {"HEARTH_INTERNAL_PORT": str(internal)})
        stack.start()
        try:
            yield stack
        finally:
            stack.stop()


@pytest.fixture(scope="module")
def certificate(hearth: Stack, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Return a function that has `manage.py certificate` issue one, as docs/metrics.md says."""

    def issue(kind: str, name: str) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        subprocess.run(
            [sys.executable, "manage.py", "certificate", "issue", kind, name, str(folder)],
            cwd=ROOT, env=hearth.part("uvicorn").environ(), check=True, capture_output=True, timeout=60,
        )  # fmt: skip
        return folder

    return issue


def address(hearth: Stack) -> str:
    return f"https://127.0.0.1:{hearth.settings['HEARTH_INTERNAL_PORT']}/metrics"


def client(folder: Path) -> httpx.Client:
    """Return one that does what Prometheus' `tls_config` in docs/metrics.md does."""
    context = ssl.create_default_context(cafile=str(folder / "trust.pem"))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    return httpx.Client(verify=context, trust_env=False, timeout=30)


def scrape(hearth: Stack, folder: Path) -> Samples:
    with client(folder) as prometheus:
        answer = prometheus.get(address(hearth))
    assert (answer.status_code, answer.headers["Content-Type"].partition(";")[0]) == (200, "text/plain")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse(answer.text)
        for sample in family.samples
    }


def total(samples: Samples, name: str, **labels: str) -> float:
    return sum(value for (found, with_), value in samples.items() if found == name and labels.items() <= set(with_))


def until(hearth: Stack, folder: Path, condition: Callable[[Samples], bool]) -> Samples:
    end = time.monotonic() + 60
    while not condition(samples := scrape(hearth, folder)):
        assert time.monotonic() < end, samples
        time.sleep(0.2)
    return samples


def test_all_processes_in_one_answer(hearth: Stack, certificate: Callable[[str, str], Path]) -> None:
    prometheus = certificate("metrics", "prometheus")
    samples = until(hearth, prometheus, lambda now: total(now, "hearth_tasks_total", event="done") > 0)
    assert total(samples, "hearth_requests_total", page="readyz", status="200") > 0  # the web server
    assert total(samples, "hearth_clock_messages_total", event="sent") > 0  # beat
    assert total(samples, "hearth_clock_messages_total", event="unsent") == 0
    assert {dict(labels)["part"] for name, labels in samples if name == "hearth_heartbeat_age_seconds"} == {
        "beat",
        "worker",
    }
    assert total(samples, "hearth_keys_overdue") == 0
    assert {name.partition("_")[0] for name, _ in samples} == {"hearth"}


def test_counters_outlive_a_worker_that_was_killed(hearth: Stack, certificate: Callable[[str, str], Path]) -> None:
    prometheus = certificate("metrics", "prometheus")
    worker = hearth.part("celery worker")
    before = scrape(hearth, prometheus)
    worker.send_signal(signal.SIGKILL)
    done = total(before, "hearth_tasks_total", event="done")
    after = until(hearth, prometheus, lambda now: total(now, "hearth_tasks_total", event="done") > done)
    fallen = {key for key, value in before.items() if key[0].endswith("_total") and after.get(key, 0) < value}
    assert not fallen
    assert hearth.part("celery worker").pid != worker.pid


def test_nobody_else(hearth: Stack, certificate: Callable[[str, str], Path]) -> None:
    agent = certificate("agent", "00000000-0000-4000-8000-000000000001")
    with client(agent) as other:
        answer = other.get(address(hearth))
    assert (answer.status_code, answer.json()["type"]) == (403, "not-allowed")
    with client(certificate("metrics", "prometheus")) as prometheus:
        assert prometheus.post(address(hearth)).status_code == 405
    context = ssl.create_default_context(cafile=str(agent / "trust.pem"))
    with httpx.Client(verify=context, trust_env=False) as nobody, pytest.raises(httpx.TransportError):
        nobody.get(address(hearth))
    assert httpx.get(f"{hearth.url}/metrics").status_code == 404


def test_each_start_begins_at_zero(hearth: Stack) -> None:
    folder = hearth.state / "metrics"
    assert {file.stem.partition("_")[2] for file in folder.iterdir()} == {"web", "worker", "beat"}
    assert folder.stat().st_mode & 0o777 == 0o700
