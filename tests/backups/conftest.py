"""S3 servers for everything that is tested about backups."""

from __future__ import annotations

from tests.backups.s3_servers import minio, plain_s3, s3_server

__all__ = ["minio", "plain_s3", "s3_server"]
