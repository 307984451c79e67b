"""What people choose on the page of exports, parsed. Times are UTC, since that is what the pages show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django import forms

from backups.exporting.models import Export
from backups.models import RestorePoint
from backups.restoring.forms import FORMATS, INPUT, UtcField
from backups.selectors import Window
from tenants.forms import RefusableForm

COMMON = (
    ("users", "accounts"),
    ("profiles", "display names and pictures"),
    ("devices", "sessions and devices"),
    ("rooms", "rooms"),
    ("room_stats_state", "names and topics of rooms"),
    ("room_memberships", "who joined and left which room"),
    ("room_aliases", "addresses of rooms"),
    ("event_json", "messages and all other events"),
    ("local_media_repository", "uploaded files"),
    ("event_reports", "reports of abuse"),
)
"""Synapse's tables that people ask for, and what is in them."""
What, Format = Export.What, Export.Format


class ExportForm(RefusableForm):
    """What, and of when: a second goes before a restore point, and with neither it is the latest."""

    what = forms.ChoiceField(label="What", choices=What.choices)
    room = forms.CharField(
        label="The room's id",
        required=False,
        max_length=255,
        widget=forms.TextInput(
            attrs={"placeholder": "!abcdef:example.org", "autocapitalize": "none", "autocomplete": "off",
                   "spellcheck": "false"}
        ),
    )  # fmt: skip
    tables = forms.MultipleChoiceField(
        label="Tables",
        required=False,
        choices=[(name, f"{name}: {text}") for name, text in COMMON],
        widget=forms.CheckboxSelectMultiple,
    )
    others = forms.CharField(
        label="Other tables",
        required=False,
        max_length=2000,
        help_text="Their names in Synapse's database, with spaces between.",
        widget=forms.TextInput(attrs={"autocapitalize": "none", "autocomplete": "off", "spellcheck": "false"}),
    )
    format = forms.ChoiceField(label="Format of tables", required=False, choices=Format.choices)
    point = forms.ChoiceField(label="Of when", required=False)
    moment = UtcField(
        label="Or any second (UTC)",
        required=False,
        input_formats=FORMATS,
        error_messages={"invalid": "Give day and time, such as 2026-11-20 12:30:00."},
    )

    def __init__(
        self, *args: Any, points: Sequence[RestorePoint] = (), windows: Sequence[Window] = (), **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.fields["point"] = forms.ChoiceField(
            label="Of when",
            required=False,
            choices=[
                ("", "The latest that is backed up"),
                *((each.identity, f"{each.at:%Y-%m-%d %H:%M:%S} UTC") for each in points),
            ],
            error_messages={"invalid_choice": "There is no such restore point any more, or it is damaged."},
        )
        attributes = {"type": "datetime-local", "step": "1", "autocomplete": "off"}
        if windows:
            attributes |= {"min": f"{windows[-1].begun:{INPUT}}", "max": f"{windows[0].until:{INPUT}}"}
        self.fields["moment"].widget = forms.DateTimeInput(attrs=attributes, format=INPUT)

    def chosen(self) -> dict[str, Any]:
        """Return what the verb takes."""
        said = self.cleaned_data
        return {
            "what": said["what"],
            "room": said["room"].strip(),
            "tables": [*said["tables"], *said["others"].replace(",", " ").split()],
            "format": said["format"] or Format.CSV,
            "point": "" if said["moment"] else said["point"],
            "moment": said["moment"],
        }
