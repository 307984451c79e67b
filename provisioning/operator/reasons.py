"""What the API server's and the chart's refusals mean for a person."""

from __future__ import annotations

from provisioning.operator.kube.errors import MALFORMED, ApiError
from provisioning.operator.observed import Fault
from provisioning.operator.render import RenderError


def of_api_error(error: ApiError) -> Fault:
    """Return the named reason for a refused write."""
    causes = {str(cause.get("reason")) for cause in error.details.get("causes") or ()}
    text = error.message
    if "NamespaceTerminating" in causes or "is being terminated" in text:
        return Fault("NamespaceTerminating", "The server's namespace is being deleted, so nothing can be made in it.")
    if error.status == 403 and "exceeded quota" in text:
        return Fault("QuotaExceeded", f"This server's quota does not allow it, so nothing was made: {text}")
    if error.status == 403:
        return Fault("Forbidden", f"The operator is not permitted to do this. Nothing was changed: {text}")
    if error.status == 404:
        return Fault("KindMissing", f"The cluster lacks what this needs; install its definition: {text}")
    if error.status in {400, 422} or MALFORMED in text:
        return Fault("Refused", f"The cluster refused it. What was there before goes on running: {text}")
    return Fault("NotWritten", f"It could not be written and is tried again: {text}")


def of_render_error(error: RenderError) -> Fault:
    """Return the named reason for a chart that can't be rendered."""
    text = f"The chart can't be rendered, so nothing was changed; what runs goes on running. {error}"
    if "Additional property" in str(error) or "additional properties" in str(error):
        text = f"The definition of MatrixServer is newer than this operator: update the operator. {text}"
    return Fault("RenderFailed", text)
