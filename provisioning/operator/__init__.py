"""The Kubernetes operator: makes what a MatrixServer asks for, keeps it so, and says what is. Imports no Django.

`kube/` speaks to the API server and knows nothing of Matrix. The rest: `controller` (who starts and ends), `reconcile`
(one server's turn), `plan` and `status` (pure functions), `differences` (what must be written), `render` (Helm's
engine).
"""
