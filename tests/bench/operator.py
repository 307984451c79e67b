"""The operator with a fleet on a real API server, against the raw limit and against Helm, in one run.

In each round the same number of servers is made three ways: their objects applied as fast as 16 requests in flight can
(the raw limit), by the operator, and (fewer) by `helm upgrade --install` of the same chart. Nodes and pods are kwok's;
what a homeserver would answer comes from a declared stand-in (`tests/operator/homeservers.py`), other software's
controllers are played by `tests/cluster/stand_ins.py`. SERVERS, UPDATES, STEADY (seconds) and ROUNDS make it smaller;
their defaults are what the goals are for. Near LIMIT seconds no more changes are made; `changes` and `updates` say how
many were. A line twice a minute says how far it is.

`growth_percent` compares the operator's memory before the first update and after the last, each time with everything
settled. `rss_curve` is what it was in between, while servers were still being changed: it tells a leak, which goes on,
from what many changes at once need, which is taken once.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
import uvloop

from provisioning.operator.children import KINDS, Place
from provisioning.operator.kube.client import Client
from provisioning.operator.ownership import DIGEST, SELECTOR, stamp
from provisioning.operator.render import Helper
from provisioning.operator.rendering import place_of
from provisioning.operator.settings import CHART
from tests.bench.fleet import Fleet, spec, until, watched
from tests.cluster import tools
from tests.cluster.furnish import node
from tests.cluster.launch import Cluster
from tests.operator.homeservers import Homeservers
from tests.operator.process import Operator
from tests.operator.render_helper import helper

SERVERS = int(os.environ.get("SERVERS", "500"))
UPDATES = int(os.environ.get("UPDATES", "10000"))
STEADY = float(os.environ.get("STEADY", "600"))
ROUNDS = int(os.environ.get("ROUNDS", "5"))
LIMIT = float(os.environ.get("LIMIT", "2040"))
ENDING = 180.0  # seconds that are left for what comes after the updates
PROGRESS = 30.0  # seconds between two lines that say how far it is
BY_HELM = 4  # servers in a round: Helm is slow
PODS = 800  # on a node, which takes 1,000: those that are replaced are there twice for a moment
ONE_BY_ONE = min(100, SERVERS)
IN_FLIGHT = 16
WRITES, READS = ("patch", "create", "delete"), ("get", "list")
Objects = list[tuple[Place, bytes]]
NOBODY = "hearth-00000000-0000-0000-0000-000000000000"
NEW = 'hearth_operator_applied_total{cause="new"}'
TOUCHED = ("ConfigMap", "StatefulSet")
"""What a change of a limit reaches."""


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 (this is a command)


def requests(numbers: dict[str, float], verbs: Iterable[str]) -> int:
    """Return how many requests of these verbs the operator has sent."""
    return int(sum(numbers.get(f'hearth_operator_requests_total{{verb="{verb}"}}', 0) for verb in verbs))


async def documents(renderer: Helper, name: str, whole: dict[str, Any]) -> Objects:
    """Return a server's objects as the chart makes them, ready to be sent."""
    server = {"name": "synapse", "namespace": name, "uid": "", "organisation": whole["organisation"]}
    found = []
    for each in await renderer.render(name, {"server": server, "spec": whole}):
        if each.found:
            # As large as the operator's own, with what it notes on each, but for the owner.
            metadata = {**each.found["metadata"], "namespace": name, "annotations": {
                **(each.found["metadata"].get("annotations") or {}), DIGEST: stamp(each.digest)}}  # fmt: skip
            found.append((place_of(each.found, name), json.dumps({**each.found, "metadata": metadata}).encode()))
    return found


async def raw(client: Client, names: list[str], objects: list[Objects]) -> float:
    """Apply all objects as fast as the API server takes them; return objects per second."""
    queue = iter([(name, place, body) for name, each in zip(names, objects, strict=True) for place, body in each])
    count = sum(map(len, objects))

    async def one_after_the_other() -> None:
        for name, place, body in queue:
            await client.apply(KINDS[place.kind], name, place.name, body)

    begun = time.perf_counter()
    await asyncio.gather(*(one_after_the_other() for _each in range(IN_FLIGHT)))
    return count / (time.perf_counter() - begun)


