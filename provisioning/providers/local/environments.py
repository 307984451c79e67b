"""A Python environment of its own for each Synapse version, made on first need with uv. Imports no Django.

`<environments>/synapse-<version>/` is either whole or absent: it is built beside its place and renamed. Several
processes may ask for the same one; a file lock lets one build and the others wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from functools import lru_cache
from pathlib import Path

from provisioning.providers.base import Progress, ProviderError
from provisioning.providers.local.processes import Command, closed_folder, python_for_others, run

LOCKS = Path(__file__).parent / "locks"
FAILED = "EnvironmentFailed"
BUILD_SECONDS = 900.0
OPTIONS = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "cert": "SSL_CERT_FILE",
}
"""pip's options, and the variables by which uv takes the same."""
VERSION = re.compile(r"\d+\.\d+\.\d+(rc\d+)?")


def lock_file(version: str) -> Path:
    """Return the lock file of a Synapse version, which may be missing."""
    return LOCKS / f"synapse-{version}.txt"


def environment_dir(environments: Path, version: str) -> Path:
    """Return the place of a version's environment."""
    return environments / f"synapse-{version}"


def environment_python(environments: Path, version: str) -> Path:
    """Return the environment's Python."""
    return environment_dir(environments, version) / "bin" / "python"


async def ensure(
    environments: Path, version: str, *, progress: Progress, cache: Path, lock: Path | None = None
) -> Path:
    """Return the environment of `version`, built first if it is missing. `ProviderError` says what went wrong."""
    if not VERSION.fullmatch(version):
        raise ProviderError(f"{version!r} is not a version of Synapse.", code="UnknownVersion", retry=False)
    place = environment_dir(environments, version)
    if _whole(place):
        return place
    lock = lock or lock_file(version)
    if not lock.exists():
        raise ProviderError(
            f"Hearth does not offer Synapse {version}. Nothing was changed. Choose another version.",
            code="UnknownVersion",
            retry=False,
        )
    try:
        await asyncio.to_thread(environments.mkdir, mode=0o755, parents=True, exist_ok=True)
        async with _alone(environments / f".synapse-{version}.lock", progress):
            if not _whole(place):
                await _build(place, version, lock, progress, cache)
    except OSError as error:
        raise ProviderError(
            f"The environment of Synapse {version} can't be written: {error.strerror or error}. "
            "Running servers are not touched. Make room or repair the folder, then retry.",
            code="DiskFull" if error.errno == 28 else FAILED,
        ) from None
    return place


async def _build(place: Path, version: str, lock: Path, progress: Progress, cache: Path) -> None:
    for rest in place.parent.glob(f".{place.name}.*"):  # a build that was cut off; we hold the lock, so nobody uses it
        if rest.is_dir():
            await asyncio.to_thread(shutil.rmtree, rest, ignore_errors=True)
    building = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    try:
        python = _python(place)
        progress(f"Making the environment of Synapse {version} with {python}.")
        await _uv(["venv", "--relocatable", "--python", str(python), str(building / "venv")], cache, progress)
        progress(f"Installing Synapse {version} and what it needs.")
        install = ["pip", "install", "--python", str(building / "venv" / "bin" / "python"), "--require-hashes"]
        await _uv([*install, "--compile-bytecode", "--no-build", "-r", str(lock)], cache, progress)
        await asyncio.to_thread(_put, building / "venv", place, building / "old")
    except TimeoutError:
        raise ProviderError(
            f"Installing Synapse {version} took more than {BUILD_SECONDS / 60:.0f} minutes. Nothing was changed. "
            "Check the way to the package registry, then retry.",
            code=FAILED,
        ) from None
    finally:
        await asyncio.to_thread(shutil.rmtree, building, ignore_errors=True)
    progress(f"Synapse {version} is installed.")


def _python(place: Path) -> Path:
    """Return a Python that the servers' users may run, if they can reach the environment at all; else our own."""
    ours = Path(sys.executable).resolve()
    return (python_for_others() or ours) if closed_folder(place) is None else ours


async def _uv(words: list[str], cache: Path, progress: Progress) -> None:
    lines: list[str] = []

    def line(text: str) -> None:
        lines.append(text)
        if not text.startswith(" + "):  # one for each of 60 packages
            progress(text)

    await asyncio.to_thread(cache.mkdir, mode=0o700, parents=True, exist_ok=True)
    environment = await asyncio.to_thread(uv_environment) | {"UV_CACHE_DIR": str(cache)}
    argv = (str(uv_program()), "--no-progress", "--no-config", *words)
    code = await run(Command("uv", argv, cache.parent, environment), line=line, timeout=BUILD_SECONDS)
    if code != 0:
        last = "\n".join(lines[-8:])
        raise ProviderError(
            f"Installing Synapse failed. No server was changed; retry when the cause is gone. uv said:\n{last}",
            code=FAILED,
        )


def _put(made: Path, place: Path, old: Path) -> None:
    if place.exists():  # one that the servers' users can't run
        place.rename(old)
    made.rename(place)


def _whole(place: Path) -> bool:
    """Tell whether a finished environment is there that the servers' users can run where they could run another."""
    python = place / "bin" / "python"
    if not python.exists():
        return False
    return os.geteuid() != 0 or _python(place) == Path(sys.executable).resolve() or closed_folder(python) is None


@contextlib.asynccontextmanager
async def _alone(path: Path, progress: Progress) -> AsyncIterator[None]:
    """Hold the file lock `path`. The kernel lets go of it when its holder dies."""
    with path.open("a") as file:
        told = False
        while not _try_lock(file.fileno()):
            if not told:
                progress("Somebody else is making this environment; waiting for it.")
                told = True
            await asyncio.sleep(0.2)
        yield


def _try_lock(number: int) -> bool:
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def uv_program() -> Path:
    """Return the uv that is installed beside us."""
    beside = Path(sys.executable).parent / "uv"
    found = beside if beside.exists() else shutil.which("uv")
    if not found:
        raise ProviderError("The program uv is not installed. Run: make run", code=FAILED)
    return Path(found)


def uv_environment() -> dict[str, str]:
    """Return the environment for uv. It reads none of pip's configuration, so it gets that as variables of its own."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("HEARTH_", "VIRTUAL_ENV", "PYTHON"))
    }
    for name in ("DATABASE_URL", "REDIS_URL"):
        environment.pop(name, None)
    for option, value in pip_options().items():
        environment.setdefault(OPTIONS[option], value)
    return environment | {
        "UV_NO_PROGRESS": "1",
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_LINK_MODE": "copy",
        "NO_COLOR": "1",
    }


@lru_cache(maxsize=1)
def pip_options() -> dict[str, str]:
    """Return what pip would use, from its files and its PIP_* variables; variables win."""
    argv = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False).stdout
    found: dict[str, str] = {}
    for where, option, value in re.findall(r"^(global|install|:env:)\.([a-z-]+)='(.*)'$", listed, re.MULTILINE):
        if option in OPTIONS and (where != ":env:" or value):
            found[option] = _joined(option, value.replace("\\n", " "))
    for option in OPTIONS:
        if value := os.environ.get("PIP_" + option.upper().replace("-", "_")):
            found[option] = _joined(option, value)
    return found


def _joined(option: str, value: str) -> str:
    return ("," if option == "find-links" else " ").join(value.split())
