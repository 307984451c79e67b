"""What can go wrong in an internal conversation. Each text says what it means and what to do next. No Django."""

from __future__ import annotations

from security.errors import SecurityError


class TransportError(SecurityError):
    """The base of every fault of the transport."""


class IdentityError(TransportError, ValueError):
    """A certificate or a URI names nobody that Hearth knows."""


class RequestError(TransportError, ValueError):
    """A certificate request is damaged, or its key is of a kind that is not taken. Nothing was signed."""


class CertificateError(TransportError, ValueError):
    """A certificate, its key or its trust can't be used. What was in use before stays in use."""


class Unreachable(TransportError, ConnectionError):
    """The listener does not answer. Nothing was done; try again later."""


class NotTrusted(Unreachable):
    """Whoever answers could not prove to be Hearth, or does not take our certificate. Nothing was sent."""


class CallRefused(TransportError):
    """Hearth answered that it will not do this. `status` is HTTP's; `type`, `title` and `detail` are the problem's."""

    def __init__(self, status: int, type: str, title: str, detail: str) -> None:  # noqa: A002 (RFC 9457's word)
        super().__init__(f"{title} {detail}".strip())
        self.status, self.type, self.title, self.detail = status, type, title, detail
