"""The chart passes the checks of Helm, kubeconform and kube-score; its generated files are those of its definition."""

from __future__ import annotations

import copy
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from provisioning.chart import schema
from tests.chart import kube_score, schemas, values
from tests.chart.render import Refused, program, render, render_values, values_file
from tests.cluster.given import Given
from tests.cluster.launch import Cluster

KINDS: dict[str, Callable[..., dict[str, Any]]] = {
    "monolith": values.monolith,
    "workers": values.workers,
    "managed": values.managed,
}
SUSPENDED = {"suspended": {"message": "Please pay."}}
BACKUP = {"backup": values.BACKUP}
CASES: list[tuple[str, dict[str, Any]]] = [
    (name, extra) for name in KINDS for extra in ({}, SUSPENDED, BACKUP) if (name, extra) != ("managed", BACKUP)
]
CASES.append(("monolith", {"recovery": values.RECOVERY}))
cases = pytest.mark.parametrize(
    ("name", "extra"), CASES, ids=[f"{name}-{next(iter(more), '')}" for name, more in CASES]
)


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)


def test_the_generated_files_are_those_of_the_definition() -> None:
    assert schema.SCHEMA.read_text() == schema.json_text(schema.values_schema())
    assert schema.VALUES.read_text() == schema.yaml_text(schema.values())


@cases
def test_helm_lint(name: str, extra: dict[str, Any], tmp_path: Path) -> None:
    file = values_file(tmp_path, KINDS[name](**extra))
    done = run(program("helm"), "lint", "--strict", str(schema.FOLDER), "--values", str(file))
    assert done.returncode == 0, done.stdout + done.stderr


@cases
def test_kube_score_finds_nothing_critical_that_is_not_explained(
    name: str, extra: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "objects.yaml"
    file.write_text(render(KINDS[name](**extra)).text)
    done = run(program("kube-score"), "score", str(file), "-o", "ci", "--kubernetes-version", "v1.34")
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("[OK]")], done.stderr
    assert [line for line in lines if line.startswith("[CRITICAL]") and not kube_score.explained(line)] == []


def test_each_exception_of_kube_score_is_still_needed(tmp_path: Path) -> None:
    file = tmp_path / "objects.yaml"
    file.write_text(render(values.workers()).text)
    done = run(program("kube-score"), "score", str(file), "-o", "ci", "--kubernetes-version", "v1.34")
    for text, name in kube_score.ACCEPTED:
        assert [line for line in done.stdout.splitlines() if text in line and (name in ("*", line.split("/")[0][11:]))]


@pytest.fixture(scope="module")
def location(cluster: Cluster | Given, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where kubeconform finds the schemas of every kind that the chart may render."""
    objects = [each for name, extra in CASES for each in render(KINDS[name](**extra)).objects]
    return schemas.write(cluster.api, tmp_path_factory.mktemp("schemas"), objects)


@pytest.mark.xdist_group("cluster")
@cases
def test_kubeconform(name: str, extra: dict[str, Any], tmp_path: Path, location: str) -> None:
    rendered = render(KINDS[name](**extra))
    file = tmp_path / "objects.yaml"
    file.write_text(rendered.text)
    done = run(program("kubeconform"), "-strict", "-summary", "-schema-location", location, str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Valid: {len(rendered)}," in done.stdout


@pytest.mark.xdist_group("cluster")
def test_kubeconform_would_see_a_field_that_does_not_exist(tmp_path: Path, location: str) -> None:
    rendered = render(values.monolith())
    wrong = copy.deepcopy([rendered["StatefulSet/synapse-main"], rendered["Cluster/postgres"]])
    wrong[0]["spec"]["template"]["spec"]["containers"][0]["livenessprobe"] = {}
    wrong[1]["spec"]["storage"]["syze"] = "1Gi"
    for each in wrong:
        file = tmp_path / "wrong.yaml"
        file.write_text(json.dumps(each))
        assert run(program("kubeconform"), "-strict", "-schema-location", location, str(file)).returncode == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"unknown": 1}, "unknown"),
        ({"size": {"cpu": 1}}, "size"),
        ({"workers": {"generic": {"min": 1}}}, "generic"),
        ({"restarts": "often"}, "restarts"),
        ({"organisation": "acme"}, "organisation"),
    ],
)
def test_values_are_strict(change: dict[str, Any], said: str) -> None:
    with pytest.raises(Refused, match=said):
        render_values(values.values(schema.defaulted(values.monolith(**change))))


def test_too_many_processes_for_the_memory_are_refused_by_the_chart_too() -> None:
    spec = values.monolith(workers={"generic": {"min": 1, "max": 4}}, size={"memory": "2048Mi"})
    with pytest.raises(Refused, match="6 processes do not fit into 2048Mi"):
        render(spec)


def test_there_is_no_secret_no_randomness_and_no_default_registry() -> None:
    source = "".join(path.read_text() for path in (schema.FOLDER / "templates").iterdir())
    for word in ("randAlpha", "genPrivateKey", "genCA", "uuidv4", "lookup", "derivePassword", "kind: Secret\nmeta"):
        assert word not in source
    for kind in KINDS.values():
        rendered = render(kind())
        assert rendered.kind("Secret") == []
        assert render(kind()).text == rendered.text
        images = [each["image"] for pod in rendered.pods().values() for each in pod["spec"]["containers"]]
        assert set(images) <= set(values.IMAGES.values())
