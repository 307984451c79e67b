"""JSON schemas for kubeconform, made from what the API server publishes: built-in kinds and custom resources alike.

https://kubernetes.io/docs/concepts/overview/kubernetes-api/#openapi-v3
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.cluster.api import Api

GVK = "x-kubernetes-group-version-kind"
LOCATION = "{{.ResourceKind}}-{{.Group}}-{{.ResourceAPIVersion}}.json"
"""kubeconform's template for the name of a schema's file."""


def write(api: Api, folder: Path, objects: Iterable[Mapping[str, Any]]) -> str:
    """Write a strict schema of each kind among `objects`; return kubeconform's schema location."""
    for api_version, kind in {(each["apiVersion"], each["kind"]) for each in objects}:
        group, _, version = api_version.rpartition("/")
        path = f"/openapi/v3/apis/{api_version}" if group else f"/openapi/v3/api/{version}"
        components = api.request("GET", path)["components"]["schemas"]
        wanted = {"group": group, "version": version, "kind": kind}
        found = next(each for each in components.values() if wanted in each.get(GVK, []))
        # To kubeconform the group of the core's kinds is `v1`.
        (folder / f"{kind.lower()}-{group or version}-{version}.json").write_text(json.dumps(strict(found, components)))
    return str(folder / LOCATION)


def strict(schema: Mapping[str, Any], components: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema with its references resolved, in which no field is unknown."""
    if "$ref" in schema:
        return strict(components[schema["$ref"].rpartition("/")[2]], components)
    if len(schema.get("allOf", [])) == 1 and "type" not in schema:
        return strict(schema["allOf"][0], components)
    if schema.get("x-kubernetes-int-or-string") or schema.get("format") == "int-or-string":
        return {"type": ["integer", "string"]}
    result = {
        key: schema[key] for key in ("type", "enum", "pattern", "required", "minimum", "maximum") if key in schema
    }
    if "items" in schema:
        result["items"] = strict(schema["items"], components)
    if isinstance(schema.get("additionalProperties"), Mapping):
        result["additionalProperties"] = strict(schema["additionalProperties"], components)
    if "properties" in schema:
        result["properties"] = {name: strict(each, components) for name, each in schema["properties"].items()}
        if "additionalProperties" not in result and not schema.get("x-kubernetes-preserve-unknown-fields"):
            result["additionalProperties"] = False
    return result
