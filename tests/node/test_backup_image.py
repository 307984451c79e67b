"""What the backup engine's image is made of: its own files and locked packages, and nothing of Hearth beside them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from backups.engine.image import context, fits

LOADED = """
import importlib, importlib.metadata, json, sys
from backups.engine.image import fits
for name in fits.MODULES:
    importlib.import_module(name)
owners = importlib.metadata.packages_distributions()
ours = ("backups", "provisioning", "security", "platform_", "tenants", "config")
files = [str(each.__file__) for name, each in sys.modules.items() if name.partition(".")[0] in ours]
loaded = {name.partition(".")[0] for name in sys.modules}
known = {owner.lower().replace("_", "-") for name in loaded for owner in owners.get(name, ())}
print(json.dumps({"files": files, "packages": sorted(known), "modules": sorted(loaded)}))
"""


def test_the_engine_starts_from_these_files_and_packages_alone(tmp_path: Path) -> None:
    for there, path in context.sources().items():
        (tmp_path / there).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(context.ROOT / path, tmp_path / there)
    done = subprocess.run(
        [sys.executable, "-c", LOADED],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": os.defpath},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [each for each in found["files"] if not each.startswith(str(tmp_path))] == []
    # What Python's own start-up loads in an environment, and what httpx takes along where it is there, is not used.
    assert set(found["packages"]) - context.PACKAGES - {"setuptools", "pip", "click", "rich", "pygments"} == set()
    assert "django" not in found["modules"]


def test_whatever_lies_in_the_engines_folder_is_in_its_image() -> None:
    engine = context.ROOT / "backups/engine"
    files = {
        path.relative_to(context.ROOT)
        for path in engine.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files - set(context.sources()) == {Path("backups/engine/image/Containerfile")}


def test_every_package_comes_by_its_hashes() -> None:
    lines = list(context.requirements(context.PACKAGES))
    assert len(lines) == len(context.PACKAGES)
    assert all("--hash=sha256:" in each for each in lines)


def test_the_newest_programs_are_linked_and_none_is_no_fit(tmp_path: Path) -> None:
    for major in (14, 16):
        place = tmp_path / "lib" / str(major) / "bin"
        place.mkdir(parents=True)
        for name in fits.PROGRAMS:
            (place / name).write_text(f"#!/bin/sh\necho '{name} (PostgreSQL) {major}.3'\n")
            (place / name).chmod(0o755)
    half = tmp_path / "lib" / "17" / "bin"
    half.mkdir(parents=True)
    versions = {path: fits.version(path) for path in sorted((tmp_path / "lib").glob("*/bin"))}
    assert [found and found[0] for found in versions.values()] == [14, 16, None]
