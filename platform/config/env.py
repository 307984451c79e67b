"""The one list of Hearth's settings: every environment variable it reads, its type, its default and its meaning.

`docs/settings.md` is written from this list (`manage.py settings_page`), and a test holds the two together. An unknown
or malformed `HEARTH_*` variable stops the start with a sentence, because a setting that is silently ignored is a fault
that nobody sees. A secret may come from a file: `NAME_FILE=/path` stands for `NAME`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import environ
from django.core.exceptions import ImproperlyConfigured

from config import allowed, connections
from security.transport.places import internal_fault

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Setting:
    """One environment variable: `kind` is the name of a django-environ cast, `check` says why a value won't do."""

    name: str
    kind: str
    default: Any
    help: str
    secret: bool = False
    check: Callable[[Any], str] | None = None


SETTINGS: tuple[Setting, ...] = (
    Setting("HEARTH_DEBUG", "bool", False, "Development pages with tracebacks. Never on a machine others can reach."),
    Setting(
        "HEARTH_SECRET_KEY", "str", "", "Signs sessions and links. The embedded mode makes one by itself.", secret=True
    ),
    Setting("HEARTH_STATE", "str", str(ROOT / "var"), "The folder that holds everything Hearth keeps on this machine."),
    Setting(
        "HEARTH_HOST",
        "str",
        "127.0.0.1",
        "The address that the web server listens on. Another one than loopback needs HEARTH_SMTP_URL.",
        check=allowed.address,
    ),
    Setting("HEARTH_PORT", "int", 8000, "The port that the web server listens on.", check=allowed.between(1, 65535)),
    Setting(
        "HEARTH_PUBLIC_URL",
        "str",
        "",
        "The address people type, when a proxy stands in front. Default: `http://localhost:<port>`. With `https://` "
        "everything else is sent there, so the proxy must set X-Forwarded-Proto.",
        check=allowed.url("https", "http"),
    ),
    Setting(
        "HEARTH_INSTALLATION",
        "str",
        "",
        "What this Hearth is called in clusters: it touches no server of another. Default: the host of "
        "HEARTH_PUBLIC_URL. When that changes, give the former one here; give a copy of Hearth another one.",
    ),
    Setting("HEARTH_ALLOWED_HOSTS", "list", [], "Further host names that the web server answers to."),
    Setting(
        "HEARTH_TRUSTED_PROXIES",
        "int",
        0,
        "How many proxies in front append to X-Forwarded-For.",
        check=allowed.between(0, 16),
    ),
    Setting("HEARTH_BASE_DOMAIN", "str", "hearth.localhost", "A new server is called `<name>.<base domain>`."),
    Setting(
        "HEARTH_DELETE_GRACE_HOURS",
        "int",
        72,
        "How long a deleted server can still be brought back.",
        check=allowed.between(0, 8760),
    ),
    Setting(
        "HEARTH_RESTORE_KEEP_DAYS",
        "int",
        7,
        "Days that a copy beside a server, and what a server had before it was restored, are kept.",
        check=allowed.between(1, 90),
    ),
    Setting(
        "HEARTH_EXPORT_KEEP_DAYS",
        "int",
        7,
        "Days for which the archive of an export can be downloaded; then it is removed.",
        check=allowed.between(1, 30),
    ),
    Setting("HEARTH_REQUIRE_MFA", "bool", True, "People need a second factor before they can create an organisation."),
    Setting(
        "HEARTH_DNS_RESOLVERS",
        "list",
        [],
        "Resolvers for domain proofs, `address` or `address:port`. Default: the system's.",
    ),
    Setting("HEARTH_MAIL_FROM", "str", "Hearth <hearth@localhost>", "The sender of Hearth's mails."),
    Setting(
        "HEARTH_SMTP_URL",
        "str",
        "",
        "`smtp+tls://user:password@host:587`. Empty: mails stay in the inbox page, which exists on loopback only.",
        secret=True,
        check=allowed.url("smtp+tls", "smtp+ssl", "smtps", "smtp"),
    ),
    Setting("HEARTH_KEY_FILE", "str", "", "The root key, mode 0600. Default: `keys/root.key` in the state folder."),
    Setting(
        "HEARTH_KEY_SOURCE",
        "str",
        "file",
        "Where a new root key is made on an empty database: `file` or `hsm`. `manage.py keys move-to-hsm` moves later.",
        check=allowed.one_of("file", "hsm"),
    ),
    Setting("HEARTH_HSM_MODULE", "str", "", "The PKCS#11 library of the HSM. Empty: there is no HSM."),
    Setting("HEARTH_HSM_TOKEN", "str", "", "The label of the token to use. Empty: the one in HEARTH_HSM_SLOT."),
    Setting("HEARTH_HSM_SLOT", "int", 0, "The slot of the token, where HEARTH_HSM_TOKEN does not name it."),
    Setting("HEARTH_HSM_PIN_FILE", "str", "", "The file that holds the token's PIN, not readable by others."),
    Setting(
        "HEARTH_KEY_ROTATION_DAYS",
        "int",
        90,
        "After how many days a key-encryption key is replaced by a new version.",
        check=allowed.between(1, 90),
    ),
    Setting(
        "HEARTH_REWRAP_PER_SECOND",
        "int",
        5000,
        "How many data keys are rewrapped each second at most, for all organisations together.",
        check=allowed.between(1, 1_000_000),
    ),
    Setting(
        "HEARTH_KEY_BUNDLES",
        "list",
        [],
        "Where key bundles are written, `name:/path` or `name:https://host/bucket/prefix` each (`s3://bucket/prefix`: "
        "AWS); best on disks of their own. A backup counts only when all of them hold its keys. Default: two folders "
        "below `key-bundles` in the state folder.",
        check=allowed.places,
    ),
    Setting(
        "HEARTH_KEY_BUNDLE_ACCESS",
        "str",
        "",
        "How the buckets among them are reached, JSON: for each name `access_key` and `secret_key` (without: the "
        "environment's role), `region`, `certificates` (a PEM file). Best as HEARTH_KEY_BUNDLE_ACCESS_FILE.",
        secret=True,
        check=allowed.access,
    ),
    Setting(
        "HEARTH_KEY_BUNDLE_DAYS",
        "int",
        14,
        "How long key bundles are kept. So much later than its keys are destroyed an erasure is complete.",
        check=allowed.between(2, 365),
    ),
    Setting(
        "HEARTH_DATABASE_COPIES_DAYS",
        "int",
        35,
        "How long you keep copies of Hearth's own database: dumps, base backups, archived WAL, snapshots. Hearth can't "
        "see them, and an erased organisation's wrapped key is in those from before: its erasure is called complete "
        "this many days after its keys are destroyed. Set it to no less than your longest copy; 0 means you keep none.",
        check=allowed.between(0, 3650),
    ),
    Setting(
        "HEARTH_RECOVERY_TESTS",
        "int",
        1,
        "Recovery tests that a region carries out at the same time, drills aside; 0 begins none, and then each that is "
        "due is told as missed.",
        check=allowed.between(0, 100),
    ),
    Setting(
        "HEARTH_FULL_READS",
        "int",
        1,
        "Restore points that are read to the last byte at the same time, by all workers together.",
        check=allowed.between(1, 100),
    ),
    Setting(
        "HEARTH_FULL_READ_MBPS",
        "int",
        50,
        "Megabytes a second that a worker reads at most for that.",
        check=allowed.between(1, 10_000),
    ),
    Setting(
        "HEARTH_COPIES",
        "int",
        2,
        "Servers whose backups are copied to a second store at the same time, by all workers together. Give more where "
        "hearth_backup_copy_waiting_seconds grows, and workers for them.",
        check=allowed.between(1, 1000),
    ),
    Setting(
        "HEARTH_COPY_SECONDS",
        "int",
        300,
        "How often what is new of a server is copied to its second store: so much more a lost first store costs.",
        check=allowed.between(10, 86_400),
    ),
    Setting(
        "HEARTH_BACKUP_REPORT_SECONDS",
        "int",
        60,
        "How often a backup engine whose store is a bucket reports, and hears of orders: an upgrade waits so long at "
        "most for its restore point to begin.",
        check=allowed.between(2, 60),
    ),
    Setting(
        "HEARTH_INTERNAL_HOST",
        "str",
        "127.0.0.1",
        "The address of the internal listener, which agents, the operator and metrics scrapes call with certificates.",
        check=allowed.address,
    ),
    Setting(
        "HEARTH_INTERNAL_PORT",
        "int",
        0,
        "The port of the internal listener. 0: HEARTH_PORT + 10000, or - 10000 where there is no such port.",
        check=allowed.between(0, 65535),
    ),
    Setting(
        "HEARTH_INTERNAL_NAMES",
        "list",
        [],
        "Further names that the internal listener is called by, beside loopback and HEARTH_INTERNAL_HOST.",
    ),
    Setting(
        "HEARTH_INTERNAL_CERTIFICATE",
        "str",
        "",
        "The internal listener's certificate chain, a PEM file (cert-manager). Empty: Hearth's own authority signs.",
        check=allowed.file,
    ),
    Setting("HEARTH_INTERNAL_KEY", "str", "", "The PEM file of its private key.", check=allowed.file),
    Setting("HEARTH_INTERNAL_TRUST", "str", "", "The PEM file of the authorities it goes with.", check=allowed.file),
    Setting(
        "HEARTH_INTERNAL_CERTIFICATE_SECONDS",
        "int",
        604_800,
        "How long a certificate of Hearth's own authority lives; it is renewed after two thirds.",
        check=allowed.between(5, 1_209_600),
    ),
    Setting(
        "HEARTH_INTERNAL_AUTHORITY_DAYS",
        "int",
        365,
        "How long Hearth's own authority lives; the next one is made when a third is left.",
        check=allowed.between(90, 3650),
    ),
    Setting("HEARTH_LOG_FORMAT", "str", "text", "`text` or `json`.", check=allowed.one_of("text", "json")),
    Setting(
        "HEARTH_ENVIRONMENTS",
        "str",
        "",
        "Where Synapse's environments are made. Default: `environments` in the state folder.",
    ),
    Setting(
        "DATABASE_URL",
        "str",
        "",
        "PostgreSQL (15 or newer) to use in place of the embedded one: `postgres://user:password@host:5432/hearth`.",
        secret=True,
        check=allowed.url("postgres", "postgresql"),
    ),
    Setting(
        "HEARTH_DATABASE_CA",
        "str",
        "",
        "Who may vouch for PostgreSQL: a PEM file. Needed when it is on another host, which is always verified; on "
        "this one it turns TLS on.",
        check=allowed.file,
    ),
    Setting(
        "HEARTH_DATABASE_CERTIFICATE",
        "str",
        "",
        "A client certificate to show to PostgreSQL: a PEM file, with HEARTH_DATABASE_KEY.",
        check=allowed.file,
    ),
    Setting("HEARTH_DATABASE_KEY", "str", "", "The PEM file of its key, not readable by others.", check=allowed.file),
    Setting(
        "REDIS_URL",
        "str",
        "",
        "Redis to use in place of the embedded one: `rediss://user:password@host:6379/0` on another host, here also "
        "`redis://localhost:6379/0` or `unix:///path?db=0`.",
        secret=True,
        check=allowed.url("redis", "rediss", "unix"),
    ),
    Setting(
        "HEARTH_REDIS_CA",
        "str",
        "",
        "Who may vouch for Redis: a PEM file. Needed with `rediss://`.",
        check=allowed.file,
    ),
    Setting(
        "HEARTH_REDIS_CERTIFICATE",
        "str",
        "",
        "A client certificate to show to Redis: a PEM file, with HEARTH_REDIS_KEY.",
        check=allowed.file,
    ),
    Setting("HEARTH_REDIS_KEY", "str", "", "The PEM file of its key, not readable by others.", check=allowed.file),
)
BY_NAME = {setting.name: setting for setting in SETTINGS}


