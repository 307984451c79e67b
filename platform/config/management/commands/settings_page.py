"""Write `docs/settings.md` from the one list of settings."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand

from config.env import ROOT, SETTINGS, Setting

PAGE = ROOT / "docs" / "settings.md"
INTRODUCTION = """\
# Settings

Hearth reads its settings from the environment, and only these. A `HEARTH_*` variable that is not in this list, or whose
value can't be used, stops the start with a sentence. For every one of them `NAME_FILE=/path` reads the value from a
file; do so for secrets. This page is written by `manage.py settings_page`.

| Variable | Type | Default | Meaning |
| --- | --- | --- | --- |
"""


def page() -> str:
    """Return the page's text."""
    return INTRODUCTION + "".join(_row(setting) for setting in SETTINGS)


def _row(setting: Setting) -> str:
    default = str(setting.default).replace(str(ROOT), ".") if setting.default not in ("", []) else "(empty)"
    secret = " **Secret.**" if setting.secret else ""
    return f"| `{setting.name}` | {setting.kind} | `{default}` | {setting.help}{secret} |\n"


class Command(BaseCommand):
    help = "Writes docs/settings.md from the list of settings."

    def handle(self, *args: Any, **options: Any) -> None:  # noqa: ARG002 (Django's signature)
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page(), encoding="utf-8")
        self.stdout.write(f"Wrote {PAGE.relative_to(ROOT)}.")
