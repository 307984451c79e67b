"""The recipe of the container image in which a server on Kubernetes is backed up."""