def read(environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Return every setting's value by name, or raise `ImproperlyConfigured` with a sentence on what to change."""
    values = with_files(environment)
    refuse_unknown(values)
    env = environ.FileAwareEnv()
    env.ENVIRON = dict(values)
    settings = {setting.name: _cast(env, setting) for setting in SETTINGS}
    connections.check(settings)
    if fault := internal_fault(settings):
        raise ImproperlyConfigured(f"{fault} Nothing was started.")
    return settings


def with_files(environment: Mapping[str, str]) -> dict[str, str]:
    """Replace each `NAME_FILE` of a known setting by `NAME` with the file's content, without space around it."""
    values = dict(environment)
    for setting in SETTINGS:
        path = values.pop(f"{setting.name}_FILE", "")
        if not path:
            continue
        if values.get(setting.name):
            raise ImproperlyConfigured(f"Both {setting.name} and {setting.name}_FILE are set. Keep one of them.")
        try:
            values[setting.name] = Path(path).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ImproperlyConfigured(
                f"{setting.name}_FILE names {path}, which can't be read: {error.strerror}. Nothing was started."
            ) from None
        except UnicodeDecodeError:
            raise ImproperlyConfigured(f"{setting.name}_FILE names {path}, which holds no text.") from None
    return values


def refuse_unknown(values: Mapping[str, str]) -> None:
    """Stop at the first `HEARTH_*` variable that no setting has, with the nearest name that exists."""
    for name in sorted(values):
        if name.startswith("HEARTH_") and name not in BY_NAME:
            # Without the common beginning, which would make every name look near.
            known = {each.removeprefix("HEARTH_"): each for each in BY_NAME}
            near = [known[word] for word in difflib.get_close_matches(name.removeprefix("HEARTH_"), known, n=1)]
            hint = f" Did you mean {near[0]}?" if near else " docs/settings.md lists the settings."
            raise ImproperlyConfigured(f"{name} is not a setting of Hearth.{hint}")


def _cast(env: environ.Env, setting: Setting) -> Any:
    raw = env.ENVIRON.get(setting.name)
    if raw is None or raw == "":
        return setting.default
    value = _boolean(setting.name, raw) if setting.kind == "bool" else _typed(env, setting, raw)
    if setting.check is not None and (fault := setting.check(value)):
        raise ImproperlyConfigured(f"{setting.name} {fault}. Nothing was started.")
    return value


def _typed(env: environ.Env, setting: Setting, raw: str) -> Any:
    cast: Callable[..., Any] = getattr(env, setting.kind)
    try:
        return cast(setting.name)
    except (ValueError, TypeError, ImproperlyConfigured):
        shown = "its value" if setting.secret else repr(raw)
        raise ImproperlyConfigured(f"{setting.name} must be of type {setting.kind}; {shown} is not.") from None


def _boolean(name: str, raw: str) -> bool:
    # django-environ takes every unknown word for False; a misspelt "ture" must not switch a protection off.
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    try:
        return words[raw.strip().lower()]
    except KeyError:
        raise ImproperlyConfigured(f"{name} must be true or false; {raw!r} is neither.") from None
