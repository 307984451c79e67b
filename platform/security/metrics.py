"""The keys' numbers for Prometheus."""

from __future__ import annotations

from observability.gauges import Rows, gauge
from security.keyring import report


@gauge("hearth_keys_overdue", "Active keys past their rotation.", ["kind"])
def keys_overdue() -> Rows:
    """Count key-encryption keys (`kek`) and root keys (`root`)."""
    return [(["kek"], report.overdue_keks().count()), (["root"], report.overdue_roots().count())]