def by_helm(kubeconfig: Path, folder: Path, names: list[str], values: list[dict[str, Any]], count: int) -> float:
    """Install these servers with Helm, one after the other; return objects per second."""
    begun = time.perf_counter()
    for name, each in zip(names, values, strict=True):
        file = folder / "values.json"
        file.write_text(json.dumps(each))
        words = ["upgrade", "--install", "synapse", str(CHART), "--namespace", name, "--values", str(file)]
        subprocess.run(
            [str(tools.find("helm")), *words, "--kubeconfig", str(kubeconfig)],
            check=True, capture_output=True, env={"HOME": str(folder), "PATH": os.defpath},
        )  # fmt: skip
    return count / (time.perf_counter() - begun)


async def defaulted(fleet: Fleet, number: int) -> dict[str, Any]:
    """Return a spec with what the API server adds to it, without making the server."""
    name = (await fleet.make_namespaces(1, labels=False))[0]
    whole = {"apiVersion": "hearth.host/v1", "kind": "MatrixServer", "metadata": {"name": "synapse", "namespace": name}}
    path = f"/apis/hearth.host/v1/namespaces/{name}/matrixservers"
    body = json.dumps({**whole, "spec": spec(number)}).encode()
    sent = await fleet.client._send(
        "create", "POST", path, params={"dryRun": "All"}, body=body, content="application/json"
    )
    return dict(json.loads(sent)["spec"])


