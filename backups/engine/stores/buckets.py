"""Making a bucket that keeps what it is given, looking whether it does, and what an agent may do in it.

Whatever a server does not support is a `Finding`: it is told, and never silently left out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from backups.engine.stores.base import Finding, NoSuchObject, StoreError
from backups.engine.stores.connection import Bucket, Connection, NothingSet
from backups.engine.stores.write_once import PROBE

VERSION_DAYS = 30
"""For how many days a version stays that was deleted or replaced."""
LOCK_DAYS = 30
UPLOAD_DAYS = 7
"""After how many days an upload that was never ended goes."""
_RULE = "hearth"


def prepare(
    where: Bucket, name: str, *, version_days: int = VERSION_DAYS, lock_days: int | None = LOCK_DAYS
) -> list[Finding]:
    """Make the bucket if it is not there, turn every protection on that the server has, and return what `check` finds.

    Object lock can only be had when a bucket is made. With it every object is kept for `lock_days`, also from Hearth;
    None makes the bucket without. Needs an administrator's credentials. What is set already is set again.
    """
    connection = Connection(where, name)
    try:
        _make(connection, lock=lock_days is not None)
        call = connection.call
        _try(lambda: call("put_bucket_versioning", VersioningConfiguration={"Status": "Enabled"}))
        if lock_days is not None:
            _try(lambda: call("put_object_lock_configuration", ObjectLockConfiguration=_lock(lock_days)))
        _set_lifecycle(connection, version_days)
        rules = {"Rules": [{"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}]}
        _try(lambda: call("put_bucket_encryption", ServerSideEncryptionConfiguration=rules))
        blocked = dict.fromkeys(
            ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"), True
        )
        _try(lambda: call("put_public_access_block", PublicAccessBlockConfiguration=blocked))
        return check(connection)
    finally:
        connection.close()


def check(connection: Connection) -> list[Finding]:
    """Return which protections the bucket has. Raises `StoreError` where the bucket itself can't be reached."""
    connection.call("list_objects_v2", "read", Prefix=connection.key(""), MaxKeys=1)
    return [
        _versions(connection),
        *_lifecycle(connection),
        _object_lock(connection),
        _encryption(connection),
        _public_access(connection),
    ]


def write_once(*, supported: bool) -> Finding:
    """Return the finding about names that are used once."""
    if supported:
        return Finding("write-once names", "on", "The server refuses a name that is taken.")
    text = "The server would write over a name that is taken. Hearth looks first; versions keep what was there."
    return Finding("write-once names", "unsupported", text)


def agent_policy(bucket: str, prefix: str) -> dict[str, Any]:
    """Return the IAM policy of an agent: it may put and read below its prefix, and delete nothing, no version either.

    It may not list others' unfinished uploads, so `sweep` is Hearth's to do. Format: AWS's policy language,
    version 2012-10-17, which other servers know too.
    """
    own, everything = f"arn:aws:s3:::{bucket}/{prefix}/*", f"arn:aws:s3:::{bucket}"
    use = ["s3:PutObject", "s3:GetObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
    never = ["s3:DeleteObject", "s3:DeleteObjectVersion", "s3:BypassGovernanceRetention", "s3:PutObjectRetention"]
    never += ["s3:PutObjectLegalHold"]
    of_bucket = ["s3:DeleteBucket", "s3:PutBucketVersioning", "s3:PutLifecycleConfiguration", "s3:PutBucketPolicy"]
    of_bucket += ["s3:PutBucketObjectLockConfiguration", "s3:PutEncryptionConfiguration"]
    below = {"StringLike": {"s3:prefix": [f"{prefix}/*"]}}
    return {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": use, "Resource": [own]},
            {"Effect": "Allow", "Action": ["s3:ListBucket"], "Resource": [everything], "Condition": below},
            {"Effect": "Deny", "Action": never, "Resource": [f"{everything}/*"]},
            {"Effect": "Deny", "Action": of_bucket, "Resource": [everything]},
        ],
    }


