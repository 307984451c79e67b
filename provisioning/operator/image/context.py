"""`python -m provisioning.operator.image.context FOLDER`: fills the folder that the operator's image is built in.

Everything that needs a network or a compiler is done here, so the image can be built anywhere from `Containerfile`.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

from provisioning.providers.base import ProviderError
from provisioning.providers.local.environments import uv_environment, uv_program

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
OPERATOR, CHART = Path("provisioning/operator"), Path("provisioning/chart")
RENDER = OPERATOR / "render"
PYTHON = "3.11"
PACKAGES = frozenset(
    {
        *("aiohappyeyeballs", "aiohttp", "aiosignal", "attrs", "frozenlist", "idna", "multidict", "orjson"),
        *("prometheus-client", "propcache", "pyyaml", "typing-extensions", "uvloop", "yarl"),
    }
)
"""What the operator imports, and what that needs. One that is missing here fails the image: it starts the operator."""
NEEDED = re.compile(r"^([a-z0-9-]+)==[^\n]*(?:\n[ ]+[^\n]*)*\n", re.MULTILINE)
UNWANTED = shutil.ignore_patterns("__pycache__", "image", "*.go", "go.mod", "go.sum")


class Failed(Exception):
    """The folder can't be filled; says why."""


def fill(folder: Path, *, helper: Path | None = None) -> None:
    """Fill an empty or new folder. `helper`: a render helper that is built already, else Go builds one."""
    begin(folder, {path: path for path in sources()})
    program = folder / "hearth" / RENDER / "render"
    program.parent.mkdir(parents=True, exist_ok=True)
    if helper is not None:
        shutil.copyfile(helper, program)
    else:
        _build(program)
    program.chmod(0o755)
    finish(folder, PACKAGES, HERE / "Containerfile")


def begin(folder: Path, files: Mapping[Path, Path]) -> None:
    """Fill `hearth` in an empty or new folder: place there to path in the repository. Raises `Failed`."""
    if folder.exists() and any(folder.iterdir()):
        raise Failed(f"{folder} is not empty. Nothing was changed. Remove it, or name another folder.")
    for there, path in files.items():
        place = folder / "hearth" / there
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, place)


def finish(folder: Path, packages: Set[str], recipe: Path) -> None:
    """Add locked packages and the recipe, for every user to read. Raises `Failed`."""
    _install(folder / "packages", packages)
    shutil.copyfile(recipe, folder / "Containerfile")
    _open(folder)


def sources() -> list[Path]:
    """Return every file of the operator and of the chart, relative to the repository."""
    found = [Path("provisioning/__init__.py")]
    for part in (OPERATOR, CHART):
        for folder, names, files in os.walk(ROOT / part):
            left_out = UNWANTED(folder, [*names, *files])
            names[:] = sorted(set(names) - left_out)
            # The helper is built apart: one that lies here may be old.
            found += [Path(folder, each).relative_to(ROOT) for each in files if each not in left_out | {"render"}]
    return sorted(found)


def requirements(packages: Set[str] = PACKAGES) -> Iterator[str]:
    """Yield the lines of Hearth's lock file for these packages, hashes and all."""
    found = {each[1]: each[0] for each in NEEDED.finditer((ROOT / "requirements.txt").read_text(encoding="utf-8"))}
    if missing := packages - found.keys():
        raise Failed(f"requirements.txt has no {', '.join(sorted(missing))}.")
    return (found[name] for name in sorted(packages))


def _install(place: Path, packages: Set[str]) -> None:
    place.mkdir()
    lock = place / "requirements.txt"
    lock.write_text("".join(requirements(packages)), encoding="utf-8")
    words = [str(uv_program()), "--no-config", "--quiet", "pip", "install", "--target", str(place)]
    words += ["--python-version", PYTHON, "--no-build", "--no-deps", "--require-hashes", "-r", str(lock)]
    _run(words, ROOT, uv_environment())
    lock.unlink()


def _build(program: Path) -> None:
    go = shutil.which("go") or "/usr/local/go/bin/go"
    if not Path(go).exists():
        raise Failed("There is no Go, which the operator's render helper is built with. Install Go 1.24 or later.")
    words = [go, "build", "-trimpath", "-ldflags", "-s -w", "-o", str(program.resolve()), "."]
    _run(words, ROOT / RENDER, os.environ | {"CGO_ENABLED": "0"})


def _open(folder: Path) -> None:
    """Let every user read it, whatever the umask was: pods don't run as root."""
    for each in (folder, *folder.rglob("*")):
        each.chmod(0o755 if each.is_dir() or each.stat().st_mode & 0o100 else 0o644)


def _run(words: list[str], folder: Path, environment: dict[str, str] | os._Environ[str]) -> None:
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"{Path(words[0]).name} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")


def main(arguments: list[str]) -> int:
    """Return the exit code."""
    parser = argparse.ArgumentParser(prog="provisioning.operator.image.context", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--helper", type=Path, help="a render helper that is built already")
    given = parser.parse_args(arguments)
    try:
        fill(given.folder, helper=given.helper)
    except (Failed, ProviderError) as fault:
        sys.stderr.write(f"{fault}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
