"""The provider for regions that are Kubernetes clusters: it writes a namespace, a Secret and a MatrixServer, and reads.

Everything else is the operator's. No Django here; Kubernetes' client is imported by `client` alone.
"""
