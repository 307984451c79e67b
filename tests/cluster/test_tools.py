"""Programs are built once for all checkouts, by one process at a time, and what can't be had is said."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster import definitions, tools
from tests.cluster.fixtures import need_programs
from tests.left_out import leave_out

NAME = "kubeconform"  # the smallest: seconds without any cache
CHILD = "import sys; from tests.cluster import tools; tools.ensure([sys.argv[1]])"


@pytest.fixture
def empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of programs, with Go's own caches where they were."""
    try:
        words = [str(tools.go()), "env", "GOCACHE", "GOMODCACHE"]
    except tools.Missing as missing:
        leave_out(str(missing))
    places = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    for name, place in zip(("GOCACHE", "GOMODCACHE"), places, strict=True):
        monkeypatch.setenv(name, place)
    monkeypatch.delenv("TEST_CLUSTER_BIN", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tools, "LINKS", tmp_path / "links")
    return tmp_path


def test_a_program_is_built_once_and_linked(empty: Path) -> None:
    said: list[str] = []
    path = tools.ensure([NAME], say=said.append)[NAME]
    assert (empty / "links" / NAME).resolve() == path
    assert subprocess.run([path, "-v"], check=True, capture_output=True).returncode == 0
    assert any(line.startswith("Built kubeconform in ") for line in said)
    made = path.stat().st_mtime_ns
    said.clear()
    assert tools.ensure([NAME], say=said.append)[NAME].stat().st_mtime_ns == made
    assert said == []


def test_two_at_once_build_it_once(empty: Path) -> None:
    both = [
        subprocess.Popen([sys.executable, "-c", CHILD, NAME], stdout=subprocess.PIPE, text=True, env=environment())
        for _ in range(2)
    ]
    said = "".join(each.communicate(timeout=250)[0] for each in both)
    assert [each.returncode for each in both] == [0, 0]
    assert said.count("Built kubeconform") == 1


def test_a_build_that_was_killed_leaves_no_half_program(empty: Path) -> None:
    half, unused, other = (tools.cache() / name for name in (".building-checks-x", "checks-0-go1", "etcd-0-go1"))
    for folder in (half, unused, other):
        folder.mkdir(parents=True)
        (folder / NAME).write_text("half")
        os.utime(folder, (0, 0))
    assert tools.ensure([NAME], say=lambda _: None)[NAME].stat().st_size > 1_000_000
    assert [folder.exists() for folder in (half, unused, other)] == [False, False, True]


def test_without_go(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(tools.Missing, match="no Go"):
        tools.ensure([NAME], say=lambda _: None)
    with pytest.raises(tools.Missing, match="Run: make test"):
        tools.find(NAME)


@pytest.mark.parametrize(("ci", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)])
def test_without_programs_tests_are_left_out_loudly(
    empty: Path, monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="the program etcd of the test cluster is not there"):
        need_programs()


def test_a_folder_of_ready_programs(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (empty / "given").mkdir()
    (empty / "given" / NAME).write_text("#!/bin/sh\n")
    monkeypatch.setenv("TEST_CLUSTER_BIN", str(empty / "given"))
    assert tools.find(NAME) == empty / "given" / NAME


def test_a_build_that_fails_says_what_go_said(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tools.TOOLS, "nothing", tools.Tool("checks", "github.com/zegl/kube-score/cmd/nothing"))
    with pytest.raises(tools.Missing, match="cmd/nothing"):
        tools.ensure(["nothing"], say=lambda _: None)


def test_a_source_that_is_not_what_it_was(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = definitions.SOURCES[0]
    monkeypatch.setattr(
        definitions, "SOURCES", (definitions.Source(first.module, first.version, "h1:other=", first.files),)
    )
    with pytest.raises(tools.Missing, match="and not h1:other="):
        definitions.ensure(say=lambda _: None)


def test_a_property_of_the_name_description_stays() -> None:
    for each in definitions.ensure(say=lambda _: None):
        assert "openAPIV3Schema" in str(each)
    bare = definitions.bare({"description": "text", "properties": {"description": {"type": "string"}}})
    assert bare == {"properties": {"description": {"type": "string"}}}


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": f"{tools.ROOT / 'platform'}:{tools.ROOT}"}