class Bench:
    """One run. `found` becomes the JSON line."""

    def __init__(self, cluster: Cluster, operator: Operator, fleet: Fleet, renderer: Helper, folder: Path) -> None:
        self.cluster, self.operator, self.fleet, self.renderer, self.folder = cluster, operator, fleet, renderer, folder
        self.names: list[str] = []
        self.found: dict[str, Any] = {"servers": SERVERS}
        self.begun = time.monotonic()
        self.step = ""

    async def run(self) -> dict[str, Any]:
        """Do everything; return what was found."""
        telling = asyncio.create_task(self.progress())
        try:
            await self.timed(self.rounds)
            # Children are watched here only when it matters: in the rounds it would be the operator that pays for it.
            async with self.fleet.watching([KINDS[name] for name in TOUCHED], SELECTOR):
                for step in (self.changes, self.steady, self.updates):
                    await self.timed(step)
            await self.timed(self.restart)
        finally:
            telling.cancel()
        return self.found

    async def timed(self, step: Callable[[], Awaitable[None]]) -> None:
        """Take one step and say how long it took."""
        self.step, begun = step.__name__, time.perf_counter()
        await step()
        took = self.found[f"{self.step}_took_s"] = round(time.perf_counter() - begun)
        say(f"{self.step}: {took} s, {self.memory()[0]:.0f} MB")

    async def progress(self) -> None:
        """Say how far it is, over and over."""
        while True:
            await asyncio.sleep(PROGRESS)
            done = {key: self.found[key] for key in ("changes", "updates") if key in self.found}
            more = "".join(f", {count} {key}" for key, count in done.items())
            text = f"{len(self.fleet.ready)} servers Ready, {len(self.fleet.unsettled)} not settled{more}"
            say(f"{time.monotonic() - self.begun:.0f} s, {self.step}: {text}")

    def late(self) -> bool:
        """Say whether no more changes may be made."""
        return time.monotonic() - self.begun > LIMIT - ENDING

    async def rounds(self) -> None:
        """Make the fleet, a part in each round, three ways; which of the first two goes first takes turns."""
        rates: dict[str, list[float]] = {"raw": [], "operator": [], "helm": []}
        cost: dict[str, list[float]] = {"raw": [], "operator": []}
        ready: list[float] = []
        whole = await defaulted(self.fleet, 0)
        count = len(await documents(self.renderer, NOBODY, whole))
        for number in range(ROUNDS):
            for way in ("raw", "operator") if number % 2 == 0 else ("operator", "raw"):
                names = await self.fleet.make_namespaces(SERVERS // ROUNDS)
                objects = [await documents(self.renderer, name, whole) for name in names] if way == "raw" else []
                before = self.processor()
                if way == "raw":
                    rates[way].append(await raw(self.fleet.client, names, objects))
                else:
                    rate, seconds = await self.by_operator(names, count)
                    rates[way].append(rate)
                    ready.append(seconds)
                await self.calm()
                cost[way].append((self.processor() - before) / (len(names) * count))
            rates["helm"].append(await self.by_helm(whole, count))
            await self.calm()
            say(f"round {number + 1}: " + ", ".join(f"{key} {found[-1]:.0f}/s" for key, found in rates.items()))
        self.found |= {"objects_per_server": count, "all_ready_s": round(max(ready), 2)}
        self.compared(rates, cost)

    def compared(self, rates: dict[str, list[float]], cost: dict[str, list[float]]) -> None:
        """Take note of the rates: of each round's ratio the middle one, because the machine's load changes."""
        for key, name in {"operator": "objects_per_s", "raw": "raw_per_s", "helm": "helm_per_s"}.items():
            self.found[name] = round(statistics.median(rates[key]), 1)
        for key in ("raw", "helm"):
            ratios = [ours / other for ours, other in zip(rates["operator"], rates[key], strict=True)]
            self.found[f"over_{key}"] = round(statistics.median(ratios), 3)
        ratios = [other / ours for ours, other in zip(cost["operator"], cost["raw"], strict=True)]
        self.found |= {
            "over_raw_by_processor": round(statistics.median(ratios), 3),
            "raw_cpu_ms_per_object": round(1000 * statistics.median(cost["raw"]), 2),
            "operator_cpu_ms_per_object": round(1000 * statistics.median(cost["operator"]), 2),
        }

    def processor(self) -> float:
        """Return the CPU seconds that the cluster, the operator, its helper and this process have used."""
        found = [psutil.Process(each.pid) for each in self.cluster.processes.values()]
        own = psutil.Process(self.operator.pid)
        times = [each.cpu_times() for each in [*found, own, *own.children(), psutil.Process()]]
        return sum(each.user + each.system for each in times)

    async def by_helm(self, whole: dict[str, Any], each: int) -> float:
        """Install a few servers with Helm; return objects per second."""
        names = await self.fleet.make_namespaces(BY_HELM)
        server = {"name": "synapse", "uid": "", "organisation": whole["organisation"]}
        values = [{"server": {**server, "namespace": name}, "spec": whole} for name in names]
        kubeconfig = self.cluster.kubeconfig
        return await asyncio.to_thread(by_helm, kubeconfig, self.folder, names, values, each * BY_HELM)

    async def by_operator(self, names: list[str], each: int) -> tuple[float, float]:
        """Make servers; return children per second, from the first server's making on, and seconds to all Ready."""
        count = len(names)
        before = self.operator.numbers()
        begun, wall = time.perf_counter(), time.time()
        await self.fleet.make_servers(names)
        last = await self.fleet.until_ready(names)
        # Counted by the operator itself: asking it often, or watching all children here, would cost it what it needs.
        after = self.operator.numbers()
        took = after["hearth_operator_applied_timestamp_seconds"] - wall
        if (made := int(after.get(NEW, 0) - before.get(NEW, 0))) != count * each:
            raise RuntimeError(f"{made} children were made for {count} servers of {each} each")
        self.found["writes_per_server"] = round((requests(after, WRITES) - requests(before, WRITES)) / count, 1)
        self.names += names
        return count * each / took, last - begun

    async def calm(self) -> None:
        """Wait until what was made has settled, so that one way does not pay for another."""
        await until(self.idle, every=0.5)
        while True:
            pods = self.cluster.api.request("GET", "/api/v1/pods", params={"fieldSelector": "status.phase=Pending"})
            if not pods["items"]:
                return
            await asyncio.sleep(0.5)

    async def changes(self) -> None:
        """Measure from a change to its first write: one by one, then all at once."""
        waits: list[float] = []
        for number, name in enumerate(self.names[:ONE_BY_ONE]):
            if waits and self.late():
                break
            self.fleet.first.clear()
            taken = await self.fleet.change(name, 60 + number)
            self.fleet.ready.pop(name, None)
            waits.append(await self.first_write(name) - taken)
            # One by one: what a change sets in motion (a pod is replaced) has ended before the next.
            await self.fleet.until_ready([name])
            self.found["changes"] = len(waits)
        await self.fleet.quiet()
        self.fleet.first.clear()
        taken_at = dict(
            zip(self.names, await asyncio.gather(*(self.fleet.change(name, 500) for name in self.names)), strict=True)
        )
        burst = [await self.first_write(name) - taken_at[name] for name in self.names]
        await self.fleet.quiet()
        self.found |= {"change_p99_s": p99(waits), "change_median_s": round(statistics.median(waits), 4)}
        self.found |= {"burst_p99_s": p99(burst)}

    async def first_write(self, name: str) -> float:
        await until(lambda: name in self.fleet.first, every=0.02, seconds=120)
        return self.fleet.first[name]

    async def updates(self) -> None:
        """Change servers over and over and look at the memory."""
        await self.settle()
        before = self.memory()
        self.found |= {"updates": 0, "rss_before_mb": round(before[0], 1), "rss_curve": []}
        for number in range(max(1, UPDATES // len(self.names))):
            if self.late():
                break
            await asyncio.gather(*(self.fleet.change(name, 1000 + number) for name in self.names))
            await self.fleet.quiet(seconds=1)
            self.found["updates"] += len(self.names)
            self.found["rss_curve"].append([self.found["updates"], round(self.memory()[0], 1)])
        await self.settle()
        after = self.memory()
        self.found |= {"growth_percent": round(100 * (after[0] / before[0] - 1), 2)}
        self.found |= {"rss_mb": round(after[0], 1), "helper_rss_mb": round(after[1], 1)}

    async def settle(self) -> None:
        """Wait until every server is Ready and settled, and nothing was told for longer than a status may be late."""
        await self.fleet.quiet(seconds=8)
        await self.calm()
        await until(lambda: not self.fleet.unsettled and time.perf_counter() - self.fleet.told > 8)

    def memory(self) -> tuple[float, float]:
        """Return the resident memory of the operator and of its helper, in MB."""
        process = psutil.Process(self.operator.pid)
        own = process.memory_info().rss / 1e6
        return own, sum(child.memory_info().rss for child in process.children()) / 1e6

    async def steady(self) -> None:
        """Count requests while nothing changes."""
        await self.settle()
        before = self.operator.numbers()
        await asyncio.sleep(STEADY)
        after = self.operator.numbers()
        self.found |= {
            "steady_s": STEADY,
            "steady_writes": requests(after, WRITES) - requests(before, WRITES),
            "steady_reads": requests(after, READS) - requests(before, READS),
        }

    def idle(self) -> bool:
        """Say whether no server waits for its turn or has it."""
        numbers = self.operator.numbers()
        return not (numbers["hearth_operator_queue"] or numbers["hearth_operator_working"])

    async def restart(self) -> None:
        """Count requests of a new operator that finds everything as it should be."""
        self.operator.end()
        begun = time.perf_counter()
        self.operator.log.unlink()
        self.operator.start()
        await asyncio.to_thread(self.operator.wait_for, r"saw \d+ servers", seconds=120)
        await until(self.idle, every=0.2)
        took = time.perf_counter() - begun
        await asyncio.sleep(10)
        numbers = self.operator.numbers()
        relists = [count for name, count in numbers.items() if "relists_total" in name]
        self.found |= {
            "restart_s": round(took, 2),
            "restart_rss_mb": round(self.memory()[0], 1),
            "restart_writes": requests(numbers, WRITES),
            "restart_lists": requests(numbers, ("list",)),
            "restart_reads_of_a_kind": int(max(relists)),
        }


def p99(found: list[float]) -> float:
    """Return the 99th percentile."""
    return round(sorted(found)[min(len(found) - 1, round(0.99 * len(found)))], 4)


def room(cluster: Cluster) -> None:
    """Add nodes so that every server's pod finds a place: what can't be scheduled would never be Ready."""
    pods = SERVERS * 2 + ROUNDS * BY_HELM
    cluster.api.apply(*[node(f"room-{number}", cpu="8192", memory="16Ti") for number in range(math.ceil(pods / PODS))])


async def main() -> None:
    """Run it all, and print one line of JSON."""
    with tempfile.TemporaryDirectory(prefix="bench-") as made:
        await measure(Path(made))


async def measure(folder: Path) -> None:
    """Run it all with this folder for what is written on the way."""
    with (
        Cluster() as cluster,
        Homeservers() as stand_in,
        Operator(cluster.kubeconfig, folder, stand_in.address, "--diagnose-after", "15") as operator,
    ):
        present = [kind for kind in KINDS.values() if kind.namespaced]
        names = [each for kind in present for each in (kind.api_version, f"{kind.api_version}/{kind.name}")]
        renderer = Helper(helper(), CHART, version="v1.34.4", api_versions=names)
        room(cluster)
        await asyncio.to_thread(operator.wait_for, r"saw \d+ servers")
        async with watched(cluster.kubeconfig) as fleet:
            found = await Bench(cluster, operator, fleet, renderer, folder).run()
            await renderer.close()
        say(json.dumps(found))


if __name__ == "__main__":
    uvloop.run(main())
