"""Damage that a store or somebody in it can do: `make bench BENCH=corruption`.

1,000 random faults, one at a time, over a real server's backups (two restore points, WAL, media, configuration): a bit
flipped, an object cut, two swapped, blocks of one reordered, one dropped, an older one put in a newer one's place.
After each, everything is read as the weekly verification does, and something that needs the damaged object is restored:
`accepted` counts faults of which verification said nothing, or after which a restore gave back something else than
without them. `restores` says how many were refused, or right because they read nothing of it.
The same kinds of faults are done to a restic repository and to rclone's crypt, each asked by its own means.
The last line is JSON. RUNS, RESTORES, OTHERS and SEED choose how many faults, after how many of them there is a restore
too, how many for the others, and which.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from backups.engine import names, verify
from backups.engine.catalogue import Catalogue
from tests.backups.contest.restores import Restores
from tests.backups.engine.backed import Backed, backed_up
from tests.cluster import tools

BLOCK = 4096
KINDS = ("flip", "truncate", "swap", "reorder", "drop", "replay")


@dataclass(frozen=True)
class Fault:
    """What was done to which files, and how to undo it."""

    kind: str
    names: tuple[str, ...]
    before: tuple[bytes, ...]


def main() -> None:
    seed, runs, others = (
        int(os.environ.get(name, value)) for name, value in (("SEED", 1), ("RUNS", 1000), ("OTHERS", 60))
    )
    restores = min(int(os.environ.get("RESTORES", runs)), runs)
    say(f"seed {seed}, {runs} faults, {restores} restores, {others} faults for each of the others")
    with backed_up() as backed, tempfile.TemporaryDirectory(prefix="hb-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        found = damage_ours(backed, runs, random.Random(seed), Restores(backed, Path(folder)), restores)
    result: dict[str, object] = {**found, "seed": seed}
    with tempfile.TemporaryDirectory(prefix="hearth-corruption-") as folder:
        for name, make in (("restic", Restic), ("rclone", Rclone)) if others else ():
            result[name] = damage_other(make(Path(folder) / name), others, random.Random(seed))
    say(json.dumps(result))
    sys.exit(result["accepted"] != 0)


def damage_ours(
    backed: Backed, runs: int, rng: random.Random, restored: Restores | None = None, restores: int = 0
) -> dict[str, object]:
    """Return how many faults were found, by kind, and what the restores did that were tried after some of them."""
    expected = known(backed.catalogue)
    assert backed.read(expected=expected).fine, "the backups are damaged before anything was done to them"
    files = needed(backed.catalogue)
    done, missed, outcomes = Counter[str](), Counter[str](), Counter[str]()
    started = time.monotonic()
    for number in range(runs):
        fault = inflict(backed.folder, files, KINDS[number % len(KINDS)], rng)
        report = backed.read(expected=expected)
        done[fault.kind] += 1
        concerned = {each.name for each in report.damage}
        if report.fine:
            missed[fault.kind] += 1
            say("NOT FOUND", fault.kind, *fault.names)
        elif not concerned & set(fault.names):
            say("found, not by name:", fault.kind, *fault.names, sorted(concerned))
        if restored and number * restores // runs != (number + 1) * restores // runs:
            outcome = restored.tried(fault.names)
            outcomes[outcome] += 1
            if outcome == "wrong":
                say("RESTORED WRONG", fault.kind, *fault.names)
        undo(backed.folder, fault)
        if number % 100 == 99:
            say(f"{number + 1} faults in {time.monotonic() - started:.0f} s, {missed.total()} not found", outcomes)
    assert backed.read(expected=expected).fine, "a fault was not undone"
    return {
        "found_share": round(1 - missed.total() / done.total(), 4),
        "accepted": missed.total() + outcomes["wrong"],
        "restores": dict(outcomes),
        "faults": dict(done),
        "objects": len(files),
    }


def known(catalogue: Catalogue) -> verify.Expected:
    """Return what Hearth's database knows of a server's backups: without it nobody misses what was there last."""
    moments = {line: max(each.number for each in some) for line, some in catalogue.moments.items()}
    return verify.Expected(points=frozenset(catalogue.points), moments=moments)


def needed(catalogue: Catalogue) -> list[str]:
    """Return the objects that something needs: no pieces of segments that are stored whole, no WAL that none names."""
    found = {name for name in catalogue.objects if name.startswith((names.POINTS, names.PARTS)) or "/moments/" in name}
    for point in catalogue.points.values():
        found |= verify.needed(catalogue, point)
    for moments in catalogue.moments.values():
        for moment in moments:
            found |= verify.media_of(catalogue, moment.media)
            # Of `<segment>.<from>-<to>` nobody needs what is in `<segment>`.
            found |= {ref.name for ref in moment.wal if ref.name.partition(".")[0] not in catalogue.objects}
            found |= {ref.name for ref in moment.wal if "." not in ref.name}
    return sorted(found & catalogue.objects.keys())


def inflict(folder: Path, files: list[str], kind: str, rng: random.Random) -> Fault:
    """Do one fault that changes something; return it."""
    while True:
        fault = _fault(folder, files, kind, rng)
        after = tuple(_read(folder / name) for name in fault.names)
        if after != fault.before:
            return fault


def undo(folder: Path, fault: Fault) -> None:
    for name, data in zip(fault.names, fault.before, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def _fault(folder: Path, files: list[str], kind: str, rng: random.Random) -> Fault:
    name = rng.choice(files)
    data = (folder / name).read_bytes()
    if kind == "flip" and data:
        at, changed = rng.randrange(len(data)), bytearray(data)
        changed[at] ^= 1 << rng.randrange(8)
        return _write(folder, kind, {name: bytes(changed)})
    if kind == "truncate" and data:
        # At any byte, and as often at a chunk's border.
        at = rng.randrange(len(data)) if rng.random() < 0.5 else max(0, (len(data) - 1) // (1 << 20) * (1 << 20))
        return _write(folder, kind, {name: data[:at]})
    if kind == "reorder":
        size = BLOCK if len(data) >= 4 * BLOCK else max(1, len(data) // 4)
        one, two = sorted(rng.sample(range(max(2, len(data) // size)), 2))
        blocks = [data[at : at + size] for at in range(0, len(data), size)]
        blocks[one], blocks[two % len(blocks)] = blocks[two % len(blocks)], blocks[one]
        return _write(folder, kind, {name: b"".join(blocks)})
    if kind == "drop":
        return _write(folder, kind, {name: None})
    alike = [each for each in files if each != name and _class(each) == _class(name)] or [
        each for each in files if each != name
    ]
    other = rng.choice(alike)
    if kind == "swap":
        return _write(folder, kind, {name: (folder / other).read_bytes(), other: data})
    older, newer = sorted((name, other))
    return _write(folder, kind, {newer: (folder / older).read_bytes()})


def _class(name: str) -> str:
    """Objects of one class can be mistaken for each other the most easily."""
    parts = name.split("/")
    return f"{parts[0]} {parts[2] if len(parts) > 3 else ''} {parts[-1] if parts[0] == 'points-of' else ''}"


def _write(folder: Path, kind: str, changes: dict[str, bytes | None]) -> Fault:
    before = tuple(_read(folder / name) for name in changes)
    for name, data in changes.items():
        if data is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(data)
    return Fault(kind, tuple(changes), before)


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b"\0gone"


class Restic:
    """A restic repository, asked by `restic check --read-data` and by a restore."""

    def __init__(self, folder: Path) -> None:
        self.program = str(tools.ensure(["restic"], say=say)["restic"])
        self.folder = folder / "repository"
        self._source, self._target = folder / "source", folder / "target"
        self._environment = {"RESTIC_PASSWORD": "bench", "HOME": str(folder), "PATH": "/usr/bin:/bin"}
        fill(self._source)
        self._run("init")
        for _ in range(2):
            self._run("backup", str(self._source))
            fill(self._source)
        self._snapshot = json.loads(self._run("snapshots", "--json").stdout)[0]["id"]
        self._before = digest(self._restored())

    def files(self) -> list[str]:
        return [str(each.relative_to(self.folder)) for each in sorted(self.folder.rglob("*")) if each.is_file()]

    def checked(self) -> bool:
        """Whether its own check finds something."""
        return self._run("check", "--read-data", "--no-cache", check=False).returncode != 0

    def restored(self) -> bool:
        """Whether a restore fails, or gives back what was backed up."""
        try:
            return digest(self._restored()) == self._before
        except subprocess.CalledProcessError:
            return True

    def _restored(self) -> Path:
        shutil.rmtree(self._target, ignore_errors=True)
        self._run("restore", self._snapshot, "--target", str(self._target), "--no-cache")
        return self._target

    def _run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        words = (
            self.program,
            "-r",
            str(self.folder),
            "--no-lock" if words[0] in {"check", "restore"} else "-q",
            *words,
        )
        return subprocess.run(words, env=self._environment, check=check, capture_output=True, timeout=300)


class Rclone:
    """A folder behind rclone's crypt. It has no check of its own without the source: a copy back is what there is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "crypt"
        self._source, self._target = folder / "source", folder / "target"
        self._program = str(Path(sys.executable).with_name("rclone"))
        fill(self._source)
        folder.mkdir(exist_ok=True)
        hidden = subprocess.run(
            [self._program, "obscure", "bench"], capture_output=True, check=True, text=True
        ).stdout.strip()
        config = folder / "rclone.conf"
        config.write_text(f"[c]\ntype = crypt\nremote = {self.folder}\npassword = {hidden}\n")
        self._words = (self._program, "--config", str(config), "--retries", "1", "--low-level-retries", "1")
        self._run("copy", str(self._source), "c:")
        self._before = digest(self._restored())

    def files(self) -> list[str]:
        return [str(each.relative_to(self.folder)) for each in sorted(self.folder.rglob("*")) if each.is_file()]

    def checked(self) -> bool:
        try:
            self._restored()
        except subprocess.CalledProcessError:
            return True
        return False

    def restored(self) -> bool:
        try:
            return digest(self._restored()) == self._before
        except subprocess.CalledProcessError:
            return True

    def _restored(self) -> Path:
        shutil.rmtree(self._target, ignore_errors=True)
        self._run("copy", "c:", str(self._target))
        return self._target

    def _run(self, *words: str) -> None:
        subprocess.run([*self._words, *words], check=True, capture_output=True, timeout=300)


