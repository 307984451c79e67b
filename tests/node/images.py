"""The container images of the real node, made on this machine: from Debian's packages, PyPI and Go modules.

That of Hearth's own operator is made by the recipe that customers have, `provisioning/operator/image/`.

Each lies in the cache as an OCI archive whose name holds a hash of all that it is made of, so the second run makes
none. Debian's mirror and its proxy are those of this machine's apt, PyPI's those of its pip. Every image is called
`localhost/...`; none is ever pulled or pushed. Debian's packages are as new as on the day an image was made.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import inspect
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from backups.engine.image import context as backup_context
from provisioning.operator.image import context
from provisioning.providers.local import environments
from provisioning.providers.local.processes import Command, spawn_argv
from tests.cluster import tools
from tests.node.namespaces import UNSHARE, in_memory
from tests.operator import render_helper

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
S3_PROVIDER = ROOT / "tests" / "chart" / "s3-provider.txt"
MODULES = "usr/local/lib/python3.11/dist-packages"
"""Where Debian 12's Python looks for modules that are not Debian's."""
UNUSED = 30 * 24 * 3600.0
"""Seconds after which an image that no run asked for goes."""
KEPT = 3
"""How many versions of one image stay: the operator's changes with every line of it."""
KEY = 16
BUILDING = ".building-"
APART = tuple(word for word in UNSHARE if word != "--net")
"""Namespaces of its own, but the machine's network."""
PYTHON = "python3.11"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
Say = Callable[[str], None]


class Failed(Exception):
    """An image can't be made; says why."""


@dataclass(frozen=True)
class Image:
    """One image: its name, the image it stands on, and the recipe that fills the root folder it is given.

    With `context` there is a Containerfile: it fills the folder that this is built in.
    """

    name: str
    base: str
    make: Callable[[Root], None] | None = None
    inputs: tuple[bytes, ...] = ()
    """What the recipe reads, beside its own text."""
    command: str = ""
    context: Callable[[Path], None] | None = None

    @property
    def reference(self) -> str:
        return f"localhost/{self.name}"


class Root:
    """The root folder of an image that is being made, and a way to run programs in it."""

    def __init__(self, builder: Builder, container: str) -> None:
        self._builder = builder
        self._container = container
        self.path = Path(builder.buildah("mount", container).strip())

    def run(self, *words: str) -> None:
        """Run a program of the image in it, with this machine's network."""
        self._builder.buildah("run", "--isolation=chroot", self._container, "--", *words)

    def install(self, *packages: str) -> None:
        """Install Debian's packages; the traces of apt go again."""
        settings = self.path / "etc/apt/apt.conf.d/99machine"
        sources = self.path / "etc/apt/sources.list"
        settings.write_text(_apt_settings())
        sources.write_text("".join(f"deb {line}\n" for line in _mirrors()))
        options = ("-y", "-qq", "--no-install-recommends", "-o=Dpkg::Use-Pty=0")
        self.run("apt-get", "update", "-qq")
        self.run("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", *options, *packages)
        for each in (settings, sources):
            each.unlink()
        self.tidy()

    def tidy(self) -> None:
        """Remove what nobody reads in an image."""
        for folder in ("var/lib/apt/lists", "var/cache/apt", "usr/share/doc", "usr/share/man", "usr/share/locale"):
            shutil.rmtree(self.path / folder, ignore_errors=True)
            (self.path / folder).mkdir()

    def python(self, *words: str) -> None:
        """Install Python packages with uv for the image's Python, and compile them there."""
        argv = [str(environments.uv_program()), "--no-config", "--quiet", "pip", "install"]
        argv += ["--target", str(self.path / MODULES), "--python-version", "3.11", "--no-build", *words]
        cache = {"UV_CACHE_DIR": str(self._builder.folder / "uv")}
        _call(argv, environment=environments.uv_environment() | cache)
        self.run(PYTHON, "-m", "compileall", "-q", "-j", "0", f"/{MODULES}")


