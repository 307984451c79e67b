"""`GET /metrics` on the internal listener: for Prometheus with a certificate of the kind `metrics`, and nobody else."""

from __future__ import annotations

from django.http import HttpResponse

from observability import metrics
from security.transport.calls import InternalRequest, internal


@internal("metrics", methods=("GET",))
def scrape(request: InternalRequest) -> HttpResponse:
    """Answer with all metrics in the form that is asked for."""
    text, form = metrics.page(request.headers.get("Accept", ""))
    return HttpResponse(text, content_type=form)
