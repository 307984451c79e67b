"""How fast and how small encrypted streams are: `make bench BENCH=crypto`.

Both ciphers over 1 GiB on one core, against a bare `encrypt_into` / `decrypt_into` loop of the same library over the
same memory with the same chunks. The contenders take turns every 16 MiB and medians are compared, so that whatever
else runs on the machine hits all of them. Seconds are those of the processor; wall-clock ratios stand beside them.
Around it: `openssl speed`, PyNaCl's secretstream, and over files rclone's crypt and age where they are.
The last line is JSON.
"""

from __future__ import annotations

import io
import itertools
import json
import mmap
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from nacl import bindings

from security.streams import (
    CHUNK_SIZE,
    SEALED_SIZE,
    Cipher,
    Context,
    DataKey,
    DecryptingReader,
    EncryptingWriter,
    decrypt,
    encrypt,
)

GIB = 1 << 30
CHUNKS = GIB // CHUNK_SIZE
TURN = 16  # chunks that one contender works through before the next has its turn
KEY = DataKey.fresh()
CONTEXT = Context(organisation="bench", server="bench", path="bench/1GiB", restore_point="bench")
NAMES = {Cipher.XCHACHA20_POLY1305: "xchacha", Cipher.AES_256_GCM: "aesgcm"}
NACL_SIZE = CHUNK_SIZE + bindings.crypto_secretstream_xchacha20poly1305_ABYTES
BARE: dict[Cipher, type[ChaCha20Poly1305] | type[AESGCM]] = {
    Cipher.XCHACHA20_POLY1305: ChaCha20Poly1305,
    Cipher.AES_256_GCM: AESGCM,
}
Contender = Iterator[object]  # each step works through one chunk


def main() -> None:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    result: dict[str, object] = {**over_files(), **openssl()}
    with mmap.mmap(-1, GIB) as plain:
        for at in range(0, GIB, CHUNK_SIZE):
            plain[at : at + CHUNK_SIZE] = os.urandom(CHUNK_SIZE)
        for cipher in NAMES:
            result.update(compare(cipher, memoryview(plain)))
    for key, kind in (("xchacha_over_pynacl", ""), ("xchacha_bare_over_pynacl", "_bare")):
        # The second is the ceiling of the first: what the library's own loop reaches.
        result[key] = min(
            round(number(result[f"xchacha_{way}{kind}_gb_s"]) / number(result[f"pynacl_{way}_gb_s"]), 2)
            for way in ("encrypt", "decrypt")
        )
    say(json.dumps(result))


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def number(value: object) -> float:
    assert isinstance(value, float)
    return value


# In memory


def compare(cipher: Cipher, plain: memoryview) -> dict[str, object]:
    """Return speeds and ratios of one cipher, both ways; with the first cipher also PyNaCl's."""
    name, found = NAMES[cipher], dict[str, object]()
    for way, make in (("encrypt", encryptors), ("decrypt", decryptors)):
        runs = take_turns(make(cipher, plain))
        bare, ours = runs["bare"], runs["ours"]
        found[f"{name}_{way}_over_bare"] = round(bare[0] / ours[0], 3)
        found[f"{name}_{way}_over_bare_wall"] = round(bare[1] / ours[1], 3)
        for other, (seconds, _) in runs.items():
            label = {"bare": f"{name}_{way}_bare", "ours": f"{name}_{way}"}.get(other, f"{other}_{way}")
            found[f"{label}_gb_s"] = round(TURN * CHUNK_SIZE / seconds / 1e9, 3)
        say(name, way, {key: value for key, value in found.items() if way in key})
    found[f"{name}_over_bare"] = min(number(found[f"{name}_{way}_over_bare"]) for way in ("encrypt", "decrypt"))
    return found


