"""Key bundles in buckets: the entries of HEARTH_KEY_BUNDLES that are no folders. Registered with the keyring's seam."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from django.conf import settings
from django.views.decorators.debug import sensitive_variables

from backups.engine.stores.base import Erasable, ObjectExists, StoreError
from security.errors import BundleError
from security.keyring.places import NAME, Place, PlaceError


@dataclass(frozen=True)
class StorePlace:
    """A place of key bundles that is a store. What is removed goes with all its versions: an erasure counts on it."""

    store: Erasable

    @property
    def name(self) -> str:
        return self.store.name

    def put(self, name: str, data: bytes) -> None:
        try:
            self.store.put(_checked(name), [data])
        except ObjectExists:
            if self.get(name) != data:
                text = f"The place {self.name} has another key bundle {name} already. Nothing was written over"
                raise PlaceError(text) from None
        except StoreError as error:
            raise _told(error) from None

    def get(self, name: str) -> bytes:
        try:
            return b"".join(self.store.get(_checked(name)))
        except StoreError as error:
            raise _told(error) from None

    def list(self) -> Sequence[str]:
        try:
            return [each.name for each in self.store.listing() if NAME.fullmatch(each.name)]
        except StoreError as error:
            raise _told(error) from None

    def remove(self, name: str) -> None:
        try:
            self.store.erase([_checked(name)])
        except StoreError as error:
            raise _told(error) from None


def places() -> Sequence[Place]:
    """Return the buckets of HEARTH_KEY_BUNDLES; for the keyring's seam of that name."""
    access = str(settings.HEARTH["HEARTH_KEY_BUNDLE_ACCESS"])
    given = [entry.partition(":") for entry in settings.HEARTH["HEARTH_KEY_BUNDLES"]]
    return [_place(name, address, access) for name, _, address in given if not address.startswith("/")]


@functools.lru_cache(maxsize=16)
@sensitive_variables()
def _place(name: str, address: str, access: str) -> StorePlace:
    """Return the place at `https://host/bucket/prefix` or `s3://bucket/prefix`, with its connections kept."""
    from backups.engine.stores.connection import Bucket, Credentials  # noqa: PLC0415 (boto3 is large; few need it)
    from backups.engine.stores.s3 import S3Store  # noqa: PLC0415

    known = (json.loads(access) if access else {}).get(name, {})
    parts = urlsplit(address)
    path = parts.path.strip("/")
    endpoint, (bucket, _, prefix) = f"{parts.scheme}://{parts.netloc}", path.partition("/")
    if parts.scheme == "s3":
        endpoint, bucket, prefix = "", parts.netloc, path
    where = Bucket(
        bucket,
        endpoint,
        region=known.get("region", "us-east-1"),
        prefix=prefix,
        credentials=Credentials(known["access_key"], known["secret_key"]) if "access_key" in known else None,
        trust=Path(known["certificates"]) if "certificates" in known else None,
        tries=3,
    )
    try:
        return StorePlace(S3Store(name, where))
    except StoreError as error:
        raise BundleError(f"The place {name} of HEARTH_KEY_BUNDLES can't be used: {error}") from None


def _checked(name: str) -> str:
    if not NAME.fullmatch(name):
        raise PlaceError(f"{name!r} is no name of a key bundle. Nothing was touched.")
    return name


def _told(error: StoreError) -> PlaceError:
    return PlaceError(str(error).removesuffix("."))
