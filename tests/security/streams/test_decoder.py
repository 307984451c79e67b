"""docs/backup-format.md is enough to read a stream: a decoder in another language does, and its example is true."""

from __future__ import annotations

import dataclasses
import hmac
import re
import subprocess
import uuid
from pathlib import Path

import pytest

from security.streams import HEADER_SIZE, SEALED_SIZE, Cipher, Context, DataKey, encrypt
from security.streams.header import Schedule
from security.xchacha import hchacha20
from tests.security.streams.samples import ALICE, BOTH, KEY, SIZES, by_iterator, plaintext, stream

ROOT = Path(__file__).resolve().parents[3]
DECODER = ROOT / "backups" / "engine" / "restore" / "decoder" / "decode.mjs"
PAGE = (ROOT / "docs" / "backup-format.md").read_text(encoding="utf-8")
EXAMPLES = {Cipher.XCHACHA20_POLY1305: "xchacha20-poly1305", Cipher.AES_256_GCM: "aes-256-gcm"}
HELLO = b"Hello, Hearth!\n"
HELLO_KEY = DataKey(uuid.UUID("00112233-4455-6677-8899-aabbccddeeff"), bytes(range(32)))
HELLO_CONTEXT = Context(organisation="alice", server="home", path="media/hello.txt", restore_point="rp-1")


def decode(whole: bytes, key: DataKey = KEY, context: Context = ALICE) -> subprocess.CompletedProcess[bytes]:
    names = [f"--{name.replace('_', '-')}={value}" for name, value in dataclasses.asdict(context).items()]
    words = ["node", str(DECODER), f"--key={key.reveal().hex()}", *names]
    return subprocess.run(words, input=whole, capture_output=True, check=False, timeout=60)


@pytest.mark.parametrize("cipher", BOTH)
@pytest.mark.parametrize("size", SIZES)
def test_the_other_decoder_reads_streams(size: int, cipher: Cipher) -> None:
    data = plaintext(size)
    done = decode(stream(data, cipher))
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == data


@pytest.mark.parametrize("cipher", BOTH)
def test_the_other_decoder_refuses_the_same(cipher: Cipher) -> None:
    whole = stream(plaintext(SEALED_SIZE), cipher)
    context = dataclasses.replace(ALICE, organisation="charlie")
    refusals = {
        b"truncated": [decode(b""), decode(whole[: HEADER_SIZE + SEALED_SIZE])],
        b"corrupted": [decode(whole[:-1]), decode(whole + b"\0"), decode(whole[:300] + b"?" + whole[301:])],
        b"wrong key": [decode(whole, key=DataKey.fresh())],
        b"wrong context": [decode(whole, context=context)],
        b"unknown format": [decode(b"?" + whole[1:])],
    }
    for word, all_done in refusals.items():
        for done in all_done:
            assert (done.returncode, done.stdout) == (1, b"")
            assert done.stderr.startswith(word)


def example(cipher: Cipher) -> bytes:
    """Return the stream printed on the page."""
    found = re.search(rf"```stream {EXAMPLES[cipher]}\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    return bytes.fromhex(found[1])


@pytest.mark.parametrize("cipher", BOTH)
def test_the_worked_example(cipher: Cipher, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = example(cipher)
    assert by_iterator(whole, HELLO_KEY, HELLO_CONTEXT) == HELLO
    done = decode(whole, HELLO_KEY, HELLO_CONTEXT)
    assert (done.returncode, done.stdout) == (0, HELLO)
    monkeypatch.setattr("os.urandom", lambda size: bytes(range(0x40, 0x40 + size)))
    assert b"".join(bytes(piece) for piece in encrypt([HELLO], HELLO_KEY, HELLO_CONTEXT, cipher)) == whole


@pytest.mark.parametrize("cipher", BOTH)
def test_the_examples_steps(cipher: Cipher) -> None:
    """Every hexadecimal number between the key and the stream is what the code gives."""
    whole = example(cipher)
    assert whole[32:64].hex() in PAGE
    assert HELLO.hex() in PAGE
    assert HELLO_CONTEXT.encode().hex() in PAGE
    assert hmac.digest(whole[32:64], HELLO_KEY.reveal(), "sha256").hex() in PAGE
    derived = Schedule(HELLO_KEY, whole[32:64], whole[:32])._derived
    for at in range(0, 128, 32):
        assert f"okm[{at}:{at + 32}]".ljust(16) + derived[at : at + 32].hex() in PAGE
    place = "0000000001"
    if cipher is Cipher.AES_256_GCM:
        assert f"nonce (12)      {derived[96:103].hex()}{place}" in PAGE
    else:
        assert f"subkey          {hchacha20(derived[64:96], derived[96:112]).hex()}" in PAGE
        assert f"nonce (24)      {derived[96:115].hex()}{place}" in PAGE
        assert f"nonce (12)      00000000{derived[112:115].hex()}{place}" in PAGE