def take_turns(contenders: dict[str, Contender]) -> dict[str, tuple[float, float]]:
    """Return for each contender the median seconds of a turn, by the processor and by the wall."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for turn in range(CHUNKS // TURN):
        for name in list(contenders) if turn % 2 else list(reversed(contenders)):
            cpu, wall = time.thread_time(), time.perf_counter()
            steps = sum(1 for _ in itertools.islice(contenders[name], TURN))
            times[name].append((time.thread_time() - cpu, time.perf_counter() - wall))
            assert steps == TURN
    return {
        name: (statistics.median(cpu for cpu, _ in runs), statistics.median(wall for _, wall in runs))
        for name, runs in times.items()
    }


def slices(area: memoryview, size: int) -> Iterator[memoryview]:
    return (area[at : at + size] for at in range(0, CHUNKS * size, size))


def encryptors(cipher: Cipher, plain: memoryview) -> dict[str, Contender]:
    ours = encrypt(slices(plain, CHUNK_SIZE), KEY, CONTEXT, cipher)
    next(ours)  # the header and the key's derivation: once for each stream
    found: dict[str, Contender] = {"bare": bare(cipher, plain), "ours": ours}
    if cipher is Cipher.XCHACHA20_POLY1305:
        found["pynacl"] = nacl_push(nacl_start()[0], slices(plain, CHUNK_SIZE))
        ready = bytes(plain[:CHUNK_SIZE])
        found["pynacl_ready"] = nacl_push(nacl_start()[0], itertools.repeat(ready, CHUNKS))
    return found


def decryptors(cipher: Cipher, plain: memoryview) -> dict[str, Contender]:
    """What they decrypt is made before the clock runs."""
    pieces = encrypt(slices(plain, CHUNK_SIZE), KEY, CONTEXT, cipher)
    header = bytes(next(pieces))
    own = keep(pieces, SEALED_SIZE)
    found: dict[str, Contender] = {
        "bare": bare_back(cipher, keep(bare(cipher, plain), SEALED_SIZE)),
        "ours": decrypt(itertools.chain([header], slices(own, SEALED_SIZE)), KEY, CONTEXT),
    }
    if cipher is Cipher.XCHACHA20_POLY1305:
        state, start = nacl_start()
        boxes = keep(nacl_push(state, slices(plain, CHUNK_SIZE)), NACL_SIZE)
        found["pynacl"] = nacl_pull(start, slices(boxes, NACL_SIZE))
    return found


def keep(pieces: Iterable[memoryview | bytes], size: int) -> memoryview:
    """Return memory that holds the pieces, each of `size` bytes."""
    area = memoryview(mmap.mmap(-1, CHUNKS * size))
    for target, piece in zip(slices(area, size), pieces, strict=False):
        target[:] = piece
    return area


def bare(cipher: Cipher, plain: memoryview) -> Iterator[memoryview]:
    """The floor: the library's call in a loop, with nothing but a counter for a nonce and nothing associated."""
    aead, buffer = BARE[cipher](bytes(32)), memoryview(bytearray(SEALED_SIZE))
    for index, piece in enumerate(slices(plain, CHUNK_SIZE)):
        aead.encrypt_into(index.to_bytes(12, "big"), piece, None, buffer)
        yield buffer


def bare_back(cipher: Cipher, area: memoryview) -> Iterator[memoryview]:
    aead, buffer = BARE[cipher](bytes(32)), memoryview(bytearray(CHUNK_SIZE))
    for index, piece in enumerate(slices(area, SEALED_SIZE)):
        aead.decrypt_into(index.to_bytes(12, "big"), piece, None, buffer)
        yield buffer


def nacl_start() -> tuple[Any, bytes]:
    state = bindings.crypto_secretstream_xchacha20poly1305_state()
    return state, bindings.crypto_secretstream_xchacha20poly1305_init_push(state, bytes(32))


def nacl_push(state: Any, pieces: Iterable[memoryview | bytes]) -> Iterator[bytes]:
    """PyNaCl takes nothing but `bytes`: from any other memory a copy is part of using it (`pynacl_ready` has none)."""
    for piece in pieces:
        yield bindings.crypto_secretstream_xchacha20poly1305_push(state, bytes(piece))


def nacl_pull(start: bytes, boxes: Iterable[memoryview]) -> Iterator[bytes]:
    state = bindings.crypto_secretstream_xchacha20poly1305_state()
    bindings.crypto_secretstream_xchacha20poly1305_init_pull(state, start, bytes(32))
    for box in boxes:
        yield bindings.crypto_secretstream_xchacha20poly1305_pull(state, bytes(box))[0]


# Beside it


def openssl() -> dict[str, object]:
    """Print and return what `openssl speed` says at the same chunk size, with the system's OpenSSL."""
    found: dict[str, object] = {}
    for name, cipher in (("xchacha", "chacha20-poly1305"), ("aesgcm", "aes-256-gcm")):
        words = ["openssl", "speed", "-seconds", "2", "-bytes", str(CHUNK_SIZE), "-evp", cipher]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        line = done.stdout.strip().splitlines()[-1]
        say("openssl speed, KB/s:", line)
        found[f"openssl_{name}_gb_s"] = round(float(re.findall(r"([\d.]+)k$", line)[0]) / 1e6, 3)
    return found


