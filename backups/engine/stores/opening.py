"""A store as settings name it. Imports no Django."""

from __future__ import annotations

from pathlib import Path

import msgspec

from backups.engine.settings import FolderStoreAt, S3StoreAt, SettingsError
from backups.engine.stores.base import Store


def opened(at: FolderStoreAt | S3StoreAt) -> Store:
    """Return the store. Boto3 (60 MB) is imported only for a bucket. Raises `SettingsError`, `StoreError`."""
    if isinstance(at, FolderStoreAt):
        from backups.engine.stores.folder import FolderStore  # noqa: PLC0415 (what is not used is not imported)

        return FolderStore(at.name, Path(at.path), make=at.make)
    return _bucket(at)


def _bucket(it: S3StoreAt) -> Store:
    from backups.engine.stores.connection import Bucket, Credentials  # noqa: PLC0415 (as above)
    from backups.engine.stores.s3 import S3Store  # noqa: PLC0415

    credentials = None
    if it.credentials_file:
        try:
            found = msgspec.json.decode(Path(it.credentials_file).read_bytes(), type=dict[str, str])
            credentials = Credentials(found["access_key"], found["secret_key"])
        except (OSError, msgspec.DecodeError, KeyError):
            text = f"The store's credentials can't be read from {it.credentials_file}. Nothing was backed up."
            raise SettingsError(text) from None
    where = Bucket(
        bucket=it.bucket,
        endpoint=it.endpoint,
        region=it.region or "us-east-1",
        prefix=it.prefix,
        credentials=credentials,
        path_style=it.path_style,
        trust=Path(it.certificates) if it.certificates else None,
    )
    return S3Store(it.name, where)
