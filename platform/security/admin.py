"""The keyring in the staff console: to read. No page shows a key, not even a wrapped one."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.utils import timezone

from observability.console import ReadOnlyAdmin, column, moment
from security.keyring import erasure, report
from security.models import BundleFile, Erasure, KeyEncryptionKey, Rewrap, RootKey, UnwrapGrant

LATE = {"late": "bad", "in time": "good", "": "idle"}


class OwnedAdmin(ReadOnlyAdmin):
    """Rows that belong to an organisation or to the platform, by the name that people know."""

    search_fields: tuple[str, ...] = ("owner",)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[Any]:
        base: Any = super().get_changelist(request, **kwargs)

        class Named(base):
            def get_results(self, request: HttpRequest) -> None:
                super().get_results(request)
                rows: list[Any] = list(self.result_list)
                known = report.names(row.owner for row in rows)
                for row in rows:
                    row.known_as = known[row.owner]
                self.result_list: list[Any] = rows

        return Named

    @admin.display(description="owner")
    def owner_name(self, row: Any) -> str:
        return getattr(row, "known_as", None) or report.name(row.owner)


@admin.register(RootKey)
class RootKeyAdmin(ReadOnlyAdmin):
    list_display = ("id", "state", "age_days", "next_rotation", "rotation")
    ordering = ("-created",)

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        # The one table here whose key is text, and PostgreSQL knows no text with a NUL in it.
        return None if "\x00" in object_id else super().get_object(request, object_id, from_field)

    @column("age in days", order="created")
    def age_days(self, row: RootKey) -> int:
        return _age(row)

    @column("next rotation", order="rotate_after")
    def next_rotation(self, row: RootKey) -> str:
        return moment(row.rotate_after) if row.state == RootKey.State.ACTIVE else ""

    @column("rotation", tones=LATE)
    def rotation(self, row: RootKey) -> tuple[str, str]:
        return _late(row, active=row.state == RootKey.State.ACTIVE)


@admin.register(KeyEncryptionKey)
class KeyEncryptionKeyAdmin(OwnedAdmin):
    """The policy report: every version, its age, its next rotation; what is overdue on top."""

    list_display = ("owner_name", "version", "state", "age_days", "next_rotation", "rotation", "root")
    list_filter = ("state",)
    exclude = ("wrapped",)
    list_select_related = ("root",)
    ordering = ("state", "rotate_after")

    @column("age in days", order="created")
    def age_days(self, row: KeyEncryptionKey) -> int:
        return _age(row)

    @column("next rotation", order="rotate_after")
    def next_rotation(self, row: KeyEncryptionKey) -> str:
        return moment(row.rotate_after) if row.state == KeyEncryptionKey.State.ACTIVE else ""

    @column("rotation", tones=LATE)
    def rotation(self, row: KeyEncryptionKey) -> tuple[str, str]:
        return _late(row, active=row.state == KeyEncryptionKey.State.ACTIVE)

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        keks, roots = report.overdue_keks().count(), report.overdue_roots().count()
        also = f", {roots} root key{'s' if roots > 1 else ''} among them" if roots else ""
        title = f"Keys: {keks + roots} overdue{also}" if keks + roots else "Keys: none is overdue"
        page: HttpResponse = super().changelist_view(request, {"title": title, **(extra_context or {})})
        return page


@admin.register(Rewrap)
class RewrapAdmin(OwnedAdmin):
    list_display = ("owner_name", "done", "total", "started", "finished", "error")
    exclude = ("lease",)


@admin.register(Erasure)
class ErasureAdmin(OwnedAdmin):
    """Asked for and taken back on the organisation's own page."""

    list_display = ("owner_name", "requested", "destroy_after", "destroyed", "complete_on", "completed")

    @admin.display(description="complete on")
    def complete_on(self, row: Erasure) -> Any:
        return erasure.complete_on(row)


@admin.register(UnwrapGrant)
class UnwrapGrantAdmin(OwnedAdmin):
    """Who may open whose backups' keys, and who could."""

    list_display = ("owner_name", "purpose", "source", "target", "opened", "created", "expires_at", "ended")
    list_filter = ("purpose",)
    search_fields = ("organisation", "source", "target", "holder")
    ordering = ("-created",)

    @column("state", tones={"live": "good", "expired": "idle", "revoked": "idle"})
    def ended(self, row: UnwrapGrant) -> tuple[str, str]:
        if row.revoked_at is not None:
            return "revoked", row.revoked_because
        return ("expired", "Expired") if row.expires_at <= timezone.now() else ("live", "Live")


@admin.register(BundleFile)
class BundleFileAdmin(ReadOnlyAdmin):
    """Which key bundles lie where."""

    list_display = ("place", "kind", "created", "verified", "lost", "size", "name")
    list_filter = ("place", "kind")
    search_fields = ("name",)
    ordering = ("-created",)


def _age(row: RootKey | KeyEncryptionKey) -> int:
    return (timezone.now() - row.created).days


def _late(row: RootKey | KeyEncryptionKey, *, active: bool) -> tuple[str, str]:
    if not active:
        return "", "replaced"
    return ("late", "Overdue") if row.rotate_after < timezone.now() else ("in time", "In time")
