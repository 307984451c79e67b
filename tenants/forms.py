"""What people type, parsed. Whether it may be done is for the verbs to say."""

from __future__ import annotations

from typing import Any

from django import forms
from django.http import HttpRequest, QueryDict

from tenants import names, seams
from tenants.errors import Refused
from tenants.models import Membership, Plan, Server
from tenants.seams import RegionChoice
from tenants.services.servers import DEFAULT_MESSAGE, MAX_MESSAGE


def posted(request: HttpRequest) -> QueryDict | None:
    """Return what was sent, even if it was nothing, or None when the page is only looked at."""
    return request.POST if request.method == "POST" else None


class RefusableForm(forms.Form):
    """A form that can show why a verb refused."""

    def refuse(self, refusal: Refused) -> None:
        """Put the sentence beside the field it is about, or above the form."""
        known = refusal.field if refusal.field in self.fields else None
        self.add_error(known, refusal.message)


class PlanForm(RefusableForm):
    """The choice of a plan."""

    plan = forms.ModelChoiceField(
        Plan.objects.filter(offered=True),
        to_field_name="code",
        error_messages={"required": "Choose a plan.", "invalid_choice": "Choose a plan that is offered."},
    )


class OrganisationForm(PlanForm):
    """A new organisation."""

    # The verb says what is wrong with a name; here only its presence is asked.
    name = forms.CharField(
        label="Name of the organisation",
        error_messages={"required": "Give the organisation a name."},
        help_text="A company, a club, a family: whoever the servers are for. Members see it.",
        widget=forms.TextInput(attrs={"autocomplete": "organization", "autofocus": True, "maxlength": 80}),
    )
    field_order = ["name", "plan"]


class MemberForm(RefusableForm):
    """An address to invite."""

    email = forms.EmailField(
        label="E-mail address",
        max_length=254,
        error_messages={"required": "Type the address of the person."},
        widget=forms.EmailInput(attrs={"autocomplete": "off"}),
    )
    role = forms.ChoiceField(
        choices=Membership.Role.choices,
        initial=Membership.Role.MEMBER,
        help_text="Members look. Owners also create, change and delete servers, and invite others.",
    )


class DomainForm(RefusableForm):
    """A domain to prove."""

    name = forms.CharField(
        label="Domain",
        error_messages={"required": "Type the domain, such as “example.org”."},
        help_text="Such as example.org. You will add a TXT record to its DNS to prove that it is yours.",
        widget=forms.TextInput(attrs={"autocapitalize": "none", "autocomplete": "off", "spellcheck": "false"}),
    )


class RegionSelect(forms.Select):
    """Tells the page each region's base domain, for the preview of the server name."""

    bases: dict[str, str] = {}

    def create_option(self, name: str, value: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        option: dict[str, Any] = super().create_option(name, value, *args, **kwargs)
        option["attrs"]["data-base-domain"] = self.bases.get(str(value), "")
        return option


class ServerForm(RefusableForm):
    """A new server."""

    name = forms.CharField(
        label="Name",
        error_messages={"required": "Give the server a name, such as “acme”."},
        help_text="Lower-case letters, digits and hyphens, such as “acme”.",
        widget=forms.TextInput(
            attrs={
                "autocapitalize": "none",
                "autocomplete": "off",
                "spellcheck": "false",
                "maxlength": names.MAX_LABEL,
                "autofocus": True,
            }
        ),
    )
    region = forms.ChoiceField(
        help_text="Where the server and its data live.",
        error_messages={"invalid_choice": "That region takes no new servers. Choose one from the list."},
    )
    domain = forms.CharField(
        label="Server name on your own domain",
        required=False,
        help_text="Leave it empty to get the default name. A domain must be proved first.",
        widget=forms.TextInput(attrs={"autocapitalize": "none", "autocomplete": "off", "spellcheck": "false"}),
    )

    def __init__(self, *args: Any, proved: list[str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.regions: list[RegionChoice] = seams.open_regions()
        region = self.fields["region"]
        widget = RegionSelect(choices=[(choice.code, choice.name) for choice in self.regions])
        widget.bases = {choice.code: choice.base_domain for choice in self.regions}
        region.widget = widget
        region.choices = widget.choices  # type: ignore[attr-defined]
        if proved:
            self.fields[
                "domain"
            ].help_text = f"Leave it empty to get the default name. You have proved {', '.join(proved)}."
        elif not self.data.get("domain"):
            # Somebody without a domain need not read about domains; what they sent anyway gets its answer.
            del self.fields["domain"]


class VerbForm(RefusableForm):
    """The generation that the page showed: a verb on a server that has changed since does nothing."""

    generation = forms.IntegerField(widget=forms.HiddenInput)


class SuspendForm(VerbForm):
    """What people are told while the server is closed."""

    message = forms.CharField(
        label="Message to its users",
        required=False,
        help_text=f"Their apps show it. Empty: “{DEFAULT_MESSAGE}”",
        widget=forms.TextInput(attrs={"maxlength": MAX_MESSAGE}),
    )


class UpgradeForm(VerbForm):
    """The version to go to."""

    version = forms.CharField(label="Synapse version", error_messages={"required": "Choose a version."})
    newer = False
    refused: list[tuple[str, str]] = []

    def __init__(self, *args: Any, versions: list[tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.choices = versions
        self.fields["version"].widget = forms.Select(choices=versions)


class Gigabytes(forms.IntegerField):
    """Megabytes (of 1,024 kilobytes), typed and shown as whole gigabytes."""

    def prepare_value(self, value: Any) -> Any:
        return value // 1024 if isinstance(value, int) else value

    def clean(self, value: Any) -> int | None:
        cleaned: int | None = super().clean(value)
        return None if cleaned is None else cleaned * 1024


class SizeForm(VerbForm):
    """What the server is to have. `most`: what its plan has room for, by field."""

    vcpu = forms.IntegerField(label="Processors (vCPU)")
    memory_mb = Gigabytes(label="Memory (GB)")
    disk_gb = forms.IntegerField(label="Disk (GB SSD)")
    object_gb = forms.IntegerField(label="Object storage (GB)")

    def __init__(self, *args: Any, most: dict[str, int], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for key, value in most.items():
            shown = value // 1024 if key == "memory_mb" else value
            field = self.fields[key]
            field.error_messages |= {"required": "Type a whole number.", "invalid": "Type a whole number."}
            field.help_text = f"Your plan has room for up to {shown:,}."
            field.widget.attrs |= {"inputmode": "numeric"}
        self.fields["disk_gb"].help_text += " A disk can grow, but never become smaller."


class DeleteForm(VerbForm):
    """The server's name, typed as the sign that it is meant."""

    confirm = forms.CharField(
        required=False,
        widget=forms.TextInput(attrs={"autocapitalize": "none", "autocomplete": "off", "spellcheck": "false"}),
    )

    def __init__(self, *args: Any, server: Server, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["confirm"].label = f"Type {server.server_name} to delete it"
