"""The programs of the test cluster, built from their Go modules once for all checkouts.

The Kubernetes programs, Helm and kwok share one go.mod on purpose: with one version of the Kubernetes libraries most of
their packages are compiled once instead of three times. A built program lies in
`<cache>/hearth/test-bin/<module>-<hash of go.mod, go.sum and flags>-<version of Go>/`, and `var/test/bin` has links to
what this checkout uses. `TEST_CLUSTER_BIN` may name a folder of programs that are taken as they are.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODULES = Path(__file__).parent / "tools"
LINKS = ROOT / "var" / "test" / "bin"
KUBERNETES = "v1.34.4"
HELM = "v3.19.5"
_MINOR = KUBERNETES.split(".")[1]
# Without its version the API server says v0.0.0 and Helm refuses charts with a kubeVersion; without the others
# `helm template` and `helm lint` think of Kubernetes 1.20.
_FLAGS = " ".join(
    ["-s -w"]
    + [
        f"-X {name}={value}"
        for name, value in {
            "k8s.io/component-base/version.gitVersion": KUBERNETES,
            "k8s.io/component-base/version.gitMajor": "1",
            "k8s.io/component-base/version.gitMinor": _MINOR,
            "helm.sh/helm/v3/internal/version.version": HELM,
            "helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor": "1",
            "helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor": _MINOR,
            "helm.sh/helm/v3/pkg/lint/rules.k8sVersionMajor": "1",
            "helm.sh/helm/v3/pkg/lint/rules.k8sVersionMinor": _MINOR,
        }.items()
    ]
)


class Missing(Exception):
    """A program is not there and can't be built; says why."""


@dataclass(frozen=True)
class Tool:
    """One program: the folder of its go.mod, and its package."""

    module: str
    package: str


TOOLS = {
    "etcd": Tool("etcd", "go.etcd.io/etcd/server/v3"),
    "kube-apiserver": Tool("kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver"),
    "kube-controller-manager": Tool("kubernetes", "k8s.io/kubernetes/cmd/kube-controller-manager"),
    "kube-scheduler": Tool("kubernetes", "k8s.io/kubernetes/cmd/kube-scheduler"),
    "kwok": Tool("kubernetes", "sigs.k8s.io/kwok/cmd/kwok"),
    "helm": Tool("kubernetes", "helm.sh/helm/v3/cmd/helm"),
    "kube-score": Tool("checks", "github.com/zegl/kube-score/cmd/kube-score"),
    "kubeconform": Tool("checks", "github.com/yannh/kubeconform/cmd/kubeconform"),
    "kubelet": Tool("kubernetes", "k8s.io/kubernetes/cmd/kubelet"),
    "kubectl": Tool("kubernetes", "k8s.io/kubernetes/cmd/kubectl"),
    "kube-proxy": Tool("kubernetes", "k8s.io/kubernetes/cmd/kube-proxy"),
    "coredns": Tool("coredns", "hearth.host/tests/cluster/coredns"),
    "router": Tool("router", "hearth.host/tests/cluster/router"),
    "cloudnative-pg": Tool("cloudnative-pg", "github.com/cloudnative-pg/cloudnative-pg/cmd/manager"),
    "minio": Tool("minio", "github.com/minio/minio"),
    "restic": Tool("restic", "github.com/restic/restic/cmd/restic"),
}
CLUSTER = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok")
UNUSED = 30 * 24 * 3600.0
"""Seconds after which a version that no checkout asked for goes."""
TESTS = (*CLUSTER, "helm", "kube-score", "kubeconform", "router")
"""What `make test` needs; the others are built when somebody asks for them."""
NODE = ("kubelet", "kube-proxy", "coredns", "cloudnative-pg")
"""What a real node needs beside them."""
STORES = ("minio",)
"""The S3 server that stores of backups are tested against, beside rclone's, which comes in a wheel."""


def find(name: str) -> Path:
    """Return the path of a program that is there already. `Missing` says what to do."""
    given = os.environ.get("TEST_CLUSTER_BIN")
    if given and (path := Path(given) / name).exists():
        return path
    for folder in sorted(cache().glob(f"{_key(TOOLS[name].module)}-*"), reverse=True):
        if (path := folder / name).exists():
            return path
    raise Missing(f"the program {name} of the test cluster is not there. Run: make test (needs Go and its modules).")


