"""Feed mutated streams to every reader: `python -m tests.security.streams.fuzz --runs 1000000 [--seed 1]`.

Each run takes a real stream, changes bytes, chunks, header, key or names, and reads it in one of the ways. Anything
but a `StreamError` is a fault: another exception, an end without an error (a forgery that was accepted), or a byte of
plaintext before the error that was not at its place in the original. The last line is JSON.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import io
import json
import random
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from security.streams import (
    CHUNK_SIZE,
    Cipher,
    Context,
    DataKey,
    DecryptingReader,
    SeekableReader,
    StreamError,
    decrypt,
)
from tests.security.streams.samples import ALICE, KEY, parts, plaintext, stream

SMALL = (0, 1, 15, 16, 17, 100, 1000)
LARGE = (CHUNK_SIZE, CHUNK_SIZE + 1, 2 * CHUNK_SIZE + 333)
LARGE_SHARE = 0.05
OTHER = dataclasses.replace(ALICE, organisation="charlie")
OTHER_KEY = DataKey(uuid.UUID(int=2), bytes(range(1, 33)))


@dataclass
class Case:
    """A stream to be changed, what it was made of, and a second stream to take parts from."""

    whole: bytes
    plain: bytes
    donor: bytes
    authentic: list[tuple[bytes, DataKey, Context]]
    key: DataKey = KEY
    context: Context = ALICE


class Fault(AssertionError):
    """A reader did what no input may make it do."""


def flip(rng: random.Random, case: Case) -> None:
    data = bytearray(case.whole)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    case.whole = bytes(data)


def overwrite(rng: random.Random, case: Case) -> None:
    at = rng.randrange(len(case.whole))
    junk = rng.choice((bytes(rng.randrange(1, 64)), rng.randbytes(rng.randrange(1, 64))))
    case.whole = case.whole[:at] + junk + case.whole[at + len(junk) :]


def shorten(rng: random.Random, case: Case) -> None:
    case.whole = case.whole[: rng.randrange(len(case.whole))]


def lengthen(rng: random.Random, case: Case) -> None:
    more = rng.choice((rng.randbytes(rng.randrange(1, 100)), case.whole[128:], case.donor, bytes(16)))
    case.whole += more


def remove(rng: random.Random, case: Case) -> None:
    at = rng.randrange(len(case.whole))
    case.whole = case.whole[:at] + case.whole[at + rng.randrange(1, 200) :]


def repeat(rng: random.Random, case: Case) -> None:
    at, size = rng.randrange(len(case.whole)), rng.randrange(1, 200)
    case.whole = case.whole[: at + size] + case.whole[at:]


def splice(rng: random.Random, case: Case) -> None:
    """The start of one stream and the rest of another, often cut exactly behind the header."""
    at = rng.choice((128, 128, 96, 64, 32, 16, rng.randrange(len(case.whole))))
    case.whole = rng.choice((case.whole[:at] + case.donor[at:], case.donor[:at] + case.whole[at:]))


def field(rng: random.Random, case: Case) -> None:
    """Another value in one field of the header."""
    at, size = rng.choice(((0, 8), (8, 1), (9, 1), (10, 2), (12, 4), (16, 16), (32, 32), (64, 32), (96, 32)))
    value = rng.choice((rng.randbytes(size), bytes(size), b"\xff" * size, rng.randrange(4).to_bytes(size, "big")))
    case.whole = case.whole[:at] + value + case.whole[at + size :]


def shuffle(rng: random.Random, case: Case) -> None:
    """Whole chunks left out, doubled, swapped, or from another stream."""
    header, chunks = parts(case.whole)
    _, foreign = parts(case.donor)
    pool = [*chunks, *chunks, *foreign]
    case.whole = header + b"".join(rng.choice(pool) for _ in range(rng.randrange(0, len(chunks) + 2)))


def names(rng: random.Random, case: Case) -> None:
    which = rng.choice(("organisation", "server", "path", "restore_point"))
    case.context = dataclasses.replace(case.context, **{which: rng.choice(("x", getattr(case.context, which) + "x"))})


def key(rng: random.Random, case: Case) -> None:
    secret = bytearray(KEY.reveal())
    secret[rng.randrange(32)] ^= 1 << rng.randrange(8)
    case.key = rng.choice((OTHER_KEY, DataKey(KEY.id, bytes(secret))))


MUTATIONS: tuple[Callable[[random.Random, Case], None], ...] = (
    flip, overwrite, shorten, lengthen, remove, repeat, splice, field, shuffle, names, key,
)  # fmt: skip


def pieces(rng: random.Random, case: Case) -> Iterator[bytes]:
    """Yield the plaintext by one of the ways of reading."""
    way = rng.randrange(3)
    if way == 0:
        cut = rng.choice((len(case.whole) + 1, rng.randrange(50, 3_000_000)))
        cuts = (case.whole[at : at + cut] for at in range(0, len(case.whole), cut))
        yield from map(bytes, decrypt(cuts, case.key, case.context))
        return
    kind = DecryptingReader if way == 1 else SeekableReader
    reader = kind(io.BytesIO(case.whole), case.key, case.context)
    while piece := reader.read(1 << 20):
        yield piece


class Corpus:
    """Real streams of both ciphers and many sizes, and donors of the same, another key and other names."""

    def __init__(self) -> None:
        self.small, self.large = self._make(SMALL), self._make(LARGE)

    def _make(self, sizes: tuple[int, ...]) -> list[tuple[bytes, list[tuple[bytes, DataKey, Context]]]]:
        made = []
        for cipher in Cipher:
            for size in sizes:
                data = plaintext(size)
                bound = [(KEY, ALICE), (KEY, ALICE), (KEY, OTHER), (OTHER_KEY, ALICE)]
                authentic = [(stream(data, cipher, *each), *each) for each in bound]
                authentic.append((stream(data + b"more", Cipher(3 - cipher)), KEY, ALICE))
                made.append((data, authentic))
        return made

    def case(self, rng: random.Random) -> Case:
        plain, authentic = rng.choice(self.large if rng.random() < LARGE_SHARE else self.small)
        return Case(authentic[0][0], plain, rng.choice(authentic[1:])[0], authentic)


def one(rng: random.Random, corpus: Corpus) -> str:
    """Run one mutated input; return the error's name, or "" when it is (again) a real stream. Raises `Fault`."""
    case = corpus.case(rng)
    applied = [rng.choice(MUTATIONS) for _ in range(rng.choice((1, 1, 1, 2, 3)))]
    for mutate in applied:
        if case.whole:
            mutate(rng, case)
    if (case.whole, case.key, case.context) in case.authentic:
        return ""
    label = [mutate.__name__ for mutate in applied]
    got = bytearray()
    try:
        for piece in pieces(rng, case):
            got += piece
    except StreamError as error:
        if not case.plain.startswith(bytes(got)):
            raise Fault(f"{label}: plaintext that was not there before {error!r}") from error
        return type(error).__name__
    except Exception as error:
        raise Fault(f"{label}: {error!r}") from error
    raise Fault(f"{label}: accepted, {len(got)} bytes")


def run(runs: int, seed: int) -> collections.Counter[str]:
    """Run until `runs` mutated inputs were read; return how often each error came."""
    rng, corpus = random.Random(seed), Corpus()
    seen: collections.Counter[str] = collections.Counter()
    while seen.total() < runs:
        try:
            if name := one(rng, corpus):
                seen[name] += 1
        except Fault as fault:
            raise Fault(f"seed {seed}, input {seen.total()}: {fault}") from fault
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    started = time.monotonic()
    seen = run(options.runs, options.seed)
    figures = {"inputs": seen.total(), "faults": 0, "seconds": round(time.monotonic() - started), "errors": dict(seen)}
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
