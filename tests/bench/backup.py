"""A full backup, an unchanged one and a restore, beside restic, rclone's crypt and pgBackRest.

pgbench at scale 100, 1 GiB of random media in files of 4 MiB and 2,000 small ones, one MinIO with TLS, PostgreSQL 15.
In each round all take turns; the figures are medians of the rounds, ratios those of one round's seconds. A restore is
over when a PostgreSQL on it takes connections, and all of it is on the disk (each ends with syncfs). `best` is the
fastest of them for the database and the fastest for the media together, though no single one of them is that.

    make bench BENCH=backup

The last line is JSON. SCALE=0.1 takes a tenth of the data, ROUNDS other than 3.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

from tests.backups.contest.ground import COUNT, Fifteen, Ground, Missing
from tests.backups.contest.ours import Hearth
from tests.backups.contest.rivals import PGBACKREST, RIVALS, Rival, base_backup
from tests.cluster import tools
from tests.prepare import install

PARTS = ("database", "media")
WITHOUT = "pgBackRest is not there, so nothing was measured."
Figures = dict[str, list[float]]


def main() -> int:
    scale, rounds = float(os.environ.get("SCALE", "1")), int(os.environ.get("ROUNDS", "3"))
    folder = Path(tempfile.mkdtemp(prefix="hb-", dir="/tmp"))
    folder.chmod(0o755)
    ground = Ground(folder, scale)
    try:
        tools.ensure(["minio", "restic"], say=say)
        if not PGBACKREST.exists() and (fault := install("pgbackrest", WITHOUT, PGBACKREST.exists)):
            raise Missing(fault)
        ground.make()
        found: Figures = defaultdict(list)
        for number in range(rounds):
            _round(ground, number, found)
        for name, told in ((Hearth.name, Hearth.settings_told), *((each.name, each.settings_told) for each in RIVALS)):
            say(f"{name}: {told}")
        say(json.dumps({**result(found), "scale": scale, "rounds": rounds, "load": round(os.getloadavg()[2], 1)}))
    except Missing as missing:
        say(missing)
        return 2
    finally:
        ground.close()
        shutil.rmtree(folder)
    return 0


def result(found: Figures) -> dict[str, float]:
    """Return the figures of all rounds, and how they compare."""
    mid = {name: median(values) for name, values in sorted(found.items())}
    best = {verb: _best(found, verb) for verb in ("backup", "restore")}
    over = {
        verb: median(theirs / ours for theirs, ours in zip(best[verb], found[f"hearth_{verb}"], strict=True))
        for verb in best
    }
    figures = {
        "backup_over_best": over["backup"],
        "restore_over_best": over["restore"],
        "unchanged_s": mid["hearth_moment"],
        "peak_mb": max(*found["hearth_backup_mb"], *found["hearth_restore_mb"]),
        "unchanged_point_s": mid["hearth_point"] - mid["basebackup"],
        **{f"best_{verb}_s": median(values) for verb, values in best.items()},
        **{name if name.endswith("_mb") else f"{name}_s": value for name, value in mid.items()},
    }
    return {name: round(value, 2) for name, value in figures.items()}


def _best(found: Figures, verb: str) -> list[float]:
    """Return, for each round, the seconds of the fastest for the database and of the fastest for the media together."""
    parts = [
        [found[f"{each.name}_{verb}_{part}"] for each in RIVALS if part in each.parts] for part in PARTS
    ]  # by part, contestant and round
    rounds = range(len(found[f"hearth_{verb}"]))
    return [sum(min(seconds[number] for seconds in part) for part in parts) for number in rounds]


def _round(ground: Ground, number: int, found: Figures) -> None:
    """Have everybody back up and restore once; who begins is another one in each round."""
    bucket, before = ground.minio.bucket(f"round-{number}"), ground.count()
    turns: list[Callable[[], None]] = [
        partial(_ours, ground, f"{bucket}/hearth-{number}", before, found),
        *(partial(_theirs, each, ground, f"{bucket}/{each.name}-{number}", before, found) for each in RIVALS),
    ]
    at = number % len(turns)
    for turn in turns[at:] + turns[:at]:
        turn()
    found["basebackup"].append(_alone(ground))
    shutil.rmtree(ground.folder / "minio" / "data" / bucket)


def _alone(ground: Ground) -> float:
    """Return the seconds that the database needs to give itself away, to nobody."""
    began = time.monotonic()
    subprocess.run(["/bin/sh", "-c", f"{base_backup(ground)} >/dev/null"], check=True)
    return time.monotonic() - began


def _ours(ground: Ground, place: str, before: str, found: Figures) -> None:
    hearth = Hearth(ground, place)
    try:
        _keep(found, "hearth_backup", hearth.backup())
        for name, seconds in hearth.unchanged().items():
            found[f"hearth_{name}"].append(seconds)
        found["hearth_rest_mb"].append(hearth.at_rest_mb())
        target = ground.folder / "target"
        target.mkdir(mode=0o755)
        parts = hearth.restore(target)
        starting = _started(ground, target / "data", before)
        _same(ground.media, target / "media")
        shutil.rmtree(target)
        _keep(found, "hearth_restore", {**parts, "all": parts["all"] + starting, "start": starting})
        for verb, value in hearth.peak_mb.items():
            found[f"hearth_{verb}_mb"].append(value)
    finally:
        hearth.end()


def _theirs(kind: type[Rival], ground: Ground, place: str, before: str, found: Figures) -> None:
    rival, name = kind(ground, place), kind.name
    try:
        rival.begin()
        for part in rival.parts:
            found[f"{name}_backup_{part}"].append(rival.backup(part))
            found[f"{name}_unchanged_{part}"].append(rival.unchanged(part))
        for part in rival.parts:
            target = ground.folder / "target"
            seconds = rival.restore(part, target)
            if part == "database":
                seconds += _started(ground, target, before)
            else:
                _same(ground.media, target if (target / "local_content").exists() else next(target.rglob("media")))
            found[f"{name}_restore_{part}"].append(seconds)
            shutil.rmtree(target)
        found[f"{name}_mb"].append(rival.peak_mb)
        say(f"{name}: " + ", ".join(f"{key} {values[-1]:.1f}" for key, values in found.items() if key.startswith(name)))
    finally:
        rival.end()
        shutil.rmtree(rival.folder)


def _keep(found: Figures, name: str, seconds: dict[str, float]) -> None:
    for part, value in seconds.items():
        found[name if part == "all" else f"{name}_{part}"].append(value)
    say(f"{name}: " + ", ".join(f"{part} {value:.1f}" for part, value in seconds.items()))


def _started(ground: Ground, data: Path, before: str) -> float:
    """Start a PostgreSQL on what was restored, compare what it holds, and return how long the start took."""
    cluster = Fifteen(ground.folder / "s")
    cluster.data = data
    try:
        began = time.monotonic()
        cluster.start()
        seconds = time.monotonic() - began
        found = cluster.value(COUNT)
    finally:
        cluster.stop()
        shutil.rmtree(cluster.folder)
    if found != before:
        raise RuntimeError(f"The database came back with {found}, and it had {before}.")
    return seconds


def _same(one: Path, other: Path) -> None:
    subprocess.run(["diff", "-rq", str(one), str(other)], check=True)


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
