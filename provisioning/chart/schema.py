"""Makes the chart's values.yaml and values.schema.json from the MatrixServer's definition.

`python -m provisioning.chart.schema` writes both; a test holds them equal to what this makes. The chart takes a spec as
the API server gives it, with its defaults: so a field that has a default is required here, and values.yaml holds the
defaults of what is always there. CEL rules have no place in JSON schema: the API server holds them.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
DEFINITION = FOLDER / "crds" / "hearth.host_matrixservers.yaml"
VALUES = FOLDER / "values.yaml"
SCHEMA = FOLDER / "values.schema.json"
KEPT = (
    "type", "description", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength",
    "minItems", "maxItems", "maxProperties",
)  # fmt: skip
SERVER = {
    "type": "object",
    "description": "The MatrixServer that these objects belong to.",
    "additionalProperties": False,
    "required": ["name", "namespace", "uid", "organisation"],
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 63},
        "namespace": {"type": "string", "minLength": 1, "maxLength": 63},
        "uid": {"type": "string", "description": "Empty leaves the owner references out.", "maxLength": 63},
        "organisation": {"type": "string", "maxLength": 36},
        "id": {
            "type": "string",
            "description": "Whose data Hearth keeps here; absent: as the namespace's name says.",
            "maxLength": 63,
        },
        "stopped": {"type": "boolean", "description": "Whether no process of Synapse may run."},
        "copied": {"type": "boolean", "description": "Whether its database was made as a copy of another one."},
        "recovery": {
            "type": "object",
            "description": "How far the operator is with spec.recovery.",
            "additionalProperties": False,
            "required": ["copies", "rests"],
            "properties": {
                "copies": {
                    "type": "boolean",
                    "description": "Whether the database may be copied from the temporary one.",
                },
                "rests": {"type": "boolean", "description": "Whether its pod has nothing to do."},
            },
        },
        "arrangement": {
            "type": "string",
            "description": "What the operator notes on groups of processes: who does what among them.",
            "maxLength": 250,
        },
    },
}


def definition() -> dict[str, Any]:
    """Return the CustomResourceDefinition."""
    content: dict[str, Any] = yaml.safe_load(DEFINITION.read_text())
    return content


def spec_schema() -> dict[str, Any]:
    """Return the OpenAPI schema of a MatrixServer's spec."""
    whole = definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    schema: dict[str, Any] = whole["properties"]["spec"]
    return schema


def values_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 7) of the chart's values."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A MatrixServer",
        "type": "object",
        "additionalProperties": False,
        "required": ["server", "spec"],
        # Helm itself always adds `global`.
        "properties": {"global": {"type": "object"}, "server": SERVER, "spec": json_schema(spec_schema())},
    }


def json_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return an OpenAPI schema as strict JSON schema: no unknown field, and every field with a default is there."""
    result = {key: schema[key] for key in KEPT if key in schema}
    if "items" in schema:
        result["items"] = json_schema(schema["items"])
    if "properties" in schema:
        properties = schema["properties"]
        with_default = [name for name, each in properties.items() if "default" in each]
        result["required"] = sorted({*schema.get("required", ()), *with_default})
        result["properties"] = {name: json_schema(each) for name, each in properties.items()}
        result["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), Mapping):
        result["additionalProperties"] = json_schema(schema["additionalProperties"])
    return result


def defaulted(value: Any, schema: Mapping[str, Any] | None = None) -> Any:
    """Return a copy of a spec with the defaults that the API server would add."""
    schema = spec_schema() if schema is None else schema
    if isinstance(value, list):
        return [defaulted(each, schema.get("items", {})) for each in value]
    if not isinstance(value, Mapping):
        return copy.deepcopy(value)
    properties = schema.get("properties", {})
    result = dict(value)
    for name, each in properties.items():
        if name not in result and "default" in each:
            result[name] = each["default"]
    return {name: defaulted(each, properties.get(name, {})) for name, each in result.items()}


def values() -> dict[str, Any]:
    """Return the chart's default values: what the API server adds to an empty spec."""
    return {"server": {"name": "synapse", "uid": ""}, "spec": defaulted({})}


def main() -> None:
    """Write both files."""
    SCHEMA.write_text(json_text(values_schema()))
    VALUES.write_text(yaml_text(values()))


def json_text(content: Mapping[str, Any]) -> str:
    """Return the text of values.schema.json."""
    return json.dumps(content, indent=1) + "\n"


def yaml_text(content: Mapping[str, Any]) -> str:
    """Return the text of values.yaml."""
    return f"# Made by `python -m provisioning.chart.schema` from the MatrixServer.\n{yaml.safe_dump(dict(content))}"


if __name__ == "__main__":
    main()
