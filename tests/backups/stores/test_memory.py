"""Memory is bounded, whatever is sent and read at the same time."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from backups.engine.stores.memory import MIB, Memory
from backups.engine.stores.uploads import MOST, STEPS, part_size
from tests.backups.s3_servers import S3Server

FOUR = """
import os, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from backups.engine.stores.connection import Bucket, Credentials
from backups.engine.stores.s3 import S3Store
_, bucket, endpoint, prefix = sys.argv
known = Credentials(os.environ["KEY"], os.environ["SECRET"])
store = S3Store("far", Bucket(bucket, endpoint, prefix=prefix, credentials=known))
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
piece = os.urandom(1 << 20)
def put(name):
    store.put(name, (piece for _ in range(64)))
def get(name):
    for index, _ in enumerate(store.get(name)):
        time.sleep(0.002)  # read ahead as far as it goes
with ThreadPoolExecutor(4) as pool:
    store.put("first", [b"x"])
    list(pool.map(lambda _: list(store.get("first")), range(4)))
    before = peak()
    for do in (put, get):
        list(pool.map(do, [f"large/{each}" for each in range(4)]))
print(peak() - before)
"""


@pytest.mark.xdist_group("s3")
def test_four_streams_take_64_mb(minio: S3Server) -> None:
    where = minio.new_prefix()
    assert where.credentials
    known = {"KEY": where.credentials.key_id, "SECRET": where.credentials.secret, "PYTHONPATH": "platform:."}
    argv = [sys.executable, "-c", FOUR, where.bucket, where.endpoint, where.prefix]
    done = subprocess.run(argv, env=os.environ | known, capture_output=True, text=True, check=True)
    assert 8 < float(done.stdout) <= 64


def test_reading_ahead_never_takes_all() -> None:
    memory = Memory(48 * MIB)
    ahead = [buffer for _ in range(10) if (buffer := memory.try_take_ahead(8 * MIB))]
    assert len(ahead) == 3
    sending = [memory.take(8 * MIB) for _ in range(3)]
    assert memory.used == 48 * MIB
    memory.give_ahead(ahead.pop())
    memory.give(sending.pop())
    assert memory.used == 32 * MIB
    assert memory.try_take_ahead(8 * MIB) is not None


def test_a_part_larger_than_all_comes_alone() -> None:
    memory = Memory(48 * MIB)
    ahead = [memory.try_take_ahead(8 * MIB) for _ in range(3)]
    assert all(ahead)
    large = memory.take(64 * MIB)
    taken: list[object] = []
    waiting = threading.Thread(target=lambda: taken.append(memory.take(8 * MIB)))
    waiting.start()
    waiting.join(0.2)
    assert taken == []
    memory.give(large)
    waiting.join(60)
    assert len(taken) == 1


def test_parts_grow_with_their_number() -> None:
    sizes = [part_size(number) for number in range(1, STEPS[-1][0] + 1)]
    assert sizes == sorted(sizes)
    assert sizes[0] == 8 * MIB
    assert sum(sizes) == MOST
    with pytest.raises(Exception, match="larger than a store takes"):
        part_size(10_001)
