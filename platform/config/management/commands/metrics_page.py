"""Write `docs/metrics.md` from the list of metrics."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand

from config.env import ROOT
from observability.metrics import CATALOGUE, Metric

PAGE = ROOT / "docs" / "metrics.md"
INTRODUCTION = """\
# Metrics

Prometheus scrapes `GET /metrics` on the internal listener (`HEARTH_INTERNAL_PORT`), by TLS 1.3 and with a certificate
of the kind `metrics`; no other caller, and nobody on the public web server, gets them. One answer holds what the web
server, the worker and beat have counted since Hearth was started. The gauges are read from the database for each
scrape; while it does not answer they are left out (alert on `absent()`).

## A certificate for Prometheus

    manage.py certificate issue metrics prometheus /etc/prometheus/hearth

writes `certificate.pem`, `key.pem` and `trust.pem` into that folder. The certificate is valid for a week
(`HEARTH_INTERNAL_CERTIFICATE_SECONDS`): have a timer run the command daily, as the user that Prometheus runs as or with
a change of owner after it. Prometheus reads renewed files by itself. On Kubernetes cert-manager does all of this. Its
part of Prometheus' configuration, on the machine of Hearth:

    scrape_configs:
      - job_name: hearth
        scheme: https
        tls_config:
          ca_file: /etc/prometheus/hearth/trust.pem
          cert_file: /etc/prometheus/hearth/certificate.pem
          key_file: /etc/prometheus/hearth/key.pem
          min_version: TLS13
        static_configs:
          - targets: ["127.0.0.1:18000"]

## Alert rules

`platform/observability/rules/backups.yaml` has rules for backups: age, gaps, silent engines, failed proofs, copies
that lag, and nobody who looks. Name the file below `rule_files` of Prometheus' configuration; in a cluster its `groups`
are the `spec` of a PrometheusRule. [stores.md](stores.md) says what each cause means. Hearth sends mails of the same.

The lag of a copy to a second store is a number of each server. As series these would be 100,000 in each scrape, so
there are counts of servers by how late they are, and the 20 worst by name; the staff's list of copies has all.

## What there is

`hearth_requests_total` names pages by their route, never by an address; an address that is no page's counts as `none`.
`event` of a task is `started`, `done`, `retried`, `failed` or `unsent`; of a message of the clock `sent` or `unsent`.
This list is written by `manage.py metrics_page`.

| Metric | Type | Labels | Meaning |
| --- | --- | --- | --- |
"""


def page() -> str:
    """Return the page's text."""
    return INTRODUCTION + "".join(_row(CATALOGUE[name]) for name in sorted(CATALOGUE))


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |\n"


class Command(BaseCommand):
    help = "Writes docs/metrics.md from the list of metrics."

    def handle(self, *args: Any, **options: Any) -> None:  # noqa: ARG002 (Django's signature)
        PAGE.write_text(page(), encoding="utf-8")
        self.stdout.write(f"Wrote {PAGE.relative_to(ROOT)}.")
