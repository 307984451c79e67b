"""What people choose on the pages of a restore, parsed. Times are UTC, since that is what the pages show."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from django import forms

from backups.models import RestorePoint, Store
from backups.selectors import Window
from tenants.forms import RefusableForm
from tenants.models import Server

INPUT = "%Y-%m-%dT%H:%M:%S"
FORMATS = [INPUT, "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M"]
POINT, MOMENT = "point", "moment"


class UtcField(forms.DateTimeField):
    """A second, in UTC."""

    def to_python(self, value: Any) -> datetime | None:
        found = super().to_python(value)
        # The pages' own time zone is UTC too; said here, so that the two never differ.
        return found.replace(tzinfo=UTC) if found is not None and found.tzinfo is None else found


class ChoiceForm(RefusableForm):
    """A restore point or a time. It is sent by GET: to look at what a restore would do changes nothing."""

    what = forms.ChoiceField(choices=[(POINT, "A restore point"), (MOMENT, "A time")], required=False)
    point = forms.ChoiceField(label="Restore point", required=False)
    moment = UtcField(
        label="Time (UTC)",
        required=False,
        input_formats=FORMATS,
        error_messages={"invalid": "Give day and time, such as 2026-11-20 12:30:00."},
    )

    store = forms.ChoiceField(label="Read from", required=False)

    def __init__(
        self,
        data: Any,
        *,
        points: Sequence[RestorePoint],
        windows: Sequence[Window],
        stores: Sequence[Store],
        **kwargs: Any,
    ) -> None:
        super().__init__(data, **kwargs)
        self.stores = {each.code: each for each in stores}
        self.fields["store"] = forms.ChoiceField(
            label="Read from", required=False, choices=[(each.code, each.name) for each in stores]
        )
        choices = [(each.identity, _told(each)) for each in points]
        self.fields["point"] = forms.ChoiceField(
            label="Restore point",
            choices=choices,
            required=False,
            # Which there are changes while somebody looks; what is gone by then the verb says better.
            error_messages={"invalid_choice": "There is no such restore point any more, or it is damaged."},
        )
        attributes = {"type": "datetime-local", "step": "1", "autocomplete": "off"}
        if windows:
            attributes |= {"min": f"{windows[-1].begun:{INPUT}}", "max": f"{windows[0].until:{INPUT}}"}
        self.fields["moment"].widget = forms.DateTimeInput(attrs=attributes, format=INPUT)

    def chosen(self) -> dict[str, Any]:
        """Return `point` or `moment`, and the store, as the verb takes them."""
        said = self.cleaned_data
        store = self.stores.get(said.get("store") or "")
        if said.get("what") == MOMENT or (not said.get("what") and said.get("moment")):
            return {"point": "", "moment": said.get("moment"), "store": store}
        return {"point": said.get("point") or "", "moment": None, "store": store}


def _told(point: RestorePoint) -> str:
    damaged = ", damaged in the first store" if point.state == RestorePoint.State.DAMAGED else ""
    return f"{point.at:%Y-%m-%d %H:%M:%S} UTC, {point.kind}{damaged}"


class ConfirmForm(RefusableForm):
    """The server's name, typed as the sign that it is meant."""

    confirm = forms.CharField(
        required=False,
        widget=forms.TextInput(attrs={"autocapitalize": "none", "autocomplete": "off", "spellcheck": "false"}),
    )

    def __init__(self, *args: Any, server: Server, to: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["confirm"].label = f"Type {server.server_name} to {to}"