def _make(connection: Connection, *, lock: bool) -> None:
    try:
        connection.call("head_bucket", name="")
        return
    except NothingSet:
        pass  # a HEAD has no body that would say which thing is missing
    except StoreError as error:
        if error.code != "StoreMissing":
            raise
    region = connection.where.region
    place: dict[str, Any] = (
        {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    )
    locked: dict[str, Any] = {"ObjectLockEnabledForBucket": True} if lock else {}
    try:
        connection.call("create_bucket", "made", **place, **locked)
    except StoreError as error:
        if not lock or error.code != "StoreMisused":
            raise
        connection.call("create_bucket", "made", **place)


def _set_lifecycle(connection: Connection, days: int) -> None:
    """Set as many of the rules as the server takes: some refuse a whole set because of one."""
    versions = {"NoncurrentVersionExpiration": {"NoncurrentDays": days}}
    uploads = {"AbortIncompleteMultipartUpload": {"DaysAfterInitiation": UPLOAD_DAYS}}
    markers = {"Expiration": {"ExpiredObjectDeleteMarker": True}}
    for parts in ((versions, uploads, markers), (versions, markers), (versions, uploads), (versions,)):
        rule: dict[str, Any] = {"ID": _RULE, "Status": "Enabled", "Filter": {"Prefix": ""}}
        for part in parts:
            rule |= part
        if _try(
            functools.partial(
                connection.call, "put_bucket_lifecycle_configuration", LifecycleConfiguration={"Rules": [rule]}
            )
        ):
            return


def _lock(days: int) -> dict[str, Any]:
    return {"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": days}}}


def _try(do: Callable[[], object]) -> bool:
    """Do one thing that a server may not support; `check` tells afterwards what there is. What is away is raised."""
    try:
        do()
    except StoreError as error:
        if error.code != "StoreMisused":
            raise
        return False
    return True


def _asked(connection: Connection, what: str, operation: str) -> Mapping[str, Any] | Finding:
    """Return a configuration, or the finding that there is none."""
    try:
        return connection.call(operation)
    except NothingSet:
        return {}
    except StoreError as error:
        if error.code == "StoreDenied":
            return Finding(what, "unknown", "These credentials may not ask. Look with an administrator's.")
        if error.code == "StoreMisused":
            return Finding(what, "unsupported", _WITHOUT[what])
        raise


_WITHOUT = {
    "versions": "The server keeps no older versions: whoever may write can change backups. Keep a second store.",
    "lifecycle": "The server removes no old versions by itself: deleted backups go on taking space.",
    "object lock": "The server can't lock objects: an administrator's key can delete backups. Keep a second store.",
    "encryption at rest": "The server does not encrypt by itself, or has no key for it. Backups come to it sealed.",
}


def _versions(connection: Connection) -> Finding:
    found = _asked(connection, "versions", "get_bucket_versioning")
    if isinstance(found, Finding):
        return found
    if found.get("Status") == "Enabled":
        return Finding("versions", "on", "What is deleted or replaced stays as an older version.")
    return Finding("versions", "off", "Whoever may write can change backups for good. Turn versioning on.")


def _lifecycle(connection: Connection) -> list[Finding]:
    found = _asked(connection, "lifecycle", "get_bucket_lifecycle_configuration")
    if isinstance(found, Finding):
        return [found, _unfinished_uploads(connection)]
    rules = [rule for rule in found.get("Rules", ()) if rule.get("Status") == "Enabled" and _covers(rule, connection)]
    days = [
        rule["NoncurrentVersionExpiration"].get("NoncurrentDays", 0)
        for rule in rules
        if "NoncurrentVersionExpiration" in rule
    ]
    told = Finding("lifecycle", "off", "Older versions stay for ever, and so do deleted backups' costs. Add a rule.")
    if any("Expiration" in rule and {"Days", "Date"} & set(rule["Expiration"]) for rule in rules):
        told = Finding(
            "lifecycle", "off", "A rule deletes backups after some time, whatever needs them. Remove that rule."
        )
    elif days and min(days) < VERSION_DAYS:
        told = Finding(
            "lifecycle", "off", f"Older versions go after {min(days)} days, before {VERSION_DAYS}. Raise it."
        )
    elif days:
        told = Finding("lifecycle", "on", f"Older versions go after {min(days)} days.")
    if any("AbortIncompleteMultipartUpload" in rule for rule in rules):
        return [told, Finding("unfinished uploads", "on", "What a killed writer left goes by itself.")]
    return [told, _unfinished_uploads(connection)]


