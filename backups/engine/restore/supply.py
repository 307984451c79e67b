"""WAL for a recovery, put together and fetched ahead of it, in whatever order PostgreSQL asks. Imports no Django.

PostgreSQL runs `get` for each file that it wants. That says the name into the pipe `asked`; the file then appears in
`ready`, if it is one of those named in `wanted`, and is moved to where PostgreSQL wants it. Asked again, it is fetched
again. Nothing else of the folder is for others to write.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from backups.engine.contents import ContentError, Unpacked, check_pages
from backups.engine.coverage import Piece
from backups.engine.database import lsn
from backups.engine.names import SEGMENT_SIZE
from backups.engine.objects import Vault
from backups.engine.restore.disk import create, write_all
from backups.engine.restore.plan import Plan
from backups.engine.restore.telling import Telling
from backups.engine.stores.base import StoreError
from security.streams import DataKey, StreamError

READERS = 3
AHEAD = 12
"""Segments that wait on the disk, or are on their way, before PostgreSQL asks for them: 192 MiB."""
_READ = 1 << 20
_GET = """\
# Gives PostgreSQL one file of its write-ahead log ($1) under the name $2; for restore_command.
cd "${0%/*}" || exit 255
[ -e "wanted/$1" ] || exit 1
if ! mv -f "ready/$1" "$OLDPWD/$2" 2>/dev/null; then
  echo "want $1" 1<>asked
  until mv -f "ready/$1" "$OLDPWD/$2" 2>/dev/null; do
    kill -0 "$PPID" 2>/dev/null || exit 255
    [ -e failed ] && exit 255
    sleep 0.02
  done
fi
echo "took $1" 1<>asked
"""


class WalDamaged(Exception):
    """An object with WAL is not right."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(why)
        self.name = name