class Builder:
    """buildah with a store of its own, which goes with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def buildah(self, *words: str) -> str:
        """Run buildah and return its output."""
        store = ["--root", str(self.folder / "store"), "--runroot", str(self.folder / "run")]
        return _call(["buildah", *store, "--storage-driver=overlay", *words])

    def build(self, image: Image, archive: Path) -> None:
        """Make one image and write its archive."""
        if image.make is not None:
            container = self.buildah("from", image.base).strip()
            image.make(Root(self, container))
            if image.command:
                self.buildah("config", "--cmd", image.command, container)
            self.buildah("umount", container)
            self.buildah("commit", "--quiet", "--rm", container, image.reference)
        if image.context is not None:
            folder = self.folder / "context" / image.name.partition(":")[0]
            folder.parent.mkdir(exist_ok=True)
            image.context(folder)
            words = ["--pull-never", "--isolation=chroot", "--build-arg", f"BASE={image.base}"]
            self.buildah("build", "--quiet", *words, "--tag", image.reference, str(folder))
        fresh = archive.with_name(f".{archive.name}")
        fresh.unlink(missing_ok=True)
        self.buildah(
            "push", "--quiet", "--compression-format=zstd", image.reference, f"oci-archive:{fresh}:{image.reference}"
        )
        fresh.replace(archive)

    def load(self, image: Image, archive: Path) -> None:
        """Put an image that was made before into the store, for others to stand on."""
        self.buildah("pull", "--quiet", f"oci-archive:{archive}")
        if image.reference not in self.buildah("images", "--format", "{{.Name}}:{{.Tag}}").split():
            raise Failed(f"{archive} does not hold {image.reference}")


def pause() -> Image:
    """The process that holds a pod's namespaces."""
    source = HERE / "pause.c"

    def make(root: Root) -> None:
        _call(["gcc", "-static", "-Os", "-o", str(root.path / "pause"), str(source)])

    return Image("pause:1", "scratch", make, (source.read_bytes(), b"/pause"), "/pause")


def debian() -> Image:
    """Debian's smallest root, with Python."""

    def make(root: Root) -> None:
        mirror, codename = _mirrors()[0].split()[:2]
        words = ["--variant=minbase", "--include=ca-certificates,python3", f"--keyring={KEYRING}"]
        _call(["debootstrap", *words, codename, str(root.path), mirror])
        (root.path / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        root.tidy()

    return Image("debian:12", "scratch", make)


def postgres() -> Image:
    """PostgreSQL as CloudNativePG wants it: its programs in PATH, and a user with the number 26.

    https://cloudnative-pg.io/documentation/1.27/container_images/
    """

    def make(root: Root) -> None:
        root.run("groupdel", "tape")  # Debian's group 26, for which an image has no use
        root.run("groupadd", "--system", "--gid=26", "postgres")
        root.run("useradd", "--system", "--uid=26", "--gid=26", "--home-dir=/var/lib/postgresql", "postgres")
        settings = root.path / "etc/postgresql-common"
        settings.mkdir()
        (settings / "createcluster.conf").write_text("create_main_cluster = false\n")
        root.install("postgresql-15")
        for program in (root.path / "usr/lib/postgresql/15/bin").iterdir():
            place = root.path / "usr/local/bin" / program.name
            place.symlink_to(f"/usr/lib/postgresql/15/bin/{program.name}")

    return Image("postgresql:15", debian().reference, make)


def redis() -> Image:
    """Redis, of Debian."""
    return Image("redis:7", debian().reference, lambda root: root.install("redis-server"))


def synapse(version: str) -> Image:
    """One release of Synapse, by the same locked requirements as the local provider's."""
    lock = environments.lock_file(version)

    def make(root: Root) -> None:
        root.python("--require-hashes", "-r", str(lock))
        root.python("--require-hashes", "--no-deps", "-r", str(S3_PROVIDER))

    return Image(f"synapse:v{version}", debian().reference, make, (lock.read_bytes(), S3_PROVIDER.read_bytes()))


def cloudnative_pg() -> Image:
    """CloudNativePG's operator, which is also what runs in each database's pod."""
    program = tools.find("cloudnative-pg")

    def make(root: Root) -> None:
        (root.path / "operator").mkdir()
        shutil.copy(program, root.path / "operator" / "manager_amd64")
        (root.path / "manager").symlink_to("operator/manager_amd64")
        (root.path / "etc").mkdir()
        (root.path / "etc/passwd").write_text("nonroot:x:65532:65532::/home/nonroot:/sbin/nologin\n")

    return Image("cloudnative-pg:1.27.0", "scratch", make, (hashlib.sha256(program.read_bytes()).digest(),))


def operator() -> Image:
    """Hearth's operator, by the recipe that is the product's own."""
    helper = render_helper.helper()

    def fill(folder: Path) -> None:
        context.fill(folder, helper=helper)

    made_of = [
        context.HERE / "Containerfile",
        context.HERE / "context.py",
        *(ROOT / each for each in context.sources()),
    ]
    files = [f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes() for path in made_of]
    inputs = (*files, "".join(context.requirements()).encode(), hashlib.sha256(helper.read_bytes()).digest())
    return Image("hearth-operator:1", debian().reference, context=fill, inputs=inputs)


def backup_agent() -> Image:
    """The backup engine, by the recipe that is the product's own, on the database's own image: it has the clients."""
    made_of = [*backup_context.sources().values(), *(Path("backups/engine/image") / "Containerfile",)]
    files = [f"{path}\n".encode() + (ROOT / path).read_bytes() for path in made_of]
    inputs = (*files, "".join(context.requirements(backup_context.PACKAGES)).encode())
    return Image("hearth-backup:1", postgres().reference, context=backup_context.fill, inputs=inputs)


def everything(versions: Sequence[str]) -> list[Image]:
    """Return all images of a run, those first on which others stand."""
    ours = [operator(), postgres(), redis(), backup_agent()]
    return [pause(), debian(), cloudnative_pg(), *ours, *map(synapse, versions)]


def ensure(versions: Sequence[str], *, say: Say) -> dict[str, Path]:
    """Return the archive of each image by its reference, made first where missing."""
    cache().mkdir(parents=True, exist_ok=True)
    with _alone(say):
        _tidy()
        archives = _archives(everything(versions))
        if not all(archive.exists() for archive in archives.values()):
            # Apart from us: whatever is mounted and runs while images are made ends with the one who makes them.
            words = (*APART, sys.executable, "-m", "tests.node.images", *versions)
            command = Command("images", words, ROOT, os.environ)
            code = subprocess.run(spawn_argv(command), cwd=ROOT, check=False).returncode
            _tidy()
            if code:
                raise Failed("the images could not be made; the lines above say why.")
    for archive in archives.values():
        os.utime(archive)
    return archives


def make(versions: Sequence[str], *, say: Say) -> None:
    """Make the images that are missing, and leave the working folder to the caller, who holds the lock."""
    images = everything(versions)
    archives = _archives(images)
    missing = [each for each in images if not archives[each.reference].exists()]
    builder = Builder(Path(tempfile.mkdtemp(prefix=BUILDING, dir=cache())))
    in_memory(builder.folder)
    for image in images:
        archive, began = archives[image.reference], time.monotonic()
        if image in missing:
            say(f"Making the image {image.name} (once)")
            builder.build(image, archive)
            say(f"Made {image.name} in {time.monotonic() - began:.0f} s, {archive.stat().st_size >> 20} MiB")
        elif image.reference in {each.base for each in missing}:
            builder.load(image, archive)


def _archives(images: Sequence[Image]) -> dict[str, Path]:
    return {each.reference: cache() / f"{each.name.replace(':', '-')}-{_key(each, images)}.tar" for each in images}


def _key(image: Image, images: Sequence[Image]) -> str:
    """Return a hash of all that an image is made of."""
    base = next((_key(each, images) for each in images if each.reference == image.base), "")
    parts = [
        image.name.encode(),
        base.encode(),
        inspect.getsource(image.make or Builder).encode(),
        inspect.getsource(Root).encode(),
        *image.inputs,
    ]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:KEY]


