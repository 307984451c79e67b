"""What every test stands on: real services, settings of their own, the cast.

Django's settings are loaded here and not by pytest-django, because they need the addresses of services that the run
starts for itself. With xdist the first process starts them and each worker gets its own database and Redis number.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.services import Services

if TYPE_CHECKING:
    from django.test import Client

    from accounts.models import User

pytest_plugins = ["tests.cluster.fixtures"]
ROOT = Path(__file__).resolve().parents[1]
LONG = (
    "provisioning/test_real", "config/test_embedded", "security/test_stack", "chart/test_scripts",
    "security/transport/test_stack", "security/test_rewrap", "config/test_given_services", "accounts/test_passkeys",
    "provisioning/test_killed", "provisioning/test_live_page", "observability/test_tasks", "security/test_recovery",
)  # fmt: skip
"""Files with tests of many seconds outside of groups. Begun last, one of them would be waited for alone."""
services = pytest.StashKey[Services]()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    # Compiling all of Hearth and its tests again in each of the many processes is a tenth of a run.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if not worker:
        started = config.stash[services] = Services()
        started.start()
        _environment(started)
    else:
        address = os.environ["REDIS_URL"].partition("?")[0]
        os.environ["REDIS_URL"] = f"{address}?db={1 + int(worker.removeprefix('gw'))}"
    os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"
    from django.conf import settings

    # Slow on purpose elsewhere; here every test that makes a person would wait for it.
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    # A server reads the folders of static files once; here each test's browser would.
    settings.WHITENOISE_AUTOREFRESH = True

    from django.test import TransactionTestCase

    from tests.emptying import empty

    TransactionTestCase._fixture_teardown = empty  # type: ignore[attr-defined]  # the stubs know only what is public


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    """Workers inherit the environment. With this in it pytest-django would load a worker's settings before its own
    Redis number is set, and all of them would empty one cache."""
    os.environ.pop("DJANGO_SETTINGS_MODULE", None)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long ones first. xdist itself puts groups before them, the largest first."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        names = tuple(f"tests/{name}.py::" for name in LONG)
        items.sort(key=lambda item: not item.nodeid.startswith(names))


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """What was imported and collected stays to the end: the collector need not walk through it again and again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure(config: pytest.Config) -> None:
    if started := config.stash.get(services, None):
        started.stop()


def _environment(started: Services) -> None:
    """Set exactly the settings of the tests, whatever the shell that runs them has set."""
    for name in [name for name in os.environ if name.startswith("HEARTH_")]:
        del os.environ[name]
    state = started.folder / "state"
    state.mkdir(mode=0o711)
    (state / "static").mkdir()
    (state / "keys").mkdir(mode=0o700)
    key = state / "keys" / "root.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(32))
    os.environ |= {
        "HEARTH_SECRET_KEY": "only-for-tests-0123456789-0123456789-0123456789-0123",
        "HEARTH_STATE": str(state),
        "HEARTH_ENVIRONMENTS": str(ROOT / "var" / "test" / "environments"),
        "DATABASE_URL": started.database_url,
        "REDIS_URL": started.redis_url(),
    }


@pytest.fixture(autouse=True)
def _empty_cache() -> Iterator[None]:
    """Limits and queued messages of one test are not the next one's."""
    yield
    from django.core.cache import cache

    cache.clear()


@pytest.fixture
def alice(db: None) -> User:
    """Alice owns."""
    from tests.cast import make_user

    return make_user("alice@example.org")


@pytest.fixture
def bob(db: None) -> User:
    """Bob is a member with less."""
    from tests.cast import make_user

    return make_user("bob@example.org")


@pytest.fixture
def charlie(db: None) -> User:
    """Charlie is a stranger."""
    from tests.cast import make_user

    return make_user("charlie@example.org")


@pytest.fixture
def client_for() -> Callable[[User], Client]:
    """Return a function that makes a browser in which a person is signed in with their second factor."""
    from tests.cast import client_for as sign_in

    return sign_in
