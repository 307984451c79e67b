"""The live page in a real browser: calm while it changes, patient while Hearth is away, silent when all is done."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connection
from django.test import Client
from django.urls import reverse
from playwright.sync_api import Page, expect, sync_playwright
from pytest_django.live_server_helper import LiveServer

from accounts.models import User
from provisioning import engine, services
from provisioning.models import Operation, OperationEvent
from tenants.models import Server
from tests.prepare import browser as chromium
from tests.provisioning.fakes import ScriptedProvider

QUIET = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
AT_END = "log => log.scrollHeight - log.scrollTop - log.clientHeight < 2"


def in_database(task: Callable[[], object]) -> None:
    """Run `task` beside Playwright's event loop, where Django's database calls are refused."""

    def run() -> object:
        try:
            return task()
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as thread:
        thread.submit(run).result(60)


def write(operation: Operation, *lines: str) -> None:
    """Write lines into the operation's log, as a step would."""

    def rows() -> None:
        OperationEvent.objects.bulk_create(OperationEvent(operation=operation, message=line) for line in lines)

    in_database(rows)


@pytest.mark.django_db(transaction=True)
def test_the_page_stays_calm(
    live_server: LiveServer,
    server: Server,
    provider: ScriptedProvider,
    alice: User,
    client_for: Callable[[User], Client],
) -> None:
    operation = services.reconcile(server.pk)
    assert operation is not None
    path = reverse("server", args=[server.organisation.slug, server.pk])
    cookies = [
        {"name": name, "value": morsel.value, "url": live_server.url}
        for name, morsel in client_for(alice).cookies.items()
    ]

    def walk() -> None:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium(), args=QUIET)
            context = browser.new_context(base_url=live_server.url)
            context.add_cookies(cookies)  # type: ignore[arg-type]
            page = context.new_page()
            page.goto(path)
            page.evaluate("window.first = document.querySelector('.steps li')")
            lines_are_added(page, operation)
            a_lost_connection_is_said(page, operation)
            the_end_is_silent(page, operation)
            assert page.evaluate("window.first !== undefined"), "the page was loaded anew"
            browser.close()

    with ThreadPoolExecutor(1) as thread:
        thread.submit(walk).result(120)


def lines_are_added(page: Page, operation: Operation) -> None:
    """A reader who scrolled up stays there; one at the end sees the newest line. Nothing is made anew."""
    log = page.get_by_role("log")
    write(operation, *(f"line {number}" for number in range(60)))
    expect(log).to_contain_text("line 59")
    assert log.evaluate(AT_END)
    log.evaluate("log => { log.scrollTop = 100; window.line = log.children[3] }")
    write(operation, "while the reader is above")
    expect(log).to_contain_text("while the reader is above")
    assert log.evaluate("log => log.scrollTop") == 100
    assert log.evaluate("log => log.children[3] === window.line")
    assert page.evaluate("document.querySelector('.steps li') === window.first")
    log.evaluate("log => log.scrollTo(0, log.scrollHeight)")
    write(operation, "while the reader is at the end")
    expect(log).to_contain_text("while the reader is at the end")
    assert log.evaluate(AT_END)
    assert page.locator("[aria-live=off]").count() == 1, "a screen reader must not read every line"


def a_lost_connection_is_said(page: Page, operation: Operation) -> None:
    """Away, the page says so once; back, it goes on by itself."""
    page.context.set_offline(True)
    expect(page.locator("#lost")).to_contain_text("keeps asking")
    page.context.set_offline(False)
    expect(page.locator("#lost")).to_be_empty()
    write(operation, "after the connection came back")
    expect(page.get_by_role("log")).to_contain_text("after the connection came back")


def the_end_is_silent(page: Page, operation: Operation) -> None:
    """The page shows the result with its buttons, and asks no more."""
    expect(page.get_by_role("button", name="Restart")).to_have_count(0)
    in_database(lambda: engine.run(operation.pk))
    expect(page.get_by_role("status").get_by_text("Ready", exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="Restart")).to_be_visible()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(2500)
    assert asked == []
    page.get_by_text("More", exact=True).click()
    expect(page.get_by_role("link", name="New admin password")).to_be_visible()
