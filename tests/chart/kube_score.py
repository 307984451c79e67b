"""Findings of kube-score that are accepted, each with its reason. Any other critical finding fails the tests."""

from __future__ import annotations

ACCEPTED: dict[tuple[str, str], str] = {
    ("ImagePullPolicy is not set to Always", "*"): (
        "Images are named by release or digest, so what lies on the node is what a pull would bring. With Always a "
        "registry that is down would keep every server from starting again."
    ),
    ("The NetworkPolicys selector doesn't match any pods", "postgres"): (
        "The pods of the database are made by CloudNativePG from the Cluster of this chart, with that label."
    ),
    ("The NetworkPolicys selector doesn't match any pods", "certificate"): (
        "cert-manager makes the pod that proves a host by HTTP-01, with that label, and takes it away again."
    ),
}
"""(what kube-score says, the object's name or * for all) and why it is right here."""


def explained(line: str) -> bool:
    """Tell whether a critical finding, a line of kube-score's `ci` output, is accepted."""
    return any(text in line and (name == "*" or f"] {name}/" in line) for text, name in ACCEPTED)
