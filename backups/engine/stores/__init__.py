"""Where backups lie: a folder, or a bucket of any S3 server."""
