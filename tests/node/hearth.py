"""Hearth itself on the real node: its staff make the node's cluster a region, and Alice has a server there.

Everything is done on its pages, over HTTP, as people do it in a browser.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.bench.floor import free_ports
from tests.cluster.api import Api
from tests.forms import forms, submit
from tests.node.namespaces import STATE
from tests.stack import ROOT, Stack
from tests.way import PASSWORD, Person, expect, text

CLUSTERS = "/admin/provisioning/cluster/"
STORES, PLACES = "/admin/backups/store/", "/admin/backups/regionstores/"
REGIONS = "/admin/provisioning/region/"
CODE = "node"
BASE = "node.example"
TOKEN_SECONDS = 24 * 3600
ROW = re.compile(r'<tr>\s*<td><a href="([^"]+)">([^<]+)</a></td>\s*<td>\s*([^<]*?)\s*<')
"""One line of “What was done”: the log's path, the operation, and how it ended."""


class Done(NamedTuple):
    """One operation as the page shows it."""

    log: str
    kind: str
    state: str


def start(folder: Path, settings: Mapping[str, str]) -> Stack:
    """Start Hearth as `make run` does, in the run's folder. A deleted server goes at once."""
    stack = Stack(folder / STATE, free_ports(1)[0], {"HEARTH_DELETE_GRACE_HOURS": "0", **settings})
    stack.start()
    return stack


def kubeconfig(api: Api, url: str, authority: Path) -> str:
    """Return the kubeconfig of Hearth's own account of the chart, whole in itself."""
    token = api.token("hearth", "hearth-provider", seconds=TOKEN_SECONDS)
    cluster = {"server": url, "certificate-authority-data": base64.b64encode(authority.read_bytes()).decode()}
    found = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "node", "cluster": cluster}],
        "users": [{"name": "hearth", "user": {"token": token}}],
        "contexts": [{"name": "node", "context": {"cluster": "node", "user": "hearth"}}],
        "current-context": "node",
    }
    return str(yaml.safe_dump(found))


def manage(stack: Stack, code: str) -> None:
    """Run a few lines of Python on the Hearth that runs."""
    words = [sys.executable, "-m", "config.embedded.manage", "shell", "--verbosity", "0", "--command", code]
    subprocess.run(words, cwd=ROOT, env=stack.environment(), check=True, timeout=120)


class Staff(Person):
    """The first of the staff."""

    def claim(self) -> None:
        """Make the account by the link that the start printed."""
        submit(self.browser, self.get(self.stack.link("/staff/claim/")), email=self.email, password=PASSWORD)
        self.add_authenticator()

    def make_region(self, access: str, **typed: str) -> None:
        """Make a Kubernetes region, have it checked, and open it to servers."""
        identity = {"code": CODE, "name": "The real node", "base_domain": BASE}
        page = submit(self.browser, self.get(f"{CLUSTERS}add/"), kubeconfig=access, **identity, **typed)
        expect(page, "The region is made, and closed.")
        page = self.get(CLUSTERS)
        listed = next(each for each in forms(page.text) if "_selected_action" in each.names)
        chosen = re.search(r'name="_selected_action" value="([^"]+)"', page.text)
        assert chosen is not None, text(page.text)
        check = {**listed.fields, "action": "check_region", "_selected_action": chosen[1]}
        page = self.browser.post(CLUSTERS, data=check, headers={"Referer": str(page.url)})
        expect(page, "everything that Hearth needs is there.")
        found = re.findall(rf'href="({REGIONS}[^"/]+/change/[^"]*)"[^>]*>\s*The real node', self.get(REGIONS).text)
        page = submit(self.browser, self.get(found[0]), name="The real node", open="on")
        expect(page, "was changed successfully")

    def make_store(self, **typed: str) -> None:
        """Make a store, and have the region's servers backed up there."""
        page = submit(self.browser, self.get(f"{STORES}add/"), kind="s3", **typed)
        expect(page, "was added successfully")
        page = self.get(f"{PLACES}add/")
        form = next(each for each in forms(page.text) if "first" in each.names)
        store = re.search(rf'<option value="([^"]+)"[^>]*>\s*{re.escape(typed["name"])}', page.text)
        region = re.search(r'<option value="([^"]+)"[^>]*>\s*The real node', page.text)
        assert store is not None, text(page.text)
        assert region is not None, text(page.text)
        sent = {**form.fields, "region": region[1], "first": store[1], "second": ""}
        answer = self.browser.post(f"{PLACES}add/", data=sent, headers={"Referer": str(page.url)})
        expect(answer, "was added successfully")


