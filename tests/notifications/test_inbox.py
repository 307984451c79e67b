"""The inbox page exists for one person: who sits at this machine and has the token. For all others it is a 404."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as live
from django.test import Client

from config.settings_identity import smtp
from notifications import services
from notifications.models import Mail

pytestmark = pytest.mark.django_db
TOKEN = "the-token-that-the-start-printed"
HERE: dict[str, Any] = {"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "localhost:8000"}


@pytest.fixture(autouse=True)
def _token(tmp_path: Path, settings: Any) -> None:
    settings.INBOX_TOKEN_FILE = tmp_path / "inbox-token"
    settings.INBOX_TOKEN_FILE.write_text(f"{TOKEN}\n")


@pytest.fixture
def mail() -> Mail:
    return services.queue_mail(
        recipient="alice@example.org", subject="Hello <b>", text="Open https://hearth.example/a?b=1&c=2 <script>"
    )


@pytest.fixture
def reader() -> Client:
    client = Client()
    client.get("/inbox/", {"token": TOKEN}, **HERE)
    return client


def test_it_works(mail: Mail) -> None:
    client = Client()
    first = client.get("/inbox/", {"token": TOKEN}, **HERE)
    assert (first.status_code, first["Location"]) == (302, "/inbox/")
    cookie = first.cookies["hearth-inbox"]
    assert cookie["httponly"]
    assert (cookie["samesite"], cookie["path"]) == ("Strict", "/inbox/")
    assert TOKEN not in cookie.value
    page = client.get("/inbox/", **HERE).content.decode()
    assert "Hello &lt;b&gt;" in page
    text = client.get(f"/inbox/{mail.pk}/", **HERE).content.decode()
    assert 'href="https://hearth.example/a?b=1&amp;c=2"' in text
    assert "<script>" not in text.partition("<article")[2].partition("</article>")[0]


def test_it_says_when_there_is_nothing(reader: Client) -> None:
    assert "No mails yet" in reader.get("/inbox/", **HERE).content.decode()


@pytest.mark.parametrize("query", [{}, {"token": ""}, {"token": "wrong"}, {"token": TOKEN[:-1]}, {"token": "ü"}])
def test_without_the_token(query: dict[str, str], mail: Mail) -> None:
    client = Client()
    assert client.get("/inbox/", query, **HERE).status_code == 404
    assert client.get(f"/inbox/{mail.pk}/", query, **HERE).status_code == 404


def test_a_forged_cookie(mail: Mail) -> None:
    client = Client()
    client.cookies["hearth-inbox"] = "anything:1rXyzz:abc"
    assert client.get("/inbox/", **HERE).status_code == 404


@pytest.mark.parametrize(
    "change",
    [
        {"REMOTE_ADDR": "192.0.2.1"},
        {"REMOTE_ADDR": ""},
        {"HTTP_HOST": "testserver"},
        {"HTTP_X_FORWARDED_FOR": "192.0.2.1"},
        {"HTTP_X_FORWARDED_FOR": "127.0.0.1"},
        {"HTTP_FORWARDED": "for=192.0.2.1"},
        {"HTTP_X_REAL_IP": "192.0.2.1"},
    ],
)
def test_from_elsewhere_even_with_the_token(change: dict[str, str], reader: Client) -> None:
    assert reader.get("/inbox/", **{**HERE, **change}).status_code == 404
    assert Client().get("/inbox/", {"token": TOKEN}, **{**HERE, **change}).status_code == 404


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8000", "[::1]:8000"])
def test_every_name_of_this_machine_works(host: str, reader: Client) -> None:
    assert reader.get("/inbox/", **{**HERE, "HTTP_HOST": host}).status_code == 200


def test_with_a_mail_server_there_is_no_inbox(reader: Client, settings: Any) -> None:
    settings.SMTP = smtp("smtp://127.0.0.1:1")
    assert reader.get("/inbox/", **HERE).status_code == 404


def test_a_new_token_ends_what_the_old_one_opened(reader: Client) -> None:
    assert reader.get("/inbox/", **HERE).status_code == 200
    Path(live.INBOX_TOKEN_FILE).write_text("another token")
    assert reader.get("/inbox/", **HERE).status_code == 404


@pytest.mark.parametrize("content", [None, ""])
def test_without_a_token_file_nobody_gets_in(content: str | None, reader: Client) -> None:
    path = Path(live.INBOX_TOKEN_FILE)
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    assert reader.get("/inbox/", **HERE).status_code == 404
    assert Client().get("/inbox/", {"token": ""}, **HERE).status_code == 404


def test_nothing_can_be_posted(reader: Client) -> None:
    assert reader.post("/inbox/", **HERE).status_code in {404, 405}


def test_mails_that_left_are_not_shown(reader: Client, mail: Mail) -> None:
    Mail.objects.update(state=Mail.State.SENT)
    assert reader.get(f"/inbox/{mail.pk}/", **HERE).status_code == 404


def test_whoever_waits_for_a_mail_is_told_where_it_is(client: Client, settings: Any) -> None:
    for path in ("/account/confirm-email/", "/account/password/reset/done/"):
        assert "Open the inbox" in client.get(path, **HERE).content.decode()
        assert "inbox" not in client.get(path, **(HERE | {"REMOTE_ADDR": "192.0.2.7"})).content.decode()
    settings.SMTP = smtp("smtp://127.0.0.1:1")
    assert "inbox" not in client.get("/account/confirm-email/", **HERE).content.decode()
