"""The rules of the repository's layout (docs/architecture.md) that a machine can hold.

`make lint` holds two more: no import goes up a layer, and no migration is missing.
"""

from __future__ import annotations

import ast
import functools
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.apps import apps
from django.db.models import Model

ROOT = Path(__file__).resolve().parents[1]
# From the highest to the lowest, as in pyproject.toml's contract.
LAYERS = (
    "config",
    "backups",
    "provisioning",
    "tenants",
    "accounts",
    "notifications",
    "security",
    "audit",
    "observability",
)
# Who may import which client of the outside world.
CLIENTS = {
    "kubernetes": ("provisioning/providers/kubernetes", "provisioning/operator/"),
    "boto3": ("backups/engine/stores/connection.py",),
    "botocore": ("backups/engine/stores/connection.py",),
}
pytestmark = pytest.mark.xdist_group("layout")  # all files are read once
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}


def tracked(suffix: str = "") -> list[Path]:
    """Return the files under version control, with those that are about to be."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in done.stdout.splitlines() if name.endswith(suffix) and (ROOT / name).is_file()]


def imported(node: ast.AST) -> Iterator[str]:
    """Yield every module that a node imports, by name too."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
        yield node.module
    elif (
        isinstance(node, ast.Call)
        and getattr(node.func, "attr", getattr(node.func, "id", "")) in {"import_module", "__import__"}
        and node.args
        and isinstance(node.args[0], ast.Constant)
    ):
        yield str(node.args[0].value)


@functools.cache
def read(path: Path) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the modules that a file imports, inside functions too, and the lines of each of its functions.

    Reading all files takes seconds, so each is read once.
    """
    modules: list[str] = []
    lengths: dict[str, int] = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        modules += imported(node)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            lengths[node.name] = max(lines, lengths.get(node.name, 0))
    return tuple(modules), lengths


def imports(path: Path) -> tuple[str, ...]:
    return read(path)[0]


def layer(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[1] if parts[0] == "platform" else parts[0]


def test_platform_is_a_folder_and_tests_is_a_package() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()
    assert (ROOT / "tests" / "__init__.py").exists()


def test_the_standard_librarys_platform_is_still_itself() -> None:
    code = "import platform, uuid; print(platform.system(), platform.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("Linux ")
    assert str(ROOT / "platform") not in done.stdout
    assert importlib.import_module("platform").system() == "Linux"


def test_no_import_inside_a_function_hides_a_way_up() -> None:
    """The contract's tool sees static imports; this sees `import_module("name")` as well."""
    wrong = []
    for path in tracked(".py"):
        own = layer(path)
        if own not in LAYERS:
            continue
        above = LAYERS[: LAYERS.index(own)]
        wrong += [f"{path.relative_to(ROOT)}: {name}" for name in imports(path) if name.partition(".")[0] in above]
    assert wrong == []


@pytest.mark.parametrize("client", sorted(CLIENTS))
def test_who_may_import_which_client(client: str) -> None:
    wrong = [
        name
        for path in tracked(".py")
        if client in {module.partition(".")[0] for module in imports(path)}
        and not (name := str(path.relative_to(ROOT))).startswith(("tests/", *CLIENTS[client]))
    ]
    assert wrong == []


def test_no_foreign_key_goes_upward() -> None:
    def place(model: type[Model]) -> int:
        # Django's own and other packages' tables lie below all of ours.
        name = model._meta.app_label
        return LAYERS.index(name) if name in LAYERS else len(LAYERS)

    wrong = [
        f"{model.__name__}.{field.name} -> {field.related_model.__name__}"
        for model in apps.get_models()
        for field in model._meta.get_fields()
        if (field.many_to_one or field.one_to_one) and field.concrete and isinstance(field.related_model, type)
        if model._meta.app_label in LAYERS and place(field.related_model) < place(model)
    ]
    assert wrong == []


def test_every_file_that_locks_packages_leaves_the_registry_open() -> None:
    """Which index packages come from is the machine's business."""
    pattern = re.compile(r"--(extra-)?index-url|--find-links|--trusted-host|https?://[^\s/]*(pypi|pythonhosted)")
    locks = [path for path in tracked(".txt") if "requirements" in path.name or "locks" in path.parts]
    assert locks
    assert [str(path) for path in locks if pattern.search(path.read_text(encoding="utf-8"))] == []
    for name in ("Makefile", ".ci/run", "pyproject.toml"):
        assert not pattern.search((ROOT / name).read_text(encoding="utf-8")), name


def test_no_file_and_no_function_is_too_long() -> None:
    """A file past about 400 lines becomes a package; a function past about 40 lines is two functions."""
    long = []
    for path in tracked(".py"):
        if "migrations" in path.parts:
            continue
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > 440:
            long.append(f"{path.relative_to(ROOT)}: {text.count(chr(10))} lines")
        long += [
            f"{path.relative_to(ROOT)}:{name}: {length} lines" for name, length in read(path)[1].items() if length > 48
        ]
    assert long == []


def test_tests_of_one_group_run_in_one_process(request: pytest.FixtureRequest) -> None:
    """They share folders and servers. pytest-xdist hands a group on in a test's name, and a newer pytest forgets it."""
    spread = bool(request.config.getoption("loadgroup", default=False))
    assert request.node.nodeid.endswith("@layout") == spread