class Alice(Person):
    """The owner of one server on the node. `server` is the path of its page, and `server_name` its name."""

    server = ""
    server_name = f"alice.{BASE}"

    @property
    def namespace(self) -> str:
        return f"hearth-{self.server.split('/')[-2]}"

    def orders(self, plan: str) -> None:
        """Make an organisation with a plan, and a server in the node's region."""
        organisation = self.create_organisation("Alice and friends", plan)
        self.server = self.create_server(organisation, "alice", region=CODE)

    def newest(self) -> Done | None:
        """Return what was begun last with the server."""
        # By the browser itself: the page says 286 once there is nothing more to wait for.
        found = ROW.search(self.browser.get(f"{self.server}live/").text)
        return Done(*found.groups()) if found else None

    def wait_done(self, kind: str, before: Done | None = None, *, limit: float) -> None:
        """Wait until an operation after `before` is done, and see that it is one of `kind`."""
        end = time.monotonic() + limit
        while (found := self.newest()) is None or (before and found.log == before.log) or found.state != "Done":
            assert found is None or found.state not in {"Failed", "Cancelled"}, self.story()
            assert time.monotonic() < end, f"after {limit:.0f} s “{kind}” is not done:\n{self.story()}"
            time.sleep(0.2)
        assert found.kind == kind, f"“{found.kind}” was done, not “{kind}”"

    def carry_out(self, kind: str, act: Callable[[], Any], phase: str, *, limit: float) -> None:
        """Do something with the server, watch the operation to its end, and then the server's phase."""
        before = self.newest()
        act()
        self.wait_done(kind, before, limit=limit)
        self.wait_for(self.server, phase, limit)

    def suspend(self, message: str) -> None:
        """Close it."""
        expect(submit(self.browser, self.get(f"{self.server}suspend/"), message=message), "is being suspended")

    def resume(self) -> None:
        """Open it again."""
        expect(submit(self.browser, self.get(self.server), "/resume/"), "opens again")

    def change_version(self, version: str) -> None:
        """Have another Synapse."""
        expect(submit(self.browser, self.get(f"{self.server}upgrade/"), version=version), "is being upgraded")

    def change_size(self, *, vcpu: int, memory_gb: int, disk_gb: int, object_gb: int) -> None:
        """Have another size."""
        page = self.get(f"{self.server}size/")
        size = {"vcpu": vcpu, "memory_mb": memory_gb, "disk_gb": disk_gb, "object_gb": object_gb}  # shown as GB
        sent = submit(self.browser, page, **{key: str(value) for key, value in size.items()})
        expect(sent, "gets its new size")

    def delete(self) -> None:
        """Delete it."""
        self.delete_server(self.server, self.server_name)

    def story(self) -> str:
        """Return what the pages say of the server and of its last operation, for a failure."""
        found = self.newest()
        pages = [self.server, *([found.log] if found else [])]
        return "\n".join(text(self.get(each).text) for each in pages)


def resize(stack: Stack, server: str, **sizes: int) -> None:
    """Want what staff say of a plan, as the verbs write it. The sweep finds it."""
    code = f"""
from django.db.models import F
from tenants.models import Server
Server.objects.filter(pk={server!r}).update(generation=F("generation") + 1, **{json.dumps(sizes)})
"""
    manage(stack, code)
