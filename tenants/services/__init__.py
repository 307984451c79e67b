"""The verbs: the only writer of this app's tables.

Each is one transaction: it locks what it changes, refuses with a sentence or writes everything, records the audit
event, and after the commit wakes whoever carries servers out. `actor` is the person; `tenants.access` says who may act.
"""

from tenants.services.domains import check_domain, claim_domain, remove_domain, revoke_domain
from tenants.services.keys import request_erasure, rotate_keys, withdraw_erasure
from tenants.services.members import (
    accept_invitation,
    add_member,
    decline_invitation,
    remove_member,
    withdraw_invitation,
)
from tenants.services.organisations import choose_plan, create_organisation
from tenants.services.plans import change_plan
from tenants.services.servers import (
    create_server,
    delete_server,
    reset_admin_password,
    resize_server,
    restart_server,
    resume_server,
    suspend_server,
    undelete_server,
    upgrade_server,
)

__all__ = [
    "accept_invitation",
    "add_member",
    "change_plan",
    "check_domain",
    "choose_plan",
    "claim_domain",
    "create_organisation",
    "create_server",
    "decline_invitation",
    "delete_server",
    "remove_domain",
    "remove_member",
    "request_erasure",
    "reset_admin_password",
    "resize_server",
    "restart_server",
    "resume_server",
    "revoke_domain",
    "rotate_keys",
    "suspend_server",
    "undelete_server",
    "upgrade_server",
    "withdraw_erasure",
    "withdraw_invitation",
]
