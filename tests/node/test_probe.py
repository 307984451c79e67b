"""When a run of the real node may be left out: never for what could be installed."""

from __future__ import annotations

import pytest

from tests.node.__main__ import installable, unwanted
from tests.node.probe import OF_PROGRAMS, PROBES, faults


@pytest.mark.parametrize(
    ("failed", "expected"),
    [
        (["programs"], True),
        (["programs", OF_PROGRAMS], True),
        ([OF_PROGRAMS], False),
        (["root", "programs", OF_PROGRAMS], False),
        (["Debian 12", "programs"], False),
        (["control groups"], False),
    ],
)
def test_only_missing_packages_are_no_excuse(failed: list[str], expected: bool) -> None:
    assert set(failed) <= set(PROBES)
    assert installable([f"{name}: no" for name in failed]) is expected


def test_every_probe_s_result_is_printed() -> None:
    lines: list[str] = []
    found = faults(say=lines.append)
    assert [line.strip().partition(":")[0] for line in lines] == list(PROBES)
    assert len(found) == sum(not line.endswith(": yes") for line in lines)


def test_nothing_of_another_hearth_cluster_or_proxy_reaches_a_run() -> None:
    gone = ["HEARTH_STATE", "KUBECONFIG", "https_proxy", "HTTP_PROXY", "NO_PROXY"]
    assert all(map(unwanted, gone))
    assert not any(map(unwanted, ["PATH", "HOME", "PIP_INDEX_URL"]))
