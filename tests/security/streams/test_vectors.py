"""Published vectors through the code that streams are made of."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from nacl import bindings

from security.streams import Cipher, DataKey, Header, Opener
from security.streams.ciphers import start
from security.streams.header import Schedule
from security.xchacha import hchacha20
from tests.security.streams.samples import ALICE, KEY, plaintext, stream

h = bytes.fromhex


def test_hchacha20() -> None:
    """draft-irtf-cfrg-xchacha-03, section 2.2.1."""
    key = bytes(range(32))
    assert hchacha20(key, h("000000090000004a0000000031415927")) == h(
        "82413b4227b27bfed30e42508a877d73a0f9e4d58a74a853c12ec41326d3ecdc"
    )


@pytest.mark.parametrize("seed", range(50))
def test_hchacha20_is_libsodiums(seed: int) -> None:
    """The first state has words that overflow when they are taken off again: random ones find a wrong carry."""
    data = plaintext(48 + seed)
    key, nonce = data[:32], data[32:48]
    whole = bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(b"text", b"ad", nonce + bytes(8), key)
    aead, tail = start(Cipher.XCHACHA20_POLY1305, key, nonce + bytes(3))
    sealed = bytearray(20)
    aead.encrypt_into(tail + bytes(5), b"text", b"ad", sealed)
    assert sealed == whole


XCHACHA = (
    Cipher.XCHACHA20_POLY1305,
    "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f",
    "404142434445464748494a4b4c4d4e4f5051525354555657",
    (
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, "
        b"sunscreen would be it."
    ).hex(),
    "50515253c0c1c2c3c4c5c6c7",
    (
        "bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb731c7f1b0b4aa6440bf3a82f4eda7e39ae64c670"
        "8c54c216cb96b72e1213b4522f8c9ba40db5d945b11b69b982c1bb9e3f3fac2bc369488f76b2383565d3fff921f9664c97637da9"
        "768812f615c68b13b52e"
        "c0875924c1c7987947deafd8780acf49"
    ),
)  # draft-irtf-cfrg-xchacha-03, appendix A.3.1
GCM_KEY = "feffe9928665731c6d6a8f9467308308" * 2
GCM_TEXT = (
    "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
    "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
)
GCM_SEALED = (
    "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
    "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662"
)
GCM = [  # "The Galois/Counter Mode of Operation", submitted to NIST, appendix B: test cases 13 to 16 (AES-256)
    (Cipher.AES_256_GCM, "00" * 32, "00" * 12, "", "", "530f8afbc74536b9a963b4f1c4cb738b"),
    (
        Cipher.AES_256_GCM,
        "00" * 32,
        "00" * 12,
        "00" * 16,
        "",
        "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919",
    ),
    (
        Cipher.AES_256_GCM,
        GCM_KEY,
        "cafebabefacedbaddecaf888",
        GCM_TEXT + "1aafd255",
        "",
        GCM_SEALED + "898015ad" + "b094dac5d93471bdec1a502270e3cc6c",
    ),
    (
        Cipher.AES_256_GCM,
        GCM_KEY,
        "cafebabefacedbaddecaf888",
        GCM_TEXT,
        "feedfacedeadbeeffeedfacedeadbeefabaddad2",
        GCM_SEALED + "76fc6ece0f4e1768cddf8853bb2d551b",
    ),
]


@pytest.mark.parametrize("vector", [XCHACHA, *GCM])
def test_ciphers(vector: tuple[Cipher, str, str, str, str, str]) -> None:
    """As a stream's first chunk would be: the nonce's start once, its last five bytes for each chunk."""
    cipher, key, nonce, plain, associated, sealed = vector
    aead, prefix = start(cipher, h(key), h(nonce)[:-5])
    buffer = bytearray(len(h(sealed)))
    aead.encrypt_into(prefix + h(nonce)[-5:], h(plain), h(associated), buffer)
    assert buffer.hex() == sealed
    back = bytearray(len(h(plain)))
    aead.decrypt_into(prefix + h(nonce)[-5:], buffer, h(associated), back)
    assert back.hex() == plain


@pytest.mark.parametrize(
    ("key", "salt", "info", "derived"),
    [
        (
            "0b" * 22,
            "000102030405060708090a0b0c",
            "f0f1f2f3f4f5f6f7f8f9",
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
        ),
        (
            bytes(range(0x50)).hex(),
            bytes(range(0x60, 0xB0)).hex(),
            bytes(range(0xB0, 0x100)).hex(),
            (
                "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09"
                "da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87"
            ),
        ),
        (
            "0b" * 22,
            "",
            "",
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
        ),
    ],
    ids=["A.1", "A.2", "A.3"],
)
def test_hkdf(key: str, salt: str, info: str, derived: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 5869, appendix A, through a stream's key schedule: its length and the data key's are ours."""
    monkeypatch.setattr(DataKey, "reveal", lambda _: h(key))
    schedule = Schedule(KEY, h(salt), h(info))._derived
    assert schedule.hex().startswith(derived)
    assert schedule == HKDF(SHA256(), 128, h(salt), h(info)).derive(h(key))


def test_xchacha_streams_are_xchacha() -> None:
    """A chunk opens with libsodium's own XChaCha20-Poly1305 under the whole 24-byte nonce."""
    whole = stream(b"the first and last chunk", Cipher.XCHACHA20_POLY1305)
    derived = Schedule(KEY, whole[32:64], whole[:32])._derived
    nonce = derived[96:115] + bytes(4) + b"\1"
    associated = whole[:128] + ALICE.encode()
    plain = bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(whole[128:], associated, nonce, derived[64:96])
    assert plain == b"the first and last chunk"
    target = bytearray(len(plain))
    Opener(Header.parse(whole, "x"), KEY, ALICE).open_into(0, whole[128:], target)
    assert target == plain