def damage_other(other: Restic | Rclone, runs: int, rng: random.Random) -> dict[str, object]:
    """Return which share of the faults its own check found, and after how many a restore gave back wrong data."""
    done, found, accepted = Counter[str](), Counter[str](), Counter[str]()
    files = other.files()
    for number in range(runs):
        fault = inflict(other.folder, files, KINDS[number % len(KINDS)], rng)
        done[fault.kind] += 1
        found[fault.kind] += other.checked()
        accepted[fault.kind] += not other.restored()
        undo(other.folder, fault)
    say(type(other).__name__, "found", dict(found), "of", dict(done), "wrong data accepted", dict(accepted))
    shares = {kind: round(found[kind] / done[kind], 2) for kind in done}
    return {"found_share": round(found.total() / done.total(), 3), "accepted": accepted.total(), "found": shares}


def fill(folder: Path) -> None:
    """Make some files, as a media store has them, new ones each time."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, size in enumerate((100, 5_000, 70_000, 70_000, 1 << 20, 3 << 20)):
        (folder / f"{number}").write_bytes(os.urandom(size))


def digest(folder: Path) -> list[tuple[str, bytes]]:
    """Return all files below a folder, by their names."""
    return [(each.name, each.read_bytes()) for each in sorted(folder.rglob("*")) if each.is_file()]


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
