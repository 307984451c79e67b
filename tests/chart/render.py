"""Renders the chart for tests with the real Helm."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from provisioning.chart.schema import FOLDER, defaulted
from tests.chart.values import values
from tests.cluster import tools
from tests.left_out import leave_out

NAMESPACE = "hearth-00000000-0000-0000-0000-000000000001"
UID = "11111111-2222-3333-4444-555555555555"


class Refused(Exception):
    """Helm did not render; the text is what it said."""


class Rendered(Mapping[str, dict[str, Any]]):
    """The objects of one server by `Kind/name`, and the whole text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.objects = [each for each in yaml.load_all(text, Loader=yaml.CSafeLoader) if each]
        self._by_name: dict[str, dict[str, Any]] = {
            f"{each['kind']}/{each['metadata']['name']}": each for each in self.objects
        }
        assert len(self._by_name) == len(self.objects), "two objects have one name"

    def __getitem__(self, name: str) -> dict[str, Any]:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def kind(self, *kinds: str) -> list[dict[str, Any]]:
        """Return all objects of these kinds."""
        return [each for each in self.objects if each["kind"] in kinds]

    def pods(self) -> dict[str, dict[str, Any]]:
        """Return the pod template of each workload by the workload's name."""
        found = self.kind("Deployment", "StatefulSet")
        return {each["metadata"]["name"]: each["spec"]["template"] for each in found}

    def configuration(self) -> dict[str, Any]:
        """Return homeserver.yaml."""
        content: dict[str, Any] = yaml.safe_load(self["ConfigMap/synapse"]["data"]["homeserver.yaml"])
        return content


def helm() -> str:
    """Return the path of Helm."""
    return program("helm")


def program(name: str) -> str:
    """Return the path of one of the cluster's programs, or leave the running test out."""
    try:
        return str(tools.find(name))
    except tools.Missing as missing:
        leave_out(str(missing))


def render(spec: Mapping[str, Any], *, namespace: str = NAMESPACE, uid: str = UID, **server: Any) -> Rendered:
    """Render the objects of a server with this spec; the API server's defaults are laid under it.

    `server` is what else the operator says of it.
    """
    content = values(defaulted(spec), namespace=namespace, uid=uid)
    return render_values(content | {"server": content["server"] | server})


def render_values(content: Mapping[str, Any]) -> Rendered:
    """Render exactly these values. `Refused` says why the chart did not take them."""
    return Rendered(_template(yaml.safe_dump(dict(content))))


@lru_cache(maxsize=64)
def _template(content: str) -> str:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", prefix="hearth-values-") as file:
        file.write(content)
        file.flush()
        argv = [helm(), "template", "synapse", str(FOLDER), "--namespace", NAMESPACE, "--values", file.name]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise Refused(done.stderr)
    return done.stdout


def values_file(folder: Path, spec: Mapping[str, Any]) -> Path:
    """Write the values of a server with this spec, and return the file."""
    path = folder / "values.yaml"
    path.write_text(yaml.safe_dump(values(defaulted(spec), namespace=NAMESPACE, uid=UID)))
    return path
