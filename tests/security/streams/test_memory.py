"""A stream's length costs no memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from security.streams import Cipher

ROOT = Path(__file__).resolve().parents[3]
MEASURE = """
import sys
from security.streams import Cipher, Context, DataKey, decrypt, encrypt

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:"))

key, context = DataKey.fresh(), Context(organisation="o", path="p")
piece = bytes(1 << 20)

def through(chunks):
    pieces = encrypt((piece for _ in range(chunks)), key, context, Cipher[sys.argv[1]])
    assert sum(len(each) for each in decrypt(pieces, key, context)) == chunks << 20

through(4)
before = peak()
through(256)
print(peak() - before, peak())
"""


@pytest.mark.parametrize("cipher", Cipher)
def test_constant_memory(cipher: Cipher) -> None:
    words = [sys.executable, "-c", MEASURE, cipher.name]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT, env={"PYTHONPATH": "platform"})
    more, peak = map(int, done.stdout.split())
    assert more <= 1024  # KiB, after 256 MiB instead of 4
    assert peak <= 64 * 1024
