"""The operator as a whole: waits for the lease, watches, gives servers their turns, ends cleanly."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable

from provisioning.operator.backups import Agents, Backups
from provisioning.operator.kube.access import find
from provisioning.operator.kube.client import Client
from provisioning.operator.kube.errors import ApiError, NotLeaderError
from provisioning.operator.kube.lease import Lease
from provisioning.operator.kube.queue import WorkQueue
from provisioning.operator.memory import give_back
from provisioning.operator.metrics import Metrics
from provisioning.operator.notices import Notices
from provisioning.operator.probe import Prober
from provisioning.operator.reconcile import Outcome, Reconciler
from provisioning.operator.recoveries import Recoveries
from provisioning.operator.render import HelmCommand, Helper, Renderer
from provisioning.operator.rendering import Rendering
from provisioning.operator.serving import serve
from provisioning.operator.settings import Settings
from provisioning.operator.store import Store
from provisioning.operator.watching import Watching
from provisioning.operator.writing import WIDTH, Writer

log = logging.getLogger(__name__)

TURNS = 600  # servers that may have their turn at once; what they write is bounded by the client and by memory
FAREWELL = 8.0  # seconds that turns under way are given to end


class StartError(Exception):
    """The operator can't be started as it is set up. The text says what to do."""


class Operator:
    """One operator. `run` returns when it is told to stop, or when another has taken over."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.metrics = Metrics()
        self.queue = WorkQueue()
        self.store = Store(lambda namespace, urgent: self.queue.add(namespace, urgent=urgent))
        self.stopping = asyncio.Event()
        self.port = 0
        self._turns: set[asyncio.Task[None]] = set()
        self._begun = 0
        self._watching: Watching | None = None
        self._acting = False
        self._dispatcher: asyncio.Task[None] | None = None
        self._needed: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """Act while we hold the lease."""
        settings = self._settings
        async with contextlib.AsyncExitStack() as stack:
            client = await stack.enter_async_context(
                Client(find(settings.kubeconfig, account=settings.account), in_flight=settings.in_flight)
            )
            lease = Lease(client, settings.namespace, settings.lease, settings.identity)
            self.metrics.watch(self.store, self.queue, client, lambda: self._watching)
            served = serve(settings.host, settings.port, live=self._dead, ready=self._idle, numbers=self.metrics.text)
            self.port = await stack.enter_async_context(served)
            log.info("serving on port %d", self.port)
            log.info("waiting for the lease %s/%s as %s", settings.namespace, settings.lease, settings.identity)
            if not await self._unless_stopped(lease.acquire()):
                return
            stack.push_async_callback(lease.release)
            await self._act(stack, client, lease)

    async def _act(self, stack: contextlib.AsyncExitStack, client: Client, lease: Lease) -> None:
        self.metrics.leads.set(1)
        client.may_write = lease.held
        keeping = asyncio.create_task(lease.keep(), name="lease")
        stack.callback(keeping.cancel)
        watching = self._watching = Watching(client, self.store, lease)
        stack.push_async_callback(watching.stop)
        lease.answered.add(watching.reopen)
        watching.start()
        listening = asyncio.create_task(watching.listen(), name="listening")
        self._needed.append(listening)
        stack.callback(listening.cancel)
        begun = time.monotonic()
        if not await self._unless_stopped(watching.synced(), keeping):
            return
        log.info("saw %d servers in %.1f s", len(self.store.namespaces()), time.monotonic() - begun)
        reconciler = await self._reconciler(stack, client, lease, watching)
        self._acting = True
        self._dispatcher = asyncio.create_task(self._dispatch(reconciler), name="dispatcher")
        stack.push_async_callback(self._end_turns)
        giving = asyncio.create_task(give_back(lambda: bool(self._turns), lambda: self._begun), name="memory")
        self._needed.append(giving)
        stack.callback(giving.cancel)
        await self._unless_stopped(self._dispatcher, keeping)

    async def _reconciler(
        self, stack: contextlib.AsyncExitStack, client: Client, lease: Lease, watching: Watching
    ) -> Reconciler:
        renderer = await self._renderer(client, watching)
        stack.push_async_callback(renderer.close)
        prober = Prober(self._settings.probe)
        stack.push_async_callback(prober.close)
        agents = Agents(self._settings.agent)
        stack.push_async_callback(agents.close)
        recoveries = Recoveries(self._settings.recovery, client)
        stack.push_async_callback(recoveries.close)
        notices = Notices(client, self._settings.identity)
        sending = asyncio.create_task(notices.run(), name="notices")
        self._needed.append(sending)
        stack.callback(sending.cancel)
        writer = Writer(client, self.store, notices, self.metrics, leads=lease.held, width=self._width)
        return Reconciler(
            client=client,
            store=self.store,
            rendering=Rendering(renderer, self.store),
            writer=writer,
            prober=prober,
            notices=notices,
            metrics=self.metrics,
            backups=Backups(agents, client, self.store, notices),
            recoveries=recoveries,
            later=self.queue.add_after,
            pace=self._settings.pace,
        )

    async def _renderer(self, client: Client, watching: Watching) -> Renderer:
        settings = self._settings
        version = str((await client.raw("/version")).get("gitVersion") or "v1.31.0")
        kinds = [f"{kind.api_version}/{kind.name}" for kind in watching.kinds()]
        names = sorted({*kinds, *(kind.api_version for kind in watching.kinds())})
        if settings.helper:
            return Helper(settings.helper, settings.chart, version=version, api_versions=names)
        if settings.helm:
            log.warning("there is no render helper at this place; the helm command takes ten times as long")
            return HelmCommand(settings.helm, settings.chart, version=version, api_versions=names)
        raise StartError(
            "There is neither the render helper nor a helm command, so nothing can be rendered. Nothing was changed. "
            "Build the helper (go build in provisioning/operator/render) or install Helm."
        )

    def _width(self) -> int:
        return WIDTH * 2 // max(1, self.queue.working)

    async def _dispatch(self, reconciler: Reconciler) -> None:
        places = asyncio.Semaphore(TURNS)
        while True:
            await places.acquire()
            namespace = await self.queue.get()
            task = asyncio.create_task(self._turn(reconciler, namespace, places))
            self._turns.add(task)
            task.add_done_callback(self._turns.discard)

    async def _turn(self, reconciler: Reconciler, namespace: str, places: asyncio.Semaphore) -> None:
        self.metrics.turns.inc()
        self._begun += 1
        try:
            with self.metrics.turn_seconds.time():
                await reconciler.turn(namespace)
        except Outcome as error:
            self._failed(namespace, str(error), longest=error.longest)
        except ApiError as error:
            longest = 4.0 if error.passing or error.status == 409 else 120.0
            self._failed(namespace, str(error), least=min(error.retry_after, 10.0), longest=longest)
        except NotLeaderError:
            self._failed(namespace, "the lease has run out and is being renewed", longest=2.0)
        except Exception:
            # A fault of the operator itself must not cost other servers their turns.
            log.exception("%s: the turn failed", namespace)
            self._failed(namespace, "a fault of the operator")
        else:
            self.queue.succeeded(namespace)
        finally:
            self.queue.done(namespace)
            places.release()

    def _failed(self, namespace: str, why: str, *, least: float = 0.0, longest: float = 120.0) -> None:
        self.metrics.failures.inc()
        wait = self.queue.failed(namespace, least=least, longest=longest)
        log.info("%s: again in %.1f s: %s", namespace, wait, why)

    async def _end_turns(self) -> None:
        if self._dispatcher:
            self._dispatcher.cancel()
        if self._turns:
            _done, late = await asyncio.wait(self._turns, timeout=FAREWELL)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _unless_stopped(self, *whole: Awaitable[object]) -> bool:
        """Wait for the first of several; say whether it was the first of them and nothing told us to stop."""
        tasks = [asyncio.ensure_future(each) for each in whole]
        stop = asyncio.create_task(self.stopping.wait())
        try:
            await asyncio.wait([*tasks, stop], return_when=asyncio.FIRST_COMPLETED)
            if len(tasks) > 1 and tasks[1].done() and not stop.done():
                log.warning("the lease was lost; another operator acts now")
            if tasks[0].done() and not stop.done():
                await tasks[0]
                return True
            return False
        finally:
            stop.cancel()
            for task in tasks[:1]:
                task.cancel()

    def _dead(self) -> str:
        if self._acting and self._dispatcher is not None and self._dispatcher.done():
            return "turns are not given any more"
        ended = [f"{task.get_name()} has ended" for task in self._needed if task.done()]
        return "; ".join([*ended, *(self._watching.faults() if self._watching else ())])

    def _idle(self) -> str:
        return "" if self._acting else "this operator does not act (yet)"
