"""What staff see of backups, and where they say where backups go. Secrets go in and never come out again."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from unfold.admin import ModelAdmin
from unfold.widgets import UnfoldAdminPasswordWidget

from backups import places, policies, reachable
from backups.copying import admin as _copies  # noqa: F401 (registers its page)
from backups.copying import verbs as copying
from backups.models import Alarm, Policy, RegionStores, RestorePoint, Shelf, Store
from backups.proofs import admin as _proofs  # noqa: F401 (registers its pages)
from backups.proofs import schedule
from backups.restoring import admin as _restores  # noqa: F401 (registers its page)
from observability.console import ReadOnlyAdmin, column, megabytes, moment
from tenants.errors import Refused

POINT_TONES = {"whole": "good", "damaged": "bad", "gone": "idle"}
WORDS = {"on": "On", "off": "Off", "unsupported": "Not supported", "unknown": "Not known"}
SPACED = '<li style="margin-bottom: .5rem"><strong>{}</strong> · {}: {}</li>'
KEPT = "Sealed and never shown again; leave it empty to keep the one that is there."


class VerbForm(forms.ModelForm):  # type: ignore[type-arg]
    """A form whose rules are a verb's."""

    def refused(self, refusal: Refused) -> None:
        """Show what the verb says beside the field that it names."""
        field = refusal.field if refusal.field in self.fields else None
        self.add_error(field, ValidationError(refusal.message))


class VerbAdmin(ModelAdmin):
    """Rows that a verb writes; the audit trail tells of it, and Django's own log would repeat the form."""

    warn_unsaved_form = True

    def has_delete_permission(self, *_: Any) -> bool:
        return False

    def log_addition(self, *_: Any) -> None:
        """Leave it to the audit trail."""

    def log_change(self, *_: Any) -> None:
        """Leave it to the audit trail."""


class StoreForm(VerbForm):
    """A folder or a bucket."""

    secret_key = forms.CharField(
        required=False,
        label="Secret key",
        widget=UnfoldAdminPasswordWidget(attrs={"autocomplete": "new-password"}),
        help_text=KEPT,
    )
    agent_secret_key = forms.CharField(
        required=False,
        label="Secret key of agents",
        widget=UnfoldAdminPasswordWidget(attrs={"autocomplete": "new-password"}),
        help_text=KEPT,
    )

    class Meta:
        model = Store
        fields = places.COLUMNS

    def clean(self) -> dict[str, Any]:
        found = dict(super().clean() or {})
        if self.errors:
            return found
        known = Store.objects.filter(pk=self.instance.pk).first()
        before = {name: str(getattr(known, name)) for name in places.PLACE} if known else {}
        wanted = Store(pk=self.instance.pk, **{name: found[name] for name in places.COLUMNS})
        try:
            places.refuse(wanted, before)
        except Refused as refusal:
            self.refused(refusal)
        return found


@admin.register(Store)
class StoreAdmin(VerbAdmin):
    """Where backups lie."""

    form = StoreForm
    list_display = ["name", "code", "kind", "last_check", "fault"]
    readonly_fields = ["last_check", "what_was_found", "fault"]
    actions = ["check_store"]

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:  # noqa: ARG002 (Django's signature)
        told = (("Last check", {"fields": ("last_check", "what_was_found", "fault")}),) if obj else ()
        bucket = ("endpoint", "bucket", "location")
        keys = ("access_key", "secret_key", "agent_access_key", "agent_secret_key")
        return (
            (None, {"fields": ("code", "name", "kind")}),
            ("Folder", {"fields": ("folder",)}),
            ("Bucket", {"fields": (*bucket, *keys)}),
            *told,
        )

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        # The fieldsets name what the form itself declares; Django would look for it in the model.
        kwargs["fields"] = places.COLUMNS
        return super().get_form(request, obj, change=change, **kwargs)

    def has_act_permission(self, request: HttpRequest, *_: Any) -> bool:
        user: Any = request.user
        return bool(user.has_perm("backups.change_store"))

    def save_model(self, request: HttpRequest, obj: Store, form: Any, change: bool) -> None:  # noqa: ARG002 (Django's)
        said = form.cleaned_data
        secrets = {name: said[name] for name in places.SECRETS}
        columns = {name: said[name] for name in places.COLUMNS}
        places.save_store(request.user, store=obj, secrets=secrets, **columns)

    @admin.action(description="Test the connection", permissions=["act"])
    def check_store(self, request: HttpRequest, queryset: QuerySet[Store]) -> None:
        """Ask the chosen stores what they protect from."""
        for store in queryset:
            found = places.check(request.user, store=store)
            if found.fault:
                messages.error(request, f"{store}: {found.fault}")
            else:
                off = [each["what"] for each in found.findings if each["state"] == "off"]
                also = f" Look at: {', '.join(off)}." if off else ""
                messages.success(request, f"{store} can be used.{also}")

    @admin.display(description="last checked", empty_value="Never: use “Test the connection” in the list")
    def last_check(self, store: Store) -> str | None:
        return moment(store.checked) or None

    @admin.display(description="what was found", empty_value="-")
    def what_was_found(self, store: Store) -> SafeString | None:
        if not store.findings:
            return None
        rows = [(WORDS.get(each["state"], each["state"]), each["what"], each["text"]) for each in store.findings]
        return format_html("<ul>{}</ul>", format_html_join("", SPACED, rows))


class RegionStoresForm(VerbForm):
    """Which region goes where."""

    def clean(self) -> dict[str, Any]:
        found = dict(super().clean() or {})
        if self.errors:
            return found
        region = found.get("region") or self.instance.region
        wanted = RegionStores(**{**found, "region": region})
        try:
            places.refuse_pair(wanted)
            reachable.refuse(wanted)
            places.refuse_unusable(wanted)
        except Refused as refusal:
            self.refused(refusal)
        return found


