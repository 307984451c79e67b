"""`manage.py certificate`, the staff's page, and where the listener is."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.test import Client

from config import internal
from config.env import read
from security.transport.certificates import Mounted, Own
from security.transport.files import Files
from security.transport.identities import Identity
from security.transport.models import Authority
from security.transport.places import internal_address, internal_hosts, internal_port
from tests.cast import client_for, make_user
from tests.security.transport.pki import SERVER


def run(*words: str) -> str:
    out = io.StringIO()
    call_command("certificate", *words, stdout=out)
    return out.getvalue()


@pytest.mark.django_db
def test_a_certificate_for_prometheus(tmp_path: Path) -> None:
    folder = tmp_path / "prometheus"
    assert run("issue", "metrics", "prometheus", str(folder)).startswith("metrics prometheus: a certificate in ")
    files = Files(folder / "certificate.pem", folder / "key.pem", folder / "trust.pem")
    first = files.read()
    assert first.identity == Identity("metrics", "prometheus")
    assert (folder / "key.pem").stat().st_mode & 0o777 == 0o600
    run("issue", "metrics", "prometheus", str(folder))
    assert files.read().key != first.key


@pytest.mark.django_db
def test_the_files_belong_to_whom_the_folder_belongs_to(tmp_path: Path) -> None:
    folder = tmp_path / "prometheus"
    folder.mkdir()
    owner = os.geteuid() or 65534  # only root may give files away
    os.chown(folder, owner, -1)
    run("issue", "metrics", "prometheus", str(folder))
    assert {path.stat().st_uid for path in folder.iterdir()} == {owner}
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


@pytest.mark.django_db
def test_what_can_not_be_issued(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="named by its server's UUID"):
        run("issue", "agent", SERVER.replace("-", ""), str(tmp_path))
    with pytest.raises(SystemExit):  # argparse's way to say what the kinds are
        run("issue", "hearth", "listener", str(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(CommandError, match="Nothing was issued"):
        run("issue", "metrics", "prometheus", str(tmp_path / "file"))


@pytest.mark.django_db
def test_the_authority_is_shown_and_replaced() -> None:
    assert run("show") == ""
    assert "the only one that the listener trusts" in run("replace-authority")
    assert str(Authority.objects.get()) in run("show")
    run("replace-authority")
    assert run("show").count("signs from") == 2


@pytest.mark.django_db
def test_staff_see_it_without_its_key() -> None:
    run("replace-authority")
    made = Authority.objects.get()
    staff: Client = client_for(make_user("staff@example.org", staff=True))
    for address in ("/admin/transport/authority/", f"/admin/transport/authority/{made.pk}/change/"):
        page = staff.get(address)
        assert page.status_code == 200
        assert "PRIVATE KEY" not in page.content.decode()
    with pytest.raises(TypeError):
        Authority._meta.get_field("key").value_to_string(made)


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ({"HEARTH_PORT": 8000}, "https://127.0.0.1:18000"),
        ({"HEARTH_PORT": 60_000}, "https://127.0.0.1:50000"),
        ({"HEARTH_INTERNAL_PORT": 9}, "https://127.0.0.1:9"),
        ({"HEARTH_INTERNAL_HOST": "0.0.0.0"}, "https://127.0.0.1:18000"),
        ({"HEARTH_INTERNAL_HOST": "::"}, "https://[::1]:18000"),
        ({"HEARTH_INTERNAL_HOST": "10.0.0.7"}, "https://10.0.0.7:18000"),
    ],
)
def test_where_the_listener_is(given: dict[str, Any], address: str) -> None:
    plain = {"HEARTH_PORT": 8000, "HEARTH_INTERNAL_PORT": 0, "HEARTH_INTERNAL_HOST": "127.0.0.1"}
    found = plain | {"HEARTH_INTERNAL_NAMES": ["hearth.svc", "localhost"]} | given
    assert internal_address(found) == address
    assert str(internal_port(found)) in address
    hosts = internal_hosts(found)
    assert {"localhost", "127.0.0.1", "::1", "hearth.svc"} <= set(hosts)
    assert len(set(hosts)) == len(hosts)
    assert ("10.0.0.7" in hosts) == ("10.0.0.7" in address)
    assert "0.0.0.0" not in hosts


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"HEARTH_INTERNAL_KEY": "/key"}, "Set all of HEARTH_INTERNAL_CERTIFICATE, HEARTH_INTERNAL_KEY, HEARTH_INTER"),
        ({"HEARTH_INTERNAL_PORT": "8000"}, "HEARTH_INTERNAL_PORT and HEARTH_PORT must differ"),
        ({"HEARTH_INTERNAL_TRUST": "-----BEGIN CERTIFICATE"}, "HEARTH_INTERNAL_TRUST must be the path of a PEM file"),
        ({"HEARTH_INTERNAL_HOST": "hearth"}, "HEARTH_INTERNAL_HOST must be an IP address"),
        ({"HEARTH_INTERNAL_CERTIFICATE_SECONDS": "9999999"}, "must lie between 5 and 1209600"),
    ],
)
def test_settings_that_can_not_be(given: dict[str, str], sentence: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=sentence) as caught:
        read(given)
    assert str(caught.value).endswith("Nothing was started.")


def test_where_its_certificate_comes_from() -> None:
    assert isinstance(internal.source(settings.HEARTH), Own)
    names = ("CERTIFICATE", "KEY", "TRUST")
    mounted = {f"HEARTH_INTERNAL_{name}": f"/certificates/{name}" for name in names}
    assert isinstance(internal.source(settings.HEARTH | mounted), Mounted)
