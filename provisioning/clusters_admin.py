"""The staff's page of a Kubernetes region. Secrets go in and never come out again."""

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
from unfold.widgets import (
    UnfoldAdminPasswordWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
    UnfoldBooleanSwitchWidget,
)

from observability.console import moment
from provisioning import clusters
from provisioning.models import Cluster, Region
from provisioning.providers.kubernetes.place import ROUTE
from tenants.errors import Refused

SPACED = '<li style="margin-bottom: .5rem"><strong>{}</strong> · {}: {}</li>'
WORDS = {"good": "In order", "warn": "Look at this", "missing": "Missing"}
USUAL = {"database_port": 5432, "network_prefix": 24, "tls_minimum": "1.2"}
IDENTITY = ("code", "name", "base_domain")


class ClusterForm(forms.ModelForm):  # type: ignore[type-arg]
    """What staff say of a region. The kubeconfig and the S3 key are taken, sealed, and never shown."""

    code = forms.SlugField(max_length=40, widget=UnfoldAdminTextInputWidget, help_text="It can't be changed later.")
    name = forms.CharField(max_length=80, widget=UnfoldAdminTextInputWidget)
    base_domain = forms.CharField(
        max_length=200,
        widget=UnfoldAdminTextInputWidget,
        help_text="DNS sends all names below it to the region's ingress. It can't be changed later.",
    )
    kubeconfig = forms.CharField(
        required=False,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 6, "autocomplete": "off", "spellcheck": "false"}),
        help_text="Whole in itself, best with the token of an account that has the role hearth-provider. It is sealed "
        "and never shown again; leave it empty to keep the one that is there.",
    )
    in_cluster = forms.BooleanField(
        required=False,
        widget=UnfoldBooleanSwitchWidget,
        label="Hearth's own account",
        help_text="No kubeconfig: Hearth runs in that cluster and uses the account of its pod.",
    )
    s3_secret_key = forms.CharField(
        required=False,
        widget=UnfoldAdminPasswordWidget(attrs={"autocomplete": "new-password"}),
        help_text="Sealed and never shown again; leave it empty to keep the one that is there.",
    )
    database_password = forms.CharField(
        required=False,
        label="Password",
        widget=UnfoldAdminPasswordWidget(attrs={"autocomplete": "new-password"}),
        help_text="Sealed and never shown again; leave it empty to keep the one that is there.",
    )

    class Meta:
        model = Cluster
        fields = clusters.COLUMNS
        labels = {
            "synapse_image": "Image of Synapse",
            "postgres_image": "Image of PostgreSQL",
            "redis_image": "Image of Redis",
            "etcd_encrypted": "Secrets are encrypted",
            "database_host": "Host",
            "database_port": "Port",
            "database_user": "User",
            "database_authority": "Authority",
            "database_ranges": "Addresses",
            "network_range": "Range",
            "network_prefix": "Size of each",
            "tls_minimum": "Lowest TLS version",
            "monitoring": "Monitors and alert rules",
            "hearth_namespace": "Namespace of the operator",
            "dns_addresses": "DNS caches",
            "api_server_ranges": "API server",
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["route"].initial = ROUTE
        for name in USUAL:
            self.fields[name].required = False
        if self.instance.region_id is not None:
            for name in IDENTITY:
                del self.fields[name]

    def clean(self) -> dict[str, Any]:
        found = dict(super().clean() or {})
        if self.errors:
            return found
        given, adding = found.get("kubeconfig", "").strip(), self.instance.region_id is None
        if given and found["in_cluster"]:
            self.add_error("in_cluster", "Give a kubeconfig or choose the pod's account, not both.")
        if adding and not given and not found["in_cluster"]:
            self.add_error("kubeconfig", "Give a kubeconfig, or choose the account of Hearth's pod.")
        if adding and Region.objects.filter(code=found["code"]).exists():
            self.add_error("code", f"There is a region “{found['code']}” already. Choose another code.")
        for name, usual in USUAL.items():
            found[name] = usual if found.get(name) in (None, "") else found[name]
        columns = {key: found[key] for key in clusters.COLUMNS}
        try:
            clusters.look(columns, given)
            if not adding:
                row = Cluster.objects.select_related("region").get(pk=self.instance.pk)
                clusters.refuse_move(row, columns)
                clusters.refuse_another(row, kubeconfig=given, in_cluster=found["in_cluster"])
        except Refused as refusal:
            field = refusal.field if refusal.field in self.fields else None
            self.add_error(field, ValidationError(refusal.message))
        return found


@admin.register(Cluster)
class ClusterAdmin(ModelAdmin):
    """Kubernetes regions."""

    form = ClusterForm
    list_display = ["region", "way_in", "last_check"]
    list_select_related = ["region"]
    actions = ["check_region"]
    readonly_fields = ["region", "way_in", "last_check", "what_was_found"]
    warn_unsaved_form = True

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:  # noqa: ARG002 (Django's signature)
        first = ("region", "last_check", "what_was_found") if obj else IDENTITY
        return (
            (None, {"fields": first}),
            ("Way in", {"fields": (*(("way_in",) if obj else ()), "kubeconfig", "in_cluster", "route")}),
            ("Images", {"fields": ("synapse_image", "postgres_image", "redis_image")}),
            ("Storage", {"fields": ("storage_class", "snapshot_class", "etcd_encrypted")}),
            ("Media in S3", {"fields": ("s3_endpoint", "s3_bucket", "s3_region", "s3_access_key", "s3_secret_key")}),
            (
                "A PostgreSQL for all servers",
                {
                    "fields": (
                        "database_host",
                        "database_port",
                        "database_user",
                        "database_password",
                        "database_authority",
                        "database_ranges",
                    )
                },
            ),
            ("A network for each server", {"fields": ("network_range", "network_prefix")}),
            (
                "Addresses",
                {
                    "fields": (
                        "ingress_class",
                        "gateway",
                        "issuer",
                        "ingress_namespace",
                        "ingress_address",
                        "tls_minimum",
                    )
                },
            ),
            ("Figures and alerts", {"fields": ("prometheus", "monitoring", "monitoring_namespace")}),
            (
                "Inside the cluster",
                {"fields": ("hearth_namespace", "dns_addresses", "api_server_ranges", "priority_class")},
            ),
            ("Backups", {"fields": ("backup_image", "backup_issuer", "internal_address")}),
            ("More", {"fields": ("overlay",)}),
        )

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        # The fieldsets name what the form itself declares; Django would look for it in the model.
        kwargs["fields"] = clusters.COLUMNS
        return super().get_form(request, obj, change=change, **kwargs)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:  # noqa: ARG002 (Django's signature)
        return self.readonly_fields if obj else ()

    def has_delete_permission(self, *_: Any) -> bool:
        return False

    def has_act_permission(self, request: HttpRequest, *_: Any) -> bool:
        user: Any = request.user
        return bool(user.has_perm("provisioning.change_cluster"))

    def save_model(self, request: HttpRequest, obj: Cluster, form: Any, change: bool) -> None:
        said = form.cleaned_data
        columns = {key: said[key] for key in clusters.COLUMNS}
        secrets: dict[str, Any] = {
            "kubeconfig": said["kubeconfig"].strip() or None,
            **{key: said[key] or None for key in clusters.SECRETS},
        }
        if change:
            clusters.change(actor=request.user, cluster=obj, in_cluster=said["in_cluster"], **secrets, **columns)
        else:
            identity = {name: said[name] for name in IDENTITY}
            made = clusters.create(actor=request.user, **identity, **secrets, **columns)
            obj.pk, obj.region = made.pk, made.region
            messages.info(request, "The region is made, and closed. Check it, then open it under Regions.")

    def log_addition(self, *_: Any) -> None:
        """Leave it to the audit trail, which the verb writes; Django's own log would repeat the form."""

    def log_change(self, *_: Any) -> None:
        """Leave it to the audit trail."""

    @admin.action(description="Check this region", permissions=["act"])
    def check_region(self, request: HttpRequest, queryset: QuerySet[Cluster]) -> None:
        """Ask the chosen clusters what they lack."""
        for cluster in queryset:
            found = clusters.check(actor=request.user, cluster=cluster)
            missing = [each for each in found if each["state"] == "missing"]
            for each in missing:
                messages.error(request, f"{cluster}: {each['what']}: {each['text']}")
            if not missing:
                messages.success(request, f"{cluster}: everything that Hearth needs is there.")

    @admin.display(description="way in")
    def way_in(self, cluster: Cluster) -> str:
        return "The account of Hearth's pod" if cluster.kubeconfig is None else "A kubeconfig (sealed)"

    @admin.display(description="last checked", empty_value="Never: use “Check this region” in the list")
    def last_check(self, cluster: Cluster) -> str | None:
        return moment(cluster.checked) or None

    @admin.display(description="what was found", empty_value="-")
    def what_was_found(self, cluster: Cluster) -> SafeString | None:
        if not cluster.findings:
            return None
        rows = [(WORDS.get(each["state"], each["state"]), each["what"], each["text"]) for each in cluster.findings]
        return format_html("<ul>{}</ul>", format_html_join("", SPACED, rows))
