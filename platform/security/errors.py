"""What can go wrong with keys. Each text names the object, says what it means for the data, and what to do next."""

from __future__ import annotations


class SecurityError(Exception):
    """The base of every fault of this app."""


class KeySourceError(SecurityError, RuntimeError):
    """A root key can't be used. Nothing was written."""


class KeyFileError(KeySourceError):
    """The root key's file can't be used; the text says why and what to do."""


class HsmError(KeySourceError):
    """The HSM can't be reached or refuses. The next call connects again."""


class UnknownRootKey(KeySourceError):
    """No configured key source holds the root key that something is wrapped by."""


class WrongKey(SecurityError, ValueError):
    """Something wrapped was changed, belongs to another object, or was wrapped by another key."""


class UnsealError(WrongKey):
    """A sealed value was changed, belongs elsewhere, or was sealed with another key."""


class KeyGone(SecurityError):
    """The key was destroyed, or never existed: what it encrypted can't be read."""


class KeyInUse(SecurityError):
    """The key still protects something, so it is not destroyed."""


class KeysChanged(SecurityError):
    """The keys were changed again and again while something was being done. Nothing was written; try again."""


class KeysDamaged(WrongKey):
    """Some wrapped keys can't be opened. The text names them; all others were done, `moved` of them just now."""

    def __init__(self, text: str, *, moved: int = 0) -> None:
        super().__init__(text)
        self.moved = moved


class LeaseLost(SecurityError):
    """Somebody else does this work now. What was done stays, nothing was done twice."""


class NotPublished(SecurityError):
    """Not every place holds the key bundle. What was to be named by a manifest must not be named yet."""


class BundleError(SecurityError, ValueError):
    """A key bundle is damaged, belongs to another place, or can't be restored here."""
