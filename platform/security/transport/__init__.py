"""Internal conversations: TLS 1.3 on both sides, and an identity that comes from the certificate alone.

`identities`, `errors`, `tls`, `credentials` and `client` import no Django: agents and the operator use them.
"""
