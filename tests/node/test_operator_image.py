"""What the operator's image is made of: its own files and locked packages, and nothing of Hearth beside them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from provisioning.operator.image import context

LOADED = """
import importlib.metadata, json, runpy, sys
try:
    runpy.run_module("provisioning.operator", run_name="__main__", alter_sys=True)
except SystemExit as end:
    code = end.code
owners = importlib.metadata.packages_distributions()
files = [str(each.__file__) for name, each in sys.modules.items() if name.startswith("provisioning.")]
loaded = {name.partition(".")[0] for name in sys.modules}
known = {owner.lower().replace("_", "-") for name in loaded for owner in owners.get(name, ())}
print(json.dumps({"code": code, "files": files, "packages": sorted(known)}), file=sys.stderr)
"""


def test_the_operator_starts_from_these_files_and_packages_alone(tmp_path: Path) -> None:
    for path in context.sources():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(context.ROOT / path, tmp_path / path)
    done = subprocess.run(
        [sys.executable, "-c", LOADED, "--help"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": os.defpath},
        capture_output=True,
        text=True,
        check=False,
    )
    found = json.loads(done.stderr.splitlines()[-1])
    assert found["code"] == 0
    assert "--in-flight" in done.stdout
    assert [each for each in found["files"] if not each.startswith(str(tmp_path))] == []
    # What Python's own start-up loads in an environment is no package of the operator.
    assert set(found["packages"]) - context.PACKAGES - {"setuptools", "pip"} == set()


def test_the_chart_of_a_server_is_in_it_and_neither_tests_nor_compilers_food() -> None:
    found = {str(each) for each in context.sources()}
    assert "provisioning/chart/Chart.yaml" in found
    assert "provisioning/operator/kube/reflector.py" in found
    assert not [each for each in found if each.endswith((".go", ".pyc")) or "/image/" in each]


def test_every_package_comes_by_its_hashes() -> None:
    lines = list(context.requirements())
    assert len(lines) == len(context.PACKAGES)
    assert all("--hash=sha256:" in each for each in lines)


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("kept")
    with pytest.raises(context.Failed, match="is not empty"):
        context.fill(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["mine"]
    assert context.main([str(tmp_path)]) == 1
