"""Routes of organisations. The overview and a server's own page are in `provisioning.urls`."""

from __future__ import annotations

from django.urls import path

from tenants.views import domains, keys, members, organisations, servers

SERVER = "o/<slug:slug>/servers/<uuid:server_id>/"

urlpatterns = [
    path("", organisations.home, name="home"),
    path("organisations/new/", organisations.organisation_new, name="organisation_new"),
    path("invitations/<uuid:invitation_id>/<slug:answer>/", members.invitation_answer, name="invitation_answer"),
    path("o/<slug:slug>/plan/", organisations.organisation_plan, name="organisation_plan"),
    path("o/<slug:slug>/members/", members.organisation_members, name="organisation_members"),
    path("o/<slug:slug>/members/<uuid:member_id>/remove/", members.member_remove, name="member_remove"),
    path(
        "o/<slug:slug>/invitations/<uuid:invitation_id>/withdraw/",
        members.invitation_withdraw,
        name="invitation_withdraw",
    ),
    path("o/<slug:slug>/keys/", keys.organisation_keys, name="organisation_keys"),
    path("o/<slug:slug>/keys/rotate/", keys.keys_rotate, name="keys_rotate"),
    path("o/<slug:slug>/domains/", domains.organisation_domains, name="organisation_domains"),
    path("o/<slug:slug>/domains/<uuid:domain_id>/", domains.domain, name="domain"),
    path("o/<slug:slug>/domains/<uuid:domain_id>/check/", domains.domain_check, name="domain_check"),
    path("o/<slug:slug>/domains/<uuid:domain_id>/remove/", domains.domain_remove, name="domain_remove"),
    path("o/<slug:slug>/servers/new/", servers.server_new, name="server_new"),
    path(f"{SERVER}restart/", servers.restart, name="server_restart"),
    path(f"{SERVER}suspend/", servers.suspend, name="server_suspend"),
    path(f"{SERVER}resume/", servers.resume, name="server_resume"),
    path(f"{SERVER}upgrade/", servers.upgrade, name="server_upgrade"),
    path(f"{SERVER}size/", servers.size, name="server_size"),
    path(f"{SERVER}delete/", servers.delete, name="server_delete"),
    path(f"{SERVER}undelete/", servers.undelete, name="server_undelete"),
    path(f"{SERVER}password/", servers.password, name="server_password"),
]
