"""The staff console: who gets in, by which steps, and the one-time link that makes the first of the staff."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pyotp
import pytest
from allauth.account.models import EmailAddress
from django.contrib import admin
from django.contrib.auth.models import Permission
from django.db import connection
from django.test import Client, RequestFactory
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from accounts import services
from accounts.models import StaffLink, User
from audit.models import AuditEvent
from backups.models import Drill, Policy, RegionStores, Store
from notifications.models import Mail
from provisioning.models import Cluster
from tests.accounts.browser import PASSWORD, Browser
from tests.cast import TOTP_SECRET, make_user

pytestmark = pytest.mark.django_db
PAGES = [
    "/admin/",
    "/admin/accounts/user/",
    "/admin/tenants/organisation/",
    "/admin/tenants/server/",
    "/admin/notifications/mail/",
    "/admin/audit/auditevent/",
    "/admin/search/?q=a",
    "/admin/jsi18n/",
]


@pytest.fixture
def sally(db: None) -> User:
    """Sally is staff, with an authenticator app."""
    return make_user("sally@example.org", staff=True)


def test_it_works(sally: User, client_for: Callable[..., Client]) -> None:
    client = client_for(sally)
    for page in PAGES[:-2]:
        assert client.get(page).status_code == 200, page


MADE_HERE = (Cluster, Store, RegionStores, Policy, Drill)
"""What staff make in the console, by verbs."""


def test_every_registered_page_opens_and_nothing_else_can_be_written(
    sally: User, client_for: Callable[..., Client]
) -> None:
    client = client_for(sally)
    for model in admin.site._registry:
        base = f"admin:{model._meta.app_label}_{model._meta.model_name}"
        assert client.get(reverse(f"{base}_changelist")).status_code == 200, model
        assert client.get(reverse(f"{base}_add")).status_code == (200 if model in MADE_HERE else 403), model
    person = reverse("admin:accounts_user_change", args=[sally.pk])
    assert client.get(person).status_code == 200
    assert client.post(person, {"email": "other@example.org"}).status_code == 403


def test_second_factors_and_links_are_not_in_the_console() -> None:
    names = {model._meta.label for model in admin.site._registry}
    assert not names & {"mfa.Authenticator", "account.EmailAddress", "account.EmailConfirmation", "accounts.StaffLink"}


@pytest.mark.parametrize("page", PAGES)
def test_not_signed_in(page: str) -> None:
    browser = Browser().open(page)
    assert browser.path == "/account/login/"


@pytest.mark.parametrize("page", PAGES)
def test_staff_without_a_factor_is_led_to_add_one(page: str, client_for: Callable[..., Client]) -> None:
    newcomer = make_user("sally@example.org", staff=True, factor=False)
    assert Browser(client=client_for(newcomer, factor=False)).open(page).path == "/account/2fa/totp/activate/"


@pytest.mark.parametrize("page", PAGES)
def test_staff_whose_session_proved_nothing_is_led_to_prove_it(
    page: str, sally: User, client_for: Callable[..., Client]
) -> None:
    browser = Browser(client=client_for(sally, factor=False)).open(page)
    assert browser.path == "/account/2fa/reauthenticate/"


@pytest.mark.parametrize("page", PAGES)
def test_customers_stay_outside(page: str, alice: User, client_for: Callable[..., Client]) -> None:
    assert Browser(client=client_for(alice)).open(page).page.status_code == 403


def test_a_proof_outlives_no_factor(sally: User, client_for: Callable[..., Client]) -> None:
    client = client_for(sally)
    sally.authenticator_set.all().delete()  # type: ignore[attr-defined]
    assert Browser(client=client).open("/admin/").path == "/account/2fa/totp/activate/"


def test_somebody_elses_proof_does_not_count(sally: User, client_for: Callable[..., Client]) -> None:
    client = client_for(make_user("sid@example.org", staff=True))
    kept = {key: value for key, value in client.session.items() if key.startswith("account_authentication")}
    client.force_login(sally)
    session = client.session
    session.update(kept)
    session.save()
    assert Browser(client=client).open("/admin/").path == "/account/2fa/reauthenticate/"


def test_signing_in_with_a_code_leads_back(sally: User) -> None:
    browser = Browser().open("/admin/accounts/user/").send(login=sally.email, password=PASSWORD)
    assert browser.path == "/account/2fa/authenticate/"
    browser.send(code=pyotp.TOTP(TOTP_SECRET).now())
    assert browser.path == "/admin/accounts/user/"


def test_the_policy_of_the_console_is_its_own(sally: User, client_for: Callable[..., Client]) -> None:
    client = client_for(sally)
    inside = client.get("/admin/")["Content-Security-Policy"]
    outside = client.get("/account/")["Content-Security-Policy"]
    assert "'unsafe-eval'" in inside
    assert "unsafe" not in outside
    script = next(part for part in inside.split(";") if part.strip().startswith("script-src"))
    assert "unsafe-inline" not in script


def test_the_console_signs_out_by_post(sally: User, client_for: Callable[..., Client]) -> None:
    client = client_for(sally)
    assert client.get("/admin/logout/")["Location"] == "/account/logout/"
    client.post("/admin/logout/")
    assert "_auth_user_id" not in client.session


def test_closing_an_account_ends_its_sessions(sally: User, alice: User, client_for: Callable[..., Client]) -> None:
    hers = client_for(alice)
    choice = {"action": "close", "_selected_action": [str(alice.pk), str(sally.pk)]}
    answer = client_for(sally).post("/admin/accounts/user/", choice, follow=True)
    assert "1 of the chosen accounts closed" in answer.content.decode()
    assert "own account" in answer.content.decode()
    assert hers.get("/account/").status_code == 302
    assert AuditEvent.objects.get(verb="account.close").object_id == str(alice.pk)


@pytest.mark.django_db(transaction=True)
def test_the_link_makes_the_first_staff_account() -> None:
    assert services.staff_link_needed()
    browser = Browser().open(services.make_staff_link())
    browser.send(email="Sally@Example.org", password=PASSWORD)
    assert browser.path == "/account/2fa/totp/activate/"
    browser.add_app()
    assert browser.path == "/account/2fa/recovery-codes/"
    assert browser.open("/account/second-factor/done/").path == "/admin/"
    sally = User.objects.get()
    assert (sally.email, sally.is_staff, sally.is_superuser) == ("sally@example.org", True, True)
    assert EmailAddress.objects.get(user=sally).verified
    assert not services.staff_link_needed()
    assert AuditEvent.objects.filter(verb="account.claim_staff_link").exists()


def test_a_link_works_once() -> None:
    link = services.make_staff_link()
    late = Browser().open(link)
    Browser().open(link).send(email="sally@example.org", password=PASSWORD)
    late.send(email="mallory@example.org", password=PASSWORD)
    for browser in (late, Browser().open(link)):
        assert browser.page.status_code == 410
        assert "no longer works" in browser.text
    assert [user.email for user in User.objects.all()] == ["sally@example.org"]


def test_a_newer_an_expired_and_an_invented_link() -> None:
    old, new = services.make_staff_link(), services.make_staff_link()
    assert Browser().open(old).page.status_code == 410
    assert Browser().open(new).page.status_code == 200
    StaffLink.objects.update(expires=timezone.now() - timedelta(seconds=1))
    assert Browser().open(new).page.status_code == 410
    assert Browser().open("/staff/claim/invented/").page.status_code == 410


def test_only_a_hash_of_the_link_is_kept() -> None:
    token = services.make_staff_link().split("/")[-2]
    row = StaffLink.objects.get()
    assert token not in str(vars(row))


def test_a_mistake_does_not_spend_the_link(alice: User) -> None:
    browser = Browser().open(services.make_staff_link())
    browser.send(email="sally@example.org", password="short")
    assert "errorlist" in browser.text
    browser.send(email=alice.email, password=PASSWORD)
    assert "link still works" in browser.text
    browser.send(email="sally@example.org", password=PASSWORD)
    assert User.objects.filter(email="sally@example.org", is_superuser=True).exists()
    alice.refresh_from_db()
    assert not alice.is_staff


@pytest.mark.django_db(transaction=True)
def test_two_at_once_one_wins() -> None:
    token = services.make_staff_link().split("/")[-2]
    outcomes: list[Any] = []
    ready = threading.Barrier(2)

    def claim(email: str) -> None:
        ready.wait()
        try:
            outcomes.append(services.claim_staff_link(token, email, PASSWORD))
        except services.LinkSpent:
            outcomes.append(None)
        finally:
            connection.close()

    threads = [threading.Thread(target=claim, args=[f"{name}@example.org"]) for name in ("sally", "sid")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len([user for user in outcomes if user]) == 1
    assert User.objects.count() == 1


def test_lists_cost_the_same_at_any_size(sally: User, client_for: Callable[..., Client]) -> None:
    client = client_for(sally)
    client.get("/admin/accounts/user/")
    with CaptureQueriesContext(connection) as few:
        client.get("/admin/accounts/user/")
    for number in range(20):
        make_user(f"person{number}@example.org")
    with CaptureQueriesContext(connection) as many:
        client.get("/admin/accounts/user/")
    assert len(many) == len(few)


def test_staff_without_all_rights_see_nothing_that_they_were_not_given(client_for: Callable[..., Client]) -> None:
    trainee = make_user("tom@example.org", staff=True)
    User.objects.filter(pk=trainee.pk).update(is_superuser=False)
    client = client_for(trainee)
    assert client.get("/admin/").status_code == 200
    for model in admin.site._registry:
        base = f"admin:{model._meta.app_label}_{model._meta.model_name}"
        assert client.get(reverse(f"{base}_changelist")).status_code == 403, model


def test_who_may_look_may_not_act(alice: User, client_for: Callable[..., Client]) -> None:
    trainee = make_user("tom@example.org", staff=True)
    User.objects.filter(pk=trainee.pk).update(is_superuser=False)
    trainee.user_permissions.add(*Permission.objects.filter(codename__startswith="view_"))
    client = client_for(trainee)
    for model, registered in admin.site._registry.items():
        base = f"admin:{model._meta.app_label}_{model._meta.model_name}"
        assert client.get(reverse(f"{base}_changelist")).status_code == 200, model
        request = RequestFactory().get("/")
        request.user = User.objects.get(pk=trainee.pk)
        assert not registered.get_actions(request), model
    client.post("/admin/accounts/user/", {"action": "close", "_selected_action": [str(alice.pk)]})
    alice.refresh_from_db()
    assert alice.is_active
    assert client.get("/admin/notifications/mail/send-test-mail/").status_code == 403
    assert not Mail.objects.exists()


def test_nobody_closes_the_account_of_somebody_with_more_rights(sally: User) -> None:
    trainee = make_user("tom@example.org", staff=True)
    trainee.is_superuser = False
    with pytest.raises(services.Refused, match="more rights"):
        services.set_active(trainee, sally, active=False)


def test_the_button_sends_a_test_mail(sally: User, client_for: Callable[..., Client]) -> None:
    page = client_for(sally).get("/admin/notifications/mail/send-test-mail/", follow=True)
    assert "the mail is in the inbox page" in page.content.decode()
    assert Mail.objects.get().recipient == sally.email


@pytest.mark.parametrize("query", ["q=%00", "q=%ff", "o=%00", "p=-1", "p=99999999999999999999", "e=1", "id__exact=x"])
def test_forged_addresses_of_lists_are_no_fault(sally: User, client_for: Callable[..., Client], query: str) -> None:
    client = client_for(sally)
    for model in admin.site._registry:
        base = f"admin:{model._meta.app_label}_{model._meta.model_name}"
        answer = client.get(f"{reverse(f'{base}_changelist')}?{query}")
        assert answer.status_code in {200, 302, 400}, model


def test_a_forged_address_of_a_row_is_no_fault(sally: User, client_for: Callable[..., Client]) -> None:
    client = client_for(sally)
    for model in admin.site._registry:
        path = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_change", args=["\x00"])
        assert client.get(path).status_code in {302, 404}, model