def ensure(names: Iterable[str] = TESTS, *, say: Callable[[str], None] = print) -> dict[str, Path]:
    """Return the programs' paths, built first where missing. `Missing` says what went wrong."""
    names = tuple(names)
    for module in dict.fromkeys(TOOLS[name].module for name in names):
        wanted = [name for name in names if TOOLS[name].module == module]
        if any(_absent(name) for name in wanted):
            with _alone(module, say):
                if missing := [name for name in wanted if _absent(name)]:
                    _build(module, missing, say)
    paths = {name: find(name) for name in names}
    LINKS.mkdir(parents=True, exist_ok=True)
    for name, path in paths.items():
        link(path, LINKS / name)
        if path.is_relative_to(cache()):
            os.utime(path.parent)
    return paths


def link(target: Path, place: Path) -> None:
    """Make `place` a link to `target`, in one step."""
    if place.is_symlink() and place.readlink() == target:
        return
    fresh = place.with_name(f".{place.name}.{os.getpid()}")
    fresh.symlink_to(target)
    fresh.replace(place)


def go() -> Path:
    """Return Go's command. Raise `Missing` without it."""
    path = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin:/usr/lib/go/bin")
    if path is None:
        raise Missing("there is no Go to build it with. Install Go 1.24 or later, or set TEST_CLUSTER_BIN.")
    return Path(path)


def _absent(name: str) -> bool:
    try:
        find(name)
    except Missing:
        return True
    return False


def _build(module: str, names: list[str], say: Callable[[str], None]) -> None:
    """Build a module's programs in one command, so that linking one overlaps with compiling the next."""
    started = time.monotonic()
    place = cache() / f"{_key(module)}-{_version()}"
    _tidy(module)
    place.mkdir(parents=True, exist_ok=True)
    say(f"Building {', '.join(names)} (once; minutes)")
    with tempfile.TemporaryDirectory(prefix=f".building-{module}-", dir=cache()) as folder:
        packages = [TOOLS[name].package for name in names]
        _run(MODULES / module, ["build", "-v", "-trimpath", "-ldflags", _FLAGS, "-o", f"{folder}/", *packages], say)
        for name in names:
            (Path(folder) / _output(TOOLS[name].package)).replace(place / name)
    say(f"Built {', '.join(names)} in {time.monotonic() - started:.0f} s")


def _tidy(module: str) -> None:
    """Remove what a killed build left (we hold the lock, so nobody uses it), and versions not used for a month."""
    for folder in cache().glob(f".building-{module}-*"):
        shutil.rmtree(folder, ignore_errors=True)
    for folder in cache().glob(f"{module}-*"):
        if folder.is_dir() and time.time() - folder.stat().st_mtime > UNUSED:
            shutil.rmtree(folder, ignore_errors=True)


def _output(package: str) -> str:
    """Return the file name that Go gives to a program: the last part of its package that is no version."""
    parts = package.split("/")
    return parts[-2] if re.fullmatch(r"v\d+", parts[-1]) else parts[-1]


def _run(folder: Path, words: list[str], say: Callable[[str], None]) -> None:
    """Run Go, with a line every 30 s that tells how many packages were compiled."""
    environment = os.environ | {"CGO_ENABLED": "0"}
    last = started = time.monotonic()
    lines: list[str] = []
    with subprocess.Popen(
        [str(go()), *words], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if time.monotonic() - last > 30:
                last = time.monotonic()
                say(f"  {len(lines)} packages in {last - started:.0f} s")
    if process.returncode != 0:
        raise Missing(f"building the test cluster failed:\n{''.join(lines[-20:])}")


def _version() -> str:
    words = [str(go()), "env", "GOVERSION"]
    return subprocess.run(words, cwd=MODULES, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def _key(module: str) -> str:
    sources = [*sorted((MODULES / module).glob("*.go")), *((MODULES / module / name) for name in ("go.mod", "go.sum"))]
    contents = [each.read_bytes() for each in sources]
    digest = hashlib.sha256(b"\0".join([*contents, _FLAGS.encode()])).hexdigest()
    return f"{module}-{digest[:16]}"


def cache() -> Path:
    """Return the folder of what is built and fetched, for all checkouts of this user."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "hearth" / "test-bin"


@contextlib.contextmanager
def _alone(module: str, say: Callable[[str], None]) -> Iterator[None]:
    """Let one process build a module while the others wait."""
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / f".{module}.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"Waiting for another build of {module}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    for _name, _path in ensure(sys.argv[1:] or TESTS).items():
        print(_name, _path)  # noqa: T201 (this is a command)