def _tidy() -> None:
    """Remove working folders (we hold the lock, so nobody uses them), and images that nobody used for long."""
    for folder in cache().glob(f"{BUILDING}*"):
        shutil.rmtree(folder, ignore_errors=True)
    for unfinished in cache().glob(".*.tar"):
        unfinished.unlink()
    seen: Counter[str] = Counter()
    for archive in sorted(cache().glob("[!.]*.tar"), key=lambda each: -each.stat().st_mtime):
        name = archive.stem.rpartition("-")[0]
        seen[name] += 1
        if seen[name] > KEPT or time.time() - archive.stat().st_mtime > UNUSED:
            archive.unlink()


def _mirrors() -> list[str]:
    """Return the lines `address release components` of Debian in this machine's apt, the system's own release first."""
    words = ["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE) $(COMPONENT)", "Created-By: Packages"]
    lines = list(dict.fromkeys(_call([*words, "Origin: Debian"]).splitlines()))
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', Path("/etc/os-release").read_text(), re.MULTILINE))
    codename = release.get("VERSION_CODENAME", "")
    lines.sort(key=lambda line: line.split()[1] != codename)
    if not lines or lines[0].split()[1] != codename:
        raise Failed(f"apt knows no packages of Debian {codename}. Run apt-get update, then try again.")
    return lines


def _apt_settings() -> str:
    """Return how this machine's apt reaches its mirrors."""
    return "".join(f"{line}\n" for line in _call(["apt-config", "dump", "Acquire"]).splitlines())


def _call(argv: Sequence[str], *, environment: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment, timeout=1200)
    if done.returncode:
        raise Failed(f"{' '.join(argv[:6])} ... ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


@contextlib.contextmanager
def _alone(say: Say) -> Iterator[None]:
    with (cache() / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Waiting for another run that makes images")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def cache() -> Path:
    """Return the folder of the archives, for all checkouts of this user."""
    return tools.cache().with_name("node-images")


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 (this is a command)


if __name__ == "__main__":
    try:
        make(sys.argv[1:], say=_say)
    except (Failed, context.Failed) as _failed:
        _say(f"\n*** {_failed}")
        sys.exit(1)
