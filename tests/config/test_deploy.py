"""Under the settings of a real deployment: Django's own check is content, and nothing is served without TLS."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.stack import ROOT

ASK = """
import json, logging, django
django.setup()
from django.core.management import call_command
from django.test import Client
call_command("collectstatic", interactive=False, verbosity=0)
client, answers = Client(raise_request_exception=False), {}
for path in ("/healthz", "/readyz", "/", "/account/login/", "/inbox/", "/admin/", "/nothing/"):
    for secure in (False, True):
        answer = client.get(path, secure=secure, headers={"host": "hearth.example"})
        answers[f"{'https' if secure else 'http'} {path}"] = [answer.status_code, dict(answer.headers)]
from django.conf import settings
print(json.dumps([answers, {name: getattr(settings, name) for name in dir(settings) if "COOKIE" in name}], default=str))
"""


def test_check_deploy_has_nothing_to_say(tmp_path: Path) -> None:
    done = run(tmp_path, "manage.py", "check", "--deploy", "--fail-level", "DEBUG")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "System check identified no issues (0 silenced).\n"


def test_everything_but_what_this_machine_asks_is_sent_to_https(tmp_path: Path) -> None:
    done = run(tmp_path, "-c", ASK)
    assert done.returncode == 0, done.stderr
    answers, cookies = json.loads(done.stdout.splitlines()[-1])
    for path in ("/", "/account/login/", "/admin/", "/nothing/"):
        status, headers = answers[f"http {path}"]
        assert (status, headers["Location"]) == (301, f"https://hearth.example{path}")
    assert answers["http /healthz"][0] == 200
    assert answers["http /readyz"][0] in {200, 503}
    assert answers["https /account/login/"][0] == 200
    assert answers["http /inbox/"][0] == 404  # it exists on this machine alone, and says so without a detour
    for asked, (_, headers) in answers.items():
        hsts = headers.get("Strict-Transport-Security")
        assert hsts == ("max-age=31536000; includeSubDomains; preload" if asked.startswith("https") else None)
        if headers.get("Location", "").startswith("https://hearth.example"):
            continue
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    for kind in ("SESSION", "CSRF"):
        assert cookies[f"{kind}_COOKIE_NAME"].startswith("__Host-")
        assert cookies[f"{kind}_COOKIE_SECURE"] is True
        assert cookies[f"{kind}_COOKIE_HTTPONLY"] is True
        assert cookies[f"{kind}_COOKIE_SAMESITE"] in {"Lax", "Strict"}
        assert (cookies[f"{kind}_COOKIE_PATH"], cookies[f"{kind}_COOKIE_DOMAIN"]) == ("/", None)


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python under a deployment's settings."""
    (folder / "static").mkdir()
    kept = {name: os.environ[name] for name in ("PATH", "DATABASE_URL", "REDIS_URL")}
    environment = kept | {
        "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}",
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "HEARTH_SECRET_KEY": os.urandom(40).hex(),
        "HEARTH_PUBLIC_URL": "https://hearth.example",
        "HEARTH_SMTP_URL": "smtp+tls://localhost",
        "HEARTH_STATE": str(folder),
    }
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, check=False, capture_output=True, text=True, timeout=120
    )
