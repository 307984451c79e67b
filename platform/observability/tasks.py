"""The base of every Celery task: sent after commit, ids in its log lines, counted.

Use the `task` decorator. A message is only a hint (the sweeps find the same work), so one that can't be sent is logged
and counted, and never fails the verb that wanted to send it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import structlog
from celery import Task, shared_task
from django.db import transaction
from kombu.exceptions import OperationalError

from observability.context import RequestContext, current
from observability.metrics import TASKS

logger = logging.getLogger(__name__)
HEADER = "hearth_request_id"


class HearthTask(Task[Any, Any]):
    """Celery's task with Hearth's manners. `delay` and `apply_async` wait for the surrounding transaction's commit."""

    abstract = True

    def apply_async(  # type: ignore[override]  # the stub lists every option; all of them pass through
        self, args: Any = None, kwargs: Any = None, **options: Any
    ) -> Any:
        """Send now, or after the commit of the transaction that is open; then there is no result to return."""
        options["headers"] = {HEADER: current.get().request_id, **(options.get("headers") or {})}
        send = functools.partial(self._send, args, kwargs, options)
        if transaction.get_connection().in_atomic_block:
            transaction.on_commit(send)
            return None
        return send()

    def _send(self, args: Any, kwargs: Any, options: dict[str, Any]) -> Any:
        try:
            return super().apply_async(args, kwargs, **options)
        except OperationalError as error:
            self._count("unsent")
            logger.warning("The message for %s could not be sent; the next sweep finds the work. %s", self.name, error)
            return None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._bound():
            self._count("started")
            return super().__call__(*args, **kwargs)

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:  # noqa: ARG002 (Celery's signature)
        self._count("done")

    def on_retry(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:  # noqa: ARG002 (as above)
        self._count("retried")

    def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:  # noqa: ARG002 (as above)
        self._count("failed")

    def _count(self, event: str) -> None:
        TASKS.labels(task=self.name, event=event).inc()

    @contextmanager
    def _bound(self) -> Iterator[None]:
        """Bind task and request ids for the lines that are logged inside."""
        headers = getattr(self.request, "headers", None) or {}
        request_id = getattr(self.request, HEADER, None) or headers.get(HEADER) or ""
        token = current.set(RequestContext(request_id=request_id))
        try:
            with structlog.contextvars.bound_contextvars(task=self.name, task_id=self.request.id or ""):
                yield
        finally:
            current.reset(token)


def task(**options: Any) -> Callable[[Callable[..., Any]], HearthTask]:
    """Register a function as a task: `@task()` or `@task(max_retries=3)`."""
    decorate: Callable[[Callable[..., Any]], HearthTask] = shared_task(base=HearthTask, **options)
    return decorate
