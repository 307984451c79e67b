"""Root keys wrap KEKs, KEKs wrap data keys. `roots`, `keks`, `deks`, `rewrap` and `erasure` are the only writers."""
