"""What a failure may say on the pages of a server's own people, and what is for those who run Hearth alone.

Providers quote the last lines of a log, name folders of the machine, and a program may print a password.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from django.views.decorators.debug import sensitive_variables

from provisioning.models import ServerSecret
from security.errors import SecurityError
from tenants.models import Server

LOG = "log"
"""Under which the evidence, that staff alone see whole, has what was cut off."""
_FOLDER = re.compile(r"(?<![\w:/.])/(?:[^\s/:;,()\"'“”]+/)+[^\s/:;,()\"'“”]*")
_LAST_LINES = " Its last lines:"


@dataclass(frozen=True)
class Told:
    """What is told of a failure."""

    text: str
    """One line, without secrets and folders."""
    more: Mapping[str, str] = field(default_factory=dict)
    """For the evidence: the lines of the log, without secrets."""


@sensitive_variables()
def told(text: str, server: Server) -> Told:
    """Return what may be told. Where secrets can't be read now, so that none could be found, the log is left out."""
    first, _, rest = text.partition("\n")
    first = _FOLDER.sub("a folder of the machine", first.removesuffix(_LAST_LINES))
    try:
        hidden = {row.name: str(row.value) for row in ServerSecret.objects.filter(server=server)}
    except SecurityError:
        return Told(first)
    for name, value in hidden.items():
        # A signing key is a line of three words; the last alone is as secret as the whole.
        for part in filter(None, (value, value.rpartition(" ")[2])):
            first, rest = first.replace(part, f"[{name}]"), rest.replace(part, f"[{name}]")
    return Told(first, {LOG: rest} if rest else {})
