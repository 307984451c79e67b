"""Sessions in the database, sealed: they may hold a second factor's secret that is not confirmed yet."""

from __future__ import annotations

import base64
from typing import Any

from django.contrib.sessions.backends.db import SessionStore as DatabaseStore

from security.errors import KeyFileError, UnsealError
from security.sealing import OLD, seal, unseal

PURPOSE = "accounts.session"
SHORTEST_KEY = 8


class SessionStore(DatabaseStore):
    """Django's database sessions with sealed content. A session that can't be opened is an empty one: sign in again."""

    def _validate_session_key(self, key: str | None) -> bool:
        # A cookie can hold what PostgreSQL refuses, such as a NUL; only what Hearth could have made is looked up.
        return bool(key) and len(str(key)) >= SHORTEST_KEY and str(key).isascii() and str(key).isalnum()

    def encode(self, session_dict: dict[str, Any]) -> str:
        return base64.b64encode(seal(self.serializer().dumps(session_dict), PURPOSE)).decode()

    def decode(self, session_data: bytes | str) -> dict[str, Any]:
        try:
            sealed = base64.b64decode(session_data)
            content: dict[str, Any] = self.serializer().loads(unseal(sealed, PURPOSE))
        except KeyFileError:
            # Sessions of version 1 end with the key file; one of today must not, where a key is away for a moment.
            if sealed[:1] != OLD:
                raise
            return {}
        except (UnsealError, ValueError):
            return {}
        return content