@admin.register(RegionStores)
class RegionStoresAdmin(VerbAdmin):
    """Which region goes where."""

    form = RegionStoresForm
    list_display = ["region", "first", "second", "copy_megabytes"]
    list_select_related = ["region", "first", "second"]
    fields = ["region", "first", "second", "copy_megabytes"]
    actions = ["repair_first", "copy_anew"]

    def has_act_permission(self, request: HttpRequest, *_: Any) -> bool:
        user: Any = request.user
        return bool(user.has_perm("backups.change_regionstores"))

    @admin.action(description="The first store was lost: repair it from the second", permissions=["act"])
    def repair_first(self, request: HttpRequest, queryset: QuerySet[RegionStores]) -> None:
        """Bring back what the second stores of the chosen regions have."""
        self._each(request, queryset, copying.repair_first, "brought back from {1.second}. Servers: {0}.")

    @admin.action(description="The second store was lost: copy everything anew", permissions=["act"])
    def copy_anew(self, request: HttpRequest, queryset: QuerySet[RegionStores]) -> None:
        """Fill the second stores of the chosen regions."""
        self._each(request, queryset, copying.copy_anew, "copied to {1.second}. Servers: {0}.")

    def _each(self, request: HttpRequest, rows: QuerySet[RegionStores], verb: Any, told: str) -> None:
        for stores in rows.select_related("region", "first", "second"):
            try:
                count = verb(request.user, stores=stores)
            except Refused as refusal:
                messages.error(request, f"{stores.region}: {refusal.message}")
            else:
                messages.success(request, f"{stores.region}: {told.format(count, stores)}")

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:  # noqa: ARG002 (Django's signature)
        return ["region"] if obj else []

    def save_model(self, request: HttpRequest, obj: RegionStores, form: Any, change: bool) -> None:  # noqa: ARG002
        places.choose_stores(request.user, chosen=obj)
        if told := places.together(obj):
            messages.warning(request, told)


class PolicyForm(VerbForm):
    """How often, and for how long."""

    class Meta:
        model = Policy
        fields = ("plan", "server", *policies.FIELDS)

    def clean(self) -> dict[str, Any]:
        found = dict(super().clean() or {})
        if not self.errors:
            try:
                policies.refuse_nonsense(Policy(**found))
            except Refused as refusal:
                self.refused(refusal)
        return found


@admin.register(Policy)
class PolicyAdmin(VerbAdmin):
    """Policies of plans, of servers, and the one for all others."""

    form = PolicyForm
    list_display = ["__str__", "every_hours", "window_days", "retention_days", "prove_days", "final_days"]
    list_select_related = ["plan", "server"]
    autocomplete_fields = ["server"]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:  # noqa: ARG002 (Django's signature)
        return ["plan", "server"] if obj else []

    def save_model(self, request: HttpRequest, obj: Policy, form: Any, change: bool) -> None:  # noqa: ARG002 (Django's)
        policies.change_policy(request.user, policy=obj, **{name: form.cleaned_data[name] for name in policies.FIELDS})


@admin.register(RestorePoint)
class RestorePointAdmin(ReadOnlyAdmin):
    """What there is to restore."""

    list_display = ["when", "server", "kind", "how_it_is", "size", "listed", "proved", "keep_until"]
    list_filter = ["state", "kind"]
    list_select_related = ["server"]
    search_fields = ["server__server_name", "identity"]
    ordering = ["-at"]
    actions = ["test_restore"]

    @admin.action(description="Test a restore of its server now", permissions=["act"])
    def test_restore(self, request: HttpRequest, queryset: QuerySet[RestorePoint]) -> None:
        for server in {row.server for row in queryset.select_related("server")}:
            try:
                schedule.prove_now(request.user, server=server)
            except Refused as refusal:
                self.message_user(request, f"{server}: {refusal.message}", messages.ERROR)
            else:
                self.message_user(request, f"{server}: a recovery test begins as soon as there is room.")

    @column("moment", order="at")
    def when(self, row: RestorePoint) -> str:
        return moment(row.at)

    @column("state", order="state", tones=POINT_TONES)
    def how_it_is(self, row: RestorePoint) -> tuple[str, str]:
        return row.state, row.get_state_display()

    @column("stored", order="stored_bytes")
    def size(self, row: RestorePoint) -> str:
        return megabytes(row.stored_bytes)


@admin.register(Alarm)
class AlarmAdmin(ReadOnlyAdmin):
    """What is wrong now."""

    list_display = ["when", "server", "cause", "text"]
    list_filter = ["cause"]
    list_select_related = ["server"]
    search_fields = ["server__server_name"]
    ordering = ["since"]

    @column("since", order="since")
    def when(self, row: Alarm) -> str:
        return moment(row.since)


@admin.register(Shelf)
class ShelfAdmin(ReadOnlyAdmin):
    """What each store holds of each server."""

    list_display = ["server", "store", "there", "waiting", "last_look", "fault"]
    list_filter = ["store"]
    list_select_related = ["server", "store"]
    search_fields = ["server__server_name"]
    ordering = ["server"]

    @column("stored", order="bytes_there")
    def there(self, row: Shelf) -> str:
        return megabytes(row.bytes_there)

    @column("goes within a day", order="bytes_waiting")
    def waiting(self, row: Shelf) -> str:
        return megabytes(row.bytes_waiting)

    @column("last looked through", order="turned")
    def last_look(self, row: Shelf) -> str:
        return moment(row.turned)
