"""XChaCha20-Poly1305 against the draft's own vectors (draft-irtf-cfrg-xchacha-03)."""

from __future__ import annotations

import pytest

from security import xchacha

KEY = bytes(range(0x80, 0xA0))
NONCE = bytes(range(0x40, 0x58))
AAD = bytes.fromhex("50515253c0c1c2c3c4c5c6c7")
TEXT = (
    b"Ladies and Gentlemen of the class of '99: "
    b"If I could offer you only one tip for the future, sunscreen would be it."
)
SEALED = bytes.fromhex(
    "bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb731c7f1b0b4aa6440bf3a82f4eda7e39ae64c6708c54c216"
    "cb96b72e1213b4522f8c9ba40db5d945b11b69b982c1bb9e3f3fac2bc369488f76b2383565d3fff921f9664c97637da9768812f615c68b13"
    "b52e"
)
TAG = bytes.fromhex("c0875924c1c7987947deafd8780acf49")


def test_hchacha20_of_the_draft() -> None:
    nonce = bytes.fromhex("000000090000004a0000000031415927")
    subkey = xchacha.hchacha20(bytes(range(32)), nonce)
    assert subkey.hex() == "82413b4227b27bfed30e42508a877d73a0f9e4d58a74a853c12ec41326d3ecdc"


def test_the_drafts_aead_vector() -> None:
    assert xchacha.encrypt(KEY, NONCE, TEXT, AAD) == SEALED + TAG
    assert xchacha.decrypt(KEY, NONCE, SEALED + TAG, AAD) == TEXT


@pytest.mark.parametrize("place", range(0, 24 + 16 + 5, 3))
def test_a_changed_box_does_not_open(place: int) -> None:
    box = bytearray(xchacha.seal_box(KEY, b"5byte", b"for"))
    box[place] ^= 1
    with pytest.raises(xchacha.InvalidTag):
        xchacha.open_box(KEY, bytes(box), b"for")


def test_a_box_opens_for_its_own_purpose_whole() -> None:
    box = xchacha.seal_box(KEY, b"", b"for")
    assert xchacha.open_box(KEY, box, b"for") == b""
    for other, aad in ((box, b"of"), (box[:-1], b"for"), (b"", b"for")):
        with pytest.raises(xchacha.InvalidTag):
            xchacha.open_box(KEY, other, aad)


@pytest.mark.parametrize("length", [0, 12, 23, 25])
def test_a_nonce_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="nonce"):
        xchacha.encrypt(KEY, bytes(length), b"", b"")