PEAK = """
import sys
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:"))
before = peak()
from pathlib import Path
from security.streams import Cipher, Context, DataKey, decrypt_to_path, encrypt_to_path
plain, sealed, back = map(Path, sys.argv[1:])
key, context = DataKey.fresh(), Context(organisation="bench", path="bench")
for cipher in Cipher:
    with plain.open("rb", buffering=0) as file:
        encrypt_to_path(file, sealed, key, context, cipher)
    with sealed.open("rb", buffering=0) as file:
        assert decrypt_to_path(file, back, key, context) == plain.stat().st_size
print((peak() - before) / 1024)
"""


def over_files() -> dict[str, object]:
    """Return the peak memory of both ciphers over a file of 1 GiB, and the seconds of whole programs over it."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if shutil.disk_usage("/dev/shm").free > 4 * GIB else None) as name:
        folder = Path(name)
        plain, sealed, back = folder / "plain", folder / "sealed", folder / "back"
        with plain.open("wb") as file:
            for _ in range(CHUNKS):
                file.write(os.urandom(CHUNK_SIZE))
        words = [sys.executable, "-c", PEAK, str(plain), str(sealed), str(back)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        assert back.stat().st_size == GIB
        found: dict[str, object] = {"peak_mb": round(float(done.stdout), 1)}
        found.update(programs(plain, sealed, back))
    return found


def programs(plain: Path, sealed: Path, back: Path) -> dict[str, object]:
    """Return GB/s (of processor time) of whole programs from file to file: Hearth's, rclone's crypt, age."""
    mine = [sys.executable, "-m", "tests.bench.crypto"]
    commands = {
        f"files_{NAMES[cipher]}": ([*mine, "encrypt", cipher.name], [*mine, "decrypt", cipher.name])
        for cipher in Cipher
    }
    environment = dict(os.environ)
    if rclone := shutil.which("rclone", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"):
        secret = subprocess.run([rclone, "obscure", "bench"], capture_output=True, text=True, check=True).stdout.strip()
        crypt = f":crypt,remote={sealed.parent / 'crypt'},password={secret}:file"
        common = [rclone, "--config", "/dev/null", "-q"]
        commands["files_rclone"] = ([*common, "rcat", crypt], [*common, "cat", crypt])
        environment["GOMAXPROCS"] = "1"
    if (age := shutil.which("age")) and (keygen := shutil.which("age-keygen")):
        identity = sealed.parent / "identity"
        subprocess.run([keygen, "-o", identity], capture_output=True, check=True)
        public = subprocess.run([keygen, "-y", identity], capture_output=True, text=True, check=True).stdout.strip()
        commands["files_age"] = ([age, "-r", public], [age, "-d", "-i", str(identity)])
    found: dict[str, object] = {}
    for name, (there, and_back) in commands.items():
        for way, words, source, target in (("encrypt", there, plain, sealed), ("decrypt", and_back, sealed, back)):
            found[f"{name}_{way}_gb_s"] = round(GIB / timed(words, source, target, environment) / 1e9, 3)
        say(name, {key: value for key, value in found.items() if key.startswith(name)})
    return found


def timed(words: list[str], source: Path, target: Path, environment: dict[str, str]) -> float:
    """Return the processor's seconds of a program from `source` to `target`."""
    with source.open("rb") as given, target.open("wb") as taken:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(words, stdin=given, stdout=taken, env=environment, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def program(way: str, cipher: str) -> None:
    """Be the program that `programs` runs: from standard input to standard output."""
    key = DataKey(uuid.UUID(int=0), bytes(32))
    source, sink = io.FileIO(0, closefd=False), io.FileIO(1, "wb", closefd=False)
    if way == "encrypt":
        with EncryptingWriter(sink, key, CONTEXT, Cipher[cipher]) as writer:
            shutil.copyfileobj(source, writer, CHUNK_SIZE)
    else:
        shutil.copyfileobj(DecryptingReader(source, key, CONTEXT), sink, CHUNK_SIZE)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        program(*sys.argv[1:])
    else:
        main()
