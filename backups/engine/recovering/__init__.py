"""A server of a cluster is brought back: what runs in the pod that its operator makes for it."""
