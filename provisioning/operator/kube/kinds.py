"""A kind of object: how its address is made, and what is kept of each object that a watch shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Look = Callable[[Mapping[str, Any]], Any]
"""Takes a whole object and returns the few things of its status that matter, as something comparable."""


@dataclass(frozen=True)
class Kind:
    """One kind. With `look` its whole objects are watched, without only their metadata."""

    group: str
    version: str
    name: str
    plural: str
    namespaced: bool = True
    look: Look | None = None
    shared: bool = False
    """Whether others may rightly write its spec too, such as a driver that binds a volume."""
    whole: bool = False
    """Whether whole objects are watched even without `look`."""

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def definition(self) -> str:
        """The name of its CustomResourceDefinition, should it have one."""
        return f"{self.plural}.{self.group}"

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """Return the path of one object, or of the collection; without a namespace, of all namespaces."""
        parts = ["/apis", self.group, self.version] if self.group else ["/api", self.version]
        if namespace and self.namespaced:
            parts += ["namespaces", namespace]
        parts += [part for part in (self.plural, name, subresource) if part]
        return "/".join(parts)

    def __str__(self) -> str:
        return self.name


DEFINITIONS = Kind(
    "apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions", namespaced=False
)
LEASES = Kind("coordination.k8s.io", "v1", "Lease", "leases")
EVENTS = Kind("events.k8s.io", "v1", "Event", "events")
PODS = Kind("", "v1", "Pod", "pods")