class Supply:
    """Fetches the WAL of a plan into `folder`. Use it as a context manager, around the PostgreSQL that asks."""

    def __init__(
        self,
        plan: Plan,
        vault: Vault,
        opens: Callable[..., DataKey],
        folder: Path,
        *,
        owner: tuple[int, int] | None,
        telling: Telling,
    ) -> None:
        self._plan = plan
        self._vault = vault
        self._opens = opens
        self._folder = folder
        self._owner = owner
        self._telling = telling
        self._segments = _segments(plan.need.wal)
        self._order = {name: number for number, name in enumerate(self._segments)}
        timelines = {piece.timeline for piece in plan.need.wal}
        self._histories = {
            name.rsplit("/", 1)[1].removesuffix(".history").upper() + ".history": name
            for name in plan.need.histories
            if int(name.rsplit("/", 1)[1].removesuffix(".history"), 16) <= max(timelines, default=0)
        }
        self._futures: dict[str, Future[None]] = {}
        self._end = threading.Event()
        self._fetched = set[str]()
        self._taken = set[str]()
        self.failure: BaseException | None = None
        """Why there is no more: PostgreSQL then ends."""
        self.asked = ""
        """The segment that PostgreSQL asked for last."""
        self._moved = time.monotonic()

    @property
    def command(self) -> str:
        """PostgreSQL's `restore_command`."""
        return f"exec /bin/sh {self._folder / 'get'} %f %p"

    @property
    def silent(self) -> float:
        """Seconds since anything was asked for or fetched."""
        return time.monotonic() - self._moved

    def __enter__(self) -> Supply:
        self._folder.mkdir(mode=0o755)
        self._folder.chmod(0o755)
        (self._folder / "get").write_text(_GET)
        (self._folder / "get").chmod(0o644)
        for name, mode in (("ready", 0o700), ("wanted", 0o755), ("passing", 0o700)):
            (self._folder / name).mkdir(mode=mode)
            (self._folder / name).chmod(mode)
        for name in (*self._segments, *self._histories):
            (self._folder / "wanted" / name).touch(mode=0o644)
        pipe = self._folder / "asked"
        os.mkfifo(pipe, 0o600)
        if self._owner is not None:
            os.chown(self._folder / "ready", *self._owner)
            os.chown(pipe, *self._owner)
        self._pipe = os.open(pipe, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._pool = ThreadPoolExecutor(READERS, "restore-wal")
        self._thread = threading.Thread(target=self._serve, name="restore-asked", daemon=True)
        self._want(0)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self._pool.shutdown(cancel_futures=True)
        os.close(self._pipe)

    def _serve(self) -> None:
        rest = b""
        while not self._end.is_set():
            if not select.select([self._pipe], [], [], 0.2)[0]:
                continue
            *lines, rest = (rest + os.read(self._pipe, 4096)).split(b"\n")
            for each in lines:
                self._moved = time.monotonic()
                said, _, name = each.decode("ascii", "replace").partition(" ")
                if said == "took":
                    self._took(name)
                elif said == "want":
                    self._wanted(name)

    def _took(self, name: str) -> None:
        self._taken.add(name)
        if name in self._order:
            self.asked = name
            self._want(self._order[name] + 1)

    def _wanted(self, name: str) -> None:
        if name in self._taken:  # by an earlier PostgreSQL of ours, or it looks at it again
            self._taken.discard(name)
            self._futures.pop(name, None)
        if name in self._order:
            self._want(self._order[name])
        elif name in self._histories and name not in self._futures:
            self._futures[name] = self._pool.submit(self._guarded, self._history, name)

    def _want(self, begin: int) -> None:
        for name in list(self._segments)[begin : begin + AHEAD]:
            if name not in self._futures:
                self._futures[name] = self._pool.submit(self._guarded, self._segment, name)

    def _guarded(self, work: Callable[[str], None], name: str) -> None:
        if self._end.is_set() or self.failure is not None:
            return
        try:
            work(name)
        except BaseException as error:
            self.failure = self.failure or error
            (self._folder / "failed").touch()
            raise
        self._moved = time.monotonic()

    def _segment(self, name: str) -> None:
        passing = self._folder / "passing" / os.urandom(8).hex()
        handle = create(passing, 0o600, self._owner)
        try:
            for piece in self._segments[name]:
                self._piece(handle, piece)
            os.ftruncate(handle, SEGMENT_SIZE)
        finally:
            os.close(handle)
        passing.replace(self._folder / "ready" / name)

    def _piece(self, handle: int, piece: Piece) -> None:
        """Write one object's bytes to their place in the segment, checked page by page."""
        try:
            data = b"".join(_plain(self._read(piece.name)))
            check_pages(data, piece, self._plan.need.point.system)
        except (StreamError, ContentError) as error:
            raise WalDamaged(piece.name, str(error)) from None
        os.lseek(handle, piece.begin % SEGMENT_SIZE, os.SEEK_SET)
        write_all(handle, data)
        if piece.name not in self._fetched:
            self._fetched.add(piece.name)
            self._telling.add("wal", self._plan.catalogue.objects[piece.name].size)

    def _history(self, name: str) -> None:
        source = self._histories[name]
        try:
            text = b"".join(map(bytes, self._read(source)))
            lsn.switches(text.decode())
        except (StreamError, ValueError) as error:
            raise WalDamaged(source, str(error)) from None
        passing = self._folder / "passing" / os.urandom(8).hex()
        handle = create(passing, 0o600, self._owner)
        try:
            write_all(handle, text)
        finally:
            os.close(handle)
        passing.replace(self._folder / "ready" / name)

    def _read(self, name: str) -> Iterator[memoryview]:
        try:
            if (ref := self._plan.known.get(name)) is not None:
                yield from self._vault.read(ref, self._opens)
            else:  # no moment names it yet: what it is, its encryption says
                yield from self._vault.get(name, self._opens, self._plan.need.point.line)
        except StoreError as error:
            if error.code in {"StoreDamaged", "NoSuchObject"}:
                raise WalDamaged(name, str(error)) from None
            raise


def _segments(wal: Iterable[Piece]) -> dict[str, list[Piece]]:
    """Return which objects each file is put together from.

    Where a timeline begins within a segment, its file has the bytes of the timelines before it too.
    """
    numbers: dict[int, list[Piece]] = {}
    for piece in wal:
        numbers.setdefault(lsn.begin_of(piece.begin), []).append(piece)
    return {
        lsn.name(timeline, begin): [each for each in some if each.timeline <= timeline]
        for begin, some in numbers.items()
        for timeline in sorted({each.timeline for each in some})
    }


def _plain(pieces: Iterator[memoryview]) -> Iterator[bytes]:
    stream = Unpacked(pieces)
    while piece := stream.read(_READ):
        yield piece