def _unfinished_uploads(connection: Connection) -> Finding:
    """Try whether the server lists them: some do so only under the exact name."""
    what, name = "unfinished uploads", f"{PROBE}-upload"
    seen: Sequence[Mapping[str, Any]] = ()
    try:
        upload = connection.call("create_multipart_upload", name=name)["UploadId"]
        try:
            seen = connection.call("list_multipart_uploads", Prefix=connection.key("")).get("Uploads", ())
        except NothingSet:
            pass  # what some say who list none
        finally:
            connection.call("abort_multipart_upload", name=name, UploadId=upload)
    except StoreError as error:
        if error.code not in {"StoreDenied", "StoreMisused"}:
            raise
        return Finding(what, "unknown", "They can't be listed with these credentials. Look with an administrator's.")
    if any(each.get("UploadId") == upload for each in seen):
        return Finding(what, "off", "No rule removes them. Hearth removes what its writers left.")
    text = "The server has no such rule and does not list them. Look when it removes them by itself (MinIO: a day)."
    return Finding(what, "unsupported", text)


def _covers(rule: Mapping[str, Any], connection: Connection) -> bool:
    narrow = rule.get("Filter") or {}
    if set(narrow) - {"Prefix"}:
        return False
    prefix = str(narrow.get("Prefix", rule.get("Prefix", "")) or "")
    return connection.key("").startswith(prefix)


def _object_lock(connection: Connection) -> Finding:
    found = _asked(connection, "object lock", "get_object_lock_configuration")
    if isinstance(found, Finding):
        return found
    told = found.get("ObjectLockConfiguration", {})
    kept = told.get("Rule", {}).get("DefaultRetention", {})
    if told.get("ObjectLockEnabled") == "Enabled" and kept:
        span = f"{kept['Days']} days" if "Days" in kept else f"{kept.get('Years')} years"
        return Finding("object lock", "on", f"Objects are locked for {span} ({str(kept.get('Mode')).lower()}).")
    text = "An administrator's key can delete backups. A bucket gets object lock when it is made."
    return Finding("object lock", "off", text)


def _encryption(connection: Connection) -> Finding:
    found = _asked(connection, "encryption at rest", "get_bucket_encryption")
    if isinstance(found, Finding):
        return found
    rules = found.get("ServerSideEncryptionConfiguration", {}).get("Rules", ())
    kinds = [each.get("ApplyServerSideEncryptionByDefault", {}).get("SSEAlgorithm", "") for each in rules]
    if any(kinds):
        return Finding("encryption at rest", "on", f"The server encrypts what it stores ({', '.join(kinds)}).")
    return Finding("encryption at rest", "off", _WITHOUT["encryption at rest"])


def _public_access(connection: Connection) -> Finding:
    """Try without credentials: what a server says of its rules is one thing, what it does is another."""
    stranger = Connection(replace(connection.where, credentials=None), connection.name, connections=1, anonymous=True)
    try:
        listed = _allowed(stranger, "list_objects_v2", Prefix=stranger.key(""), MaxKeys=1)
        read = _allowed(stranger, "get_object", name=PROBE)
    finally:
        stranger.close()
    if listed or read:
        return Finding(
            "no public access", "off", "Anybody can read the bucket. Close it: block public access, remove policies."
        )
    return Finding("no public access", "on", "Without credentials nothing can be listed or read.")


def _allowed(stranger: Connection, operation: str, **parameters: Any) -> bool:
    try:
        stranger.call(operation, **parameters)
    except NoSuchObject:
        return True  # only who may read is told that nothing lies there
    except StoreError as error:
        if error.retry:
            raise
        return False
    return True
