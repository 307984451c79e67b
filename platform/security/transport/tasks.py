"""What Celery runs: the authority is renewed in time."""

from __future__ import annotations

from observability.tasks import task
from security.transport import authority


@task()
def renew_authority() -> None:
    authority.renew_due()
