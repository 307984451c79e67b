"""Root keys in a PKCS#11 token: made inside, never leaving it. Wrapping is AES-256-GCM inside the token.

docs/decisions/0005 says why GCM and not a key wrap mechanism. One session serves the process, one call at a time:
not every module allows more. A session that broke is opened anew and the call done once more; where that fails too the
caller gets `HsmError` and the next call tries again.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pkcs11
from pkcs11 import Attribute, GCMParams, KeyType, Mechanism, ObjectClass
from pkcs11.exceptions import NoSuchKey, PinIncorrect, PinInvalid, PinLenRange, PinLocked, PKCS11Error

from security.errors import HsmError, UnknownRootKey, WrongKey
from security.secret import KEY, Key

LABEL = "hearth-root"
NONCE = 12
TAG_BITS = 128
LENGTH = NONCE + KEY + TAG_BITS // 8
TEMPLATE = {
    Attribute.SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
    Attribute.PRIVATE: True,
    Attribute.ENCRYPT: True,
    Attribute.DECRYPT: True,
    Attribute.WRAP: False,
    Attribute.UNWRAP: False,
    Attribute.DERIVE: False,
    Attribute.SIGN: False,
    Attribute.VERIFY: False,
}
T = TypeVar("T")


class HsmSource:
    """The token called `token` (or in slot `slot`) of the PKCS#11 library `module`; the PIN is read from `pin_file`."""

    kind = "hsm"

    def __init__(self, module: Path, *, token: str = "", slot: int | None = None, pin_file: Path) -> None:
        self._module, self._token, self._slot, self._pin_file = module, token, slot, pin_file
        self._lock = threading.Lock()
        self._session: Any = None
        self._process = os.getpid()
        self._refused: tuple[int, int] | None = None

    def roots(self) -> list[str]:
        attributes = {Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.LABEL: LABEL}

        def find(session: Any) -> list[str]:
            return sorted(f"{self.kind}:{key.id.hex()}" for key in session.get_objects(attributes))

        return self._call(find)

    def create(self) -> str:
        # Should the answer get lost and the call be done again, an unused root key stays behind, and no harm.
        def make(session: Any) -> str:
            identity = os.urandom(8)
            session.generate_key(KeyType.AES, 256, store=True, label=LABEL, id=identity, template=TEMPLATE)
            return f"{self.kind}:{identity.hex()}"

        return self._call(make)

    def wrap(self, root: str, key: Key, aad: bytes) -> bytes:
        nonce = os.urandom(NONCE)

        def encrypt(session: Any) -> bytes:
            sealed: bytes = _find(session, root).encrypt(bytes(key.value), **_gcm(nonce, aad))
            return nonce + sealed

        return self._call(encrypt)

    def unwrap(self, root: str, wrapped: bytes, aad: bytes) -> Key:
        fault = WrongKey(
            f"A key wrapped by the root key {root} was changed or belongs elsewhere. Nothing was written. "
            "Restore the keyring from its bundle."
        )
        if len(wrapped) != LENGTH:
            raise fault

        def decrypt(session: Any) -> Key:
            held = _find(session, root)
            try:
                return Key(held.decrypt(wrapped[NONCE:], **_gcm(wrapped[:NONCE], aad)))
            except PKCS11Error:
                # Tokens say a wrong tag in different ways, some as a general error. One that still works meant the tag.
                held.encrypt(bytes(KEY), **_gcm(os.urandom(NONCE), b"probe"))
                raise fault from None

        return self._call(decrypt)

    def describe(self) -> Mapping[str, str]:
        place = {"token": self._token} if self._token else {"slot": str(self._slot)}
        return {"kind": self.kind, "module": str(self._module), **place, "pin file": str(self._pin_file)}

    def _call(self, do: Callable[[Any], T]) -> T:
        with self._lock:
            try:
                if self._alive():
                    with contextlib.suppress(PKCS11Error):
                        return do(self._session)
                return do(self._connect())
            except PKCS11Error as error:
                self._session = None
                raise HsmError(
                    f"The HSM ({self._where()}) does not answer: {_reason(error)}. Nothing was written and nothing is "
                    "lost. Bring it back; the next call connects again."
                ) from None

    def _alive(self) -> bool:
        # A search on a dead session would complain once more when it is collected; asking for randomness does not.
        if self._session is None or self._process != os.getpid():
            return False
        try:
            return bool(self._session.generate_random(64))
        except PKCS11Error:
            return False

    def _connect(self) -> Any:
        self._session = None
        library = pkcs11.lib(str(self._module))
        # What an ended connection left behind, in this process or in the one it was forked from, is let go.
        with contextlib.suppress(PKCS11Error):
            library.finalize()
        library.initialize()
        try:
            # No variable holds the PIN: a page that shows a traceback's variables has nothing to show.
            self._session = self._find_token(library).open(rw=True, user_pin=self._pin())
        except (PinIncorrect, PinInvalid, PinLenRange, PinLocked) as error:
            self._refused = self._stamp()
            raise HsmError(self._refusal(_reason(error))) from None
        self._process = os.getpid()
        return self._session

    def _find_token(self, library: Any) -> Any:
        if self._token:
            return library.get_token(token_label=self._token)
        for slot in library.get_slots(token_present=True):
            if slot.slot_id == self._slot:
                return slot.get_token()
        raise PKCS11Error(f"there is no token in slot {self._slot}")

    def _pin(self) -> str:
        try:
            status = self._pin_file.stat()
            if status.st_mode & 0o007:
                raise HsmError(f"The PIN file {self._pin_file} can be read by others. Run: chmod o= {self._pin_file}")
            # A token locks itself after a few wrong PINs, so the same one is never tried twice.
            if self._refused == self._stamp():
                raise HsmError(self._refusal("the PIN was refused before and the file has not changed since"))
            return self._pin_file.read_text(encoding="ascii").strip()
        except UnicodeDecodeError:
            raise HsmError(
                f"The PIN file {self._pin_file} holds no PIN: it is not text. Nothing was written."
            ) from None
        except OSError as error:
            raise HsmError(
                f"The PIN file {self._pin_file} can't be read: {error.strerror}. Nothing was written. Put it back."
            ) from None

    def _stamp(self) -> tuple[int, int]:
        status = self._pin_file.stat()
        return status.st_ino, status.st_mtime_ns

    def _refusal(self, reason: str) -> str:
        return (
            f"The HSM ({self._where()}) refuses the PIN in {self._pin_file}: {reason}. Nothing was written. Correct "
            "the file; Hearth tries again as soon as it changes."
        )

    def _where(self) -> str:
        return f"token {self._token}" if self._token else f"slot {self._slot}"


def _find(session: Any, root: str) -> Any:
    try:
        identity = bytes.fromhex(root.partition(":")[2])
        return session.get_key(object_class=ObjectClass.SECRET_KEY, label=LABEL, id=identity)
    except NoSuchKey:
        raise UnknownRootKey(
            f"The HSM holds no root key {root}. What it protects can't be read now; nothing was written. "
            "Connect the token that holds it, or restore the token from its backup."
        ) from None


def _gcm(nonce: bytes, aad: bytes) -> dict[str, Any]:
    return {"mechanism": Mechanism.AES_GCM, "mechanism_param": GCMParams(nonce, aad, TAG_BITS)}


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
