"""Stands where Synapse's administration would be on the listener that a load balancer leads the world to.

Synapse puts what a listener names as `additional_resources` in the place of its own resource of that path, and there is
nothing below it.
https://element-hq.github.io/synapse/latest/usage/configuration/config_documentation.html#listeners
"""

from __future__ import annotations


class Closed:
    """Says that nothing is there."""

    def __init__(self, _config: object, _api: object) -> None: ...

    async def handle_request(self, _request: object) -> tuple[int, dict[str, str]]:
        """Return status and JSON for any method."""
        return 404, {"errcode": "M_UNRECOGNIZED", "error": "There is nothing here."}
