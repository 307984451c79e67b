"""`manage.py certificate`: certificates for those who call the internal listener, and the authority behind them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit.services import SYSTEM
from security.errors import SecurityError
from security.transport import authority
from security.transport.files import Files
from security.transport.identities import KINDS, Identity
from security.transport.models import Authority

CALLERS = [kind for kind in KINDS if kind != "hearth"]


class Command(BaseCommand):
    help = "Issues certificates for internal calls, shows the authority, and replaces it after a compromise."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True, parser_class=argparse.ArgumentParser)
        verbs.add_parser("show", help="every authority that is trusted, and the one that signs")
        issue = verbs.add_parser("issue", help="a new key and certificate; again before it ends, by a timer")
        issue.add_argument("kind", choices=CALLERS)
        issue.add_argument("name", help="an agent: its server's id; an operator: its region; metrics: who scrapes")
        issue.add_argument("folder", type=Path, help="gets certificate.pem, key.pem and trust.pem")
        verbs.add_parser(
            "replace-authority", help="the key may be known to others: a new one signs and alone is trusted, at once"
        )

    def handle(self, *args: Any, **options: Any) -> None:  # noqa: ARG002 (Django's signature)
        do = getattr(self, "_" + options["verb"].replace("-", "_"))
        try:
            do(options)
        except SecurityError as error:
            raise CommandError(str(error)) from None
        except OSError as error:
            raise CommandError(f"{error.filename}: {error.strerror}. Nothing was issued.") from None

    def _show(self, options: dict[str, Any]) -> None:  # noqa: ARG002 (as the others)
        for one in Authority.objects.defer("key"):
            self.stdout.write(f"{one}: signs from {one.signs_from:%Y-%m-%d}, trusted until {one.not_after:%Y-%m-%d}")

    def _issue(self, options: dict[str, Any]) -> None:
        folder: Path = options["folder"]
        identity = Identity(options["kind"], options["name"])
        folder.mkdir(mode=0o700, exist_ok=True)
        files = Files(folder / "certificate.pem", folder / "key.pem", folder / "trust.pem")
        csr, key = files.request()
        issued = authority.issue(csr, identity)
        files.install(issued.chain, key, issued.trust)
        self.stdout.write(f"{identity}: a certificate in {folder}, until {issued.not_after:%Y-%m-%d %H:%M} UTC.")

    def _replace_authority(self, options: dict[str, Any]) -> None:  # noqa: ARG002 (as the others)
        made = authority.replace(SYSTEM)
        self.stdout.write(
            f"{made} signs from now on. Within a minute it is the only one that the listener trusts, and within "
            "minutes Hearth's own agents have new certificates. Issue those of others anew: manage.py certificate issue"
        )
