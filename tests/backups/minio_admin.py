"""Users of MinIO with a policy, made through its admin API: an agent's key as a provider would give it.

Only tests speak it. Bodies are sealed with the administrator's secret: salt, cipher, nonce, then fragments of
AES-256-GCM under a key by Argon2id (`EncryptData` of madmin-go, and its stream format sio-go).
"""

from __future__ import annotations

import json
import os
import secrets

import httpx
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as Signing
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from backups.engine.stores.connection import Credentials
from tests.backups.s3_servers import S3Server

_ADMIN = "/minio/admin/v3"
_AES = b"\0"
_FRAGMENT = 1 << 14


def new_user(server: S3Server, policy: dict[str, object]) -> Credentials:
    """Make a user who may do what the policy allows, and return its key."""
    known = Credentials(f"agent{secrets.token_hex(4)}", secrets.token_urlsafe(24))
    _put(server, "add-canned-policy", f"name=policy-{known.key_id}", json.dumps(policy).encode())
    user = json.dumps({"secretKey": known.secret, "status": "enabled"}).encode()
    _put(server, "add-user", f"accessKey={known.key_id}", _sealed(server.secret, user))
    attach = f"isGroup=false&policyName=policy-{known.key_id}&userOrGroup={known.key_id}"
    _put(server, "set-user-or-group-policy", attach, b"")
    return known


def _put(server: S3Server, call: str, query: str, body: bytes) -> None:
    request = AWSRequest("PUT", f"{server.endpoint}{_ADMIN}/{call}?{query}", data=body)
    S3SigV4Auth(Signing(server.key_id, server.secret), "s3", "us-east-1").add_auth(request)
    answer = httpx.put(request.url, content=body, headers=dict(request.headers.items()), timeout=30)
    assert answer.status_code == 200, answer.text


def _sealed(secret: str, data: bytes) -> bytes:
    assert len(data) < _FRAGMENT, "one fragment is all that is made here"
    salt, nonce = os.urandom(32), os.urandom(8)
    key = Argon2id(salt=salt, length=32, iterations=1, lanes=4, memory_cost=64 * 1024).derive(secret.encode())
    cipher = AESGCM(key)
    tag = cipher.encrypt(nonce + (0).to_bytes(4, "little"), b"", b"")
    return salt + _AES + nonce + cipher.encrypt(nonce + (1).to_bytes(4, "little"), data, b"\x80" + tag)
