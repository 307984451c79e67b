"""A small asynchronous client of the Kubernetes API: requests, watches, a cache, leases. Knows nothing of Matrix."""
