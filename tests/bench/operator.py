"""The operator with a fleet on a real API server, against the raw limit and against Helm, in one run.

In each round the same number of servers is made three ways: their objects applied as fast as 16 requests in flight can
(the raw limit), by the operator, and (fewer) by `helm upgrade --install` of the same chart. Nodes and pods are kwok's;
what a homeserver would answer comes from a declared stand-in (`tests/operator/homeservers.py`), other software's
controllers are played by `tests/cluster/stand_ins.py`. SERVERS, UPDATES and STEADY (seconds) make it smaller.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
import uvloop

from provisioning.operator.children import KINDS, Place
from provisioning.operator.kube.client import Client
from provisioning.operator.ownership import SELECTOR
from provisioning.operator.render import Helper
from provisioning.operator.rendering import place_of
from provisioning.operator.settings import CHART
from tests.bench.fleet import Fleet, spec, until, watched
from tests.cluster import tools
from tests.cluster.launch import Cluster
from tests.operator.homeservers import Homeservers
from tests.operator.process import Operator
from tests.operator.render_helper import helper

SERVERS = int(os.environ.get("SERVERS", "500"))
UPDATES = int(os.environ.get("UPDATES", "10000"))
STEADY = float(os.environ.get("STEADY", "600"))
ROUNDS = int(os.environ.get("ROUNDS", "5"))
BY_HELM = 4  # servers in a round: Helm is slow
ONE_BY_ONE = min(100, SERVERS)
IN_FLIGHT = 16
WRITES, READS = ("patch", "create", "delete"), ("get", "list")
Objects = list[tuple[Place, bytes]]
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
    found = [each.found for each in await renderer.render(name, {"server": server, "spec": whole}) if each.found]
    return [
        (place_of(each, name), json.dumps({**each, "metadata": {**each["metadata"], "namespace": name}}).encode())
        for each in found
    ]


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
        self.rss: list[float] = []

    async def rounds(self) -> None:
        """Make the fleet, a part in each round, three ways."""
        rates: dict[str, list[float]] = {"raw": [], "operator": [], "helm": []}
        ready: list[float] = []
        whole = await defaulted(self.fleet, 0)
        each = SERVERS // ROUNDS
        for number in range(ROUNDS):
            names = await self.fleet.make_namespaces(each)
            objects = [await documents(self.renderer, name, whole) for name in names]
            rates["raw"].append(await raw(self.fleet.client, names, objects))
            await self.calm()
            rate, seconds = await self.by_operator(each, len(objects[0]))
            rates["operator"].append(rate)
            ready.append(seconds)
            await self.calm()
            names = await self.fleet.make_namespaces(BY_HELM)
            server = {"name": "synapse", "uid": "", "organisation": whole["organisation"]}
            values = [{"server": {**server, "namespace": name}, "spec": whole} for name in names]
            count = len(objects[0]) * BY_HELM
            kubeconfig = self.cluster.kubeconfig
            rates["helm"].append(await asyncio.to_thread(by_helm, kubeconfig, self.folder, names, values, count))
            await self.calm()
            say(f"round {number + 1}: " + ", ".join(f"{key} {found[-1]:.0f}/s" for key, found in rates.items()))
        middle = {key: statistics.median(found) for key, found in rates.items()}
        self.found |= {
            "objects_per_server": len(objects[0]),
            "objects_per_s": round(middle["operator"], 1),
            "raw_per_s": round(middle["raw"], 1),
            "helm_per_s": round(middle["helm"], 1),
            "over_raw": round(middle["operator"] / middle["raw"], 3),
            "over_helm": round(middle["operator"] / middle["helm"], 2),
            "all_ready_s": round(max(ready), 2),
        }

    async def by_operator(self, count: int, each: int) -> tuple[float, float]:
        """Make servers; return children per second, from the first server's making on, and seconds to all Ready."""
        names = await self.fleet.make_namespaces(count)
        before = self.operator.numbers()
        begun, wall = time.perf_counter(), time.time()
        making = asyncio.create_task(self.fleet.make_servers(names))
        # Counted by the operator itself: watching all children here too would cost it what it needs.
        await until(lambda: self.made(before) >= count * each, every=0.5)
        took = self.operator.numbers()["hearth_operator_applied_timestamp_seconds"] - wall
        await making
        last = await self.fleet.until_ready(names)
        await self.fleet.quiet()
        after = self.operator.numbers()
        self.found["writes_per_server"] = round((requests(after, WRITES) - requests(before, WRITES)) / count, 1)
        self.names += names
        return count * each / took, last - begun

    def made(self, before: dict[str, float]) -> int:
        """Return how many children the operator has made since."""
        return int(self.operator.numbers().get(NEW, 0) - before.get(NEW, 0))

    async def calm(self) -> None:
        """Wait until what was made has settled, so that one way does not pay for another."""
        await self.fleet.quiet()
        while True:
            pods = self.cluster.api.request("GET", "/api/v1/pods", params={"fieldSelector": "status.phase=Pending"})
            if not pods["items"]:
                return
            await asyncio.sleep(0.5)

    async def changes(self) -> None:
        """Measure from a change to its first write: one by one, then all at once."""
        waits = []
        for number, name in enumerate(self.names[:ONE_BY_ONE]):
            self.fleet.first.clear()
            taken = await self.fleet.change(name, 60 + number)
            self.fleet.ready.pop(name, None)
            waits.append(await self.first_write(name) - taken)
            # One by one: what a change sets in motion (a pod is replaced) has ended before the next.
            await self.fleet.until_ready([name])
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
        await until(lambda: name in self.fleet.first, every=0.001, seconds=120)
        return self.fleet.first[name]

    async def updates(self) -> None:
        """Change servers over and over and look at the memory."""
        await self.settle()
        before = self.memory()
        done = 0
        for number in range(max(1, UPDATES // len(self.names))):
            await asyncio.gather(*(self.fleet.change(name, 1000 + number) for name in self.names))
            await self.fleet.quiet(seconds=1)
            done += len(self.names)
        await self.settle()
        after = self.memory()
        self.found |= {"updates": done, "growth_percent": round(100 * (after[0] / before[0] - 1), 2)}
        self.found |= {"rss_mb": round(after[0], 1), "helper_rss_mb": round(after[1], 1)}

    async def settle(self) -> None:
        await self.fleet.quiet(seconds=8)
        await self.calm()

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
            "restart_writes": requests(numbers, WRITES),
            "restart_lists": requests(numbers, ("list",)),
            "restart_reads_of_a_kind": int(max(relists)),
        }


def p99(found: list[float]) -> float:
    """Return the 99th percentile."""
    return round(sorted(found)[min(len(found) - 1, round(0.99 * len(found)))], 4)


async def main() -> None:
    """Run it all, and print one line of JSON."""
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    with (
        Cluster() as cluster,
        Homeservers() as stand_in,
        Operator(cluster.kubeconfig, folder, stand_in.address, "--diagnose-after", "15") as operator,
    ):
        present = [kind for kind in KINDS.values() if kind.namespaced]
        names = [each for kind in present for each in (kind.api_version, f"{kind.api_version}/{kind.name}")]
        renderer = Helper(helper(), CHART, version="v1.34.4", api_versions=names)
        await asyncio.to_thread(operator.wait_for, r"saw \d+ servers")
        async with watched(cluster.kubeconfig, [KINDS[name] for name in TOUCHED], SELECTOR) as fleet:
            bench = Bench(cluster, operator, fleet, renderer, folder)
            for step in (bench.rounds, bench.changes, bench.steady, bench.updates, bench.restart):
                begun = time.perf_counter()
                await step()
                say(f"{step.__name__}: {time.perf_counter() - begun:.0f} s, {bench.memory()[0]:.0f} MB")
            await renderer.close()
        say(json.dumps(bench.found))


if __name__ == "__main__":
    uvloop.run(main())
