"""S3 servers for everything that is tested about backups."""

from __future__ import annotations

from tests.backups.s3_servers import minio, plain_s3, s3_server, second_s3

__all__ = ["minio", "plain_s3", "s3_server", "second_s3"]
