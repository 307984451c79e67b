"""What Hearth takes for a kubeconfig: whole in itself, running no program and reading no file of this machine."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import yaml

LARGEST = 64 * 1024
FOREIGN = {
    "exec": "runs a program",
    "auth-provider": "runs a program",
    "tokenFile": "names a file",
    "client-certificate": "names a file",
    "client-key": "names a file",
    "certificate-authority": "names a file",
    "insecure-skip-tls-verify": "trusts any certificate",
    "proxy-url": "goes through a proxy",
    "username": "has a password in it, which clusters no longer take",
    "password": "has a password in it, which clusters no longer take",
}
HOW = (
    "Give one that is whole in itself: the server's https address, certificate-authority-data, and a token, or "
    "client-certificate-data with client-key-data."
)


class KubeconfigRefused(ValueError):
    """It can't be used; the text is for the staff and quotes nothing of it."""


def read(text: str) -> dict[str, Any]:
    """Return a kubeconfig with its current context alone, or raise `KubeconfigRefused`."""
    if len(text) > LARGEST:
        raise KubeconfigRefused(f"The kubeconfig has more than {LARGEST // 1024} KB. Nothing was changed. {HOW}")
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):  # a date that is none, and brackets without end
        raise KubeconfigRefused(f"The kubeconfig is no YAML. Nothing was changed. {HOW}") from None
    try:
        context = _entry(found, "contexts", found["current-context"], "context")
        cluster = _entry(found, "clusters", context["cluster"], "cluster")
        user = _entry(found, "users", context["user"], "user")
    except (KeyError, TypeError, ValueError, StopIteration):
        raise KubeconfigRefused(f"The kubeconfig has no complete current context. Nothing was changed. {HOW}") from None
    _look(cluster, user)
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "hearth",
        "contexts": [{"name": "hearth", "context": {"cluster": "hearth", "user": "hearth"}}],
        "clusters": [{"name": "hearth", "cluster": cluster}],
        "users": [{"name": "hearth", "user": user}],
    }


def _look(cluster: dict[str, Any], user: dict[str, Any]) -> None:
    for key in (*cluster, *user):
        if key in FOREIGN:
            raise KubeconfigRefused(f"The kubeconfig {FOREIGN[key]} (“{key}”). Nothing was changed. {HOW}")
    if not _is_https(str(cluster.get("server"))):
        raise KubeconfigRefused(f"The kubeconfig's server has no https address. Nothing was changed. {HOW}")
    if not cluster.get("certificate-authority-data"):
        raise KubeconfigRefused(f"The kubeconfig names no authority to trust. Nothing was changed. {HOW}")
    if not user.get("token") and not (user.get("client-certificate-data") and user.get("client-key-data")):
        raise KubeconfigRefused(f"The kubeconfig has no credentials. Nothing was changed. {HOW}")


def _is_https(address: str) -> bool:
    try:
        found = urlsplit(address)
    except ValueError:
        return False
    return found.scheme == "https" and bool(found.hostname)


def _entry(found: Any, group: str, name: str, inner: str) -> dict[str, Any]:
    entry = next(each for each in found[group] if each["name"] == name)[inner]
    return dict(entry)
