"""What a failed connection means, said for the person who has to mend it."""

from __future__ import annotations

REASONS: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("does not match host name", "hostname mismatch", "ip address mismatch"),
        "Its certificate is for another name than the address has, or somebody stands in between.",
    ),
    (("certificate has expired",), "Its certificate has expired, or this machine's clock is wrong."),
    (
        ("certificate verify failed", "unable to get local issuer", "self-signed certificate"),
        "Its certificate is not vouched for by the authority in {prefix}_CA, or it has expired.",
    ),
    (
        ("protocol version", "unsupported protocol", "wrong ssl version"),
        "It does not speak TLS 1.3, and Hearth takes nothing less.",
    ),
    (
        ("does not support ssl", "wrong version number", "record layer failure", "packet length too long"),
        "It does not speak TLS on that port.",
    ),
    (
        ("valid client certificate", "certificate required", "handshake failure", "unknown ca"),
        "It wants a client certificate that it accepts: {prefix}_CERTIFICATE and {prefix}_KEY.",
    ),
)


def explain(error: BaseException, prefix: str) -> str:
    """Return a sentence for a failure of TLS, or "" for any other. `prefix` is `HEARTH_DATABASE` or `HEARTH_REDIS`."""
    said = str(error).lower()
    for words, sentence in REASONS:
        if any(word in said for word in words):
            return sentence.format(prefix=prefix)
    return ""
