"""Each process's configuration, read by Synapse itself in every release that tests have: who does what."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.chart import values
from tests.chart.processes import Fleet, environment, pods_of
from tests.chart.render import render
from tests.chart.s3 import s3_provider
from tests.prepare import VERSIONS

pytestmark = pytest.mark.xdist_group("chart-configuration")
SERVERS = ("monolith", "workers", "managed")
READ = """
import json, sys
from synapse.config.homeserver import HomeServerConfig
found = {}
for server, pods in json.load(sys.stdin).items():
    for pod, files in pods.items():
        config = HomeServerConfig.load_config("", [word for file in files for word in ("--config-path", file)])
        streams = ("events", "typing", "to_device", "account_data", "receipts", "presence", "push_rules")
        found.setdefault(server, {})[pod] = {
            "name": config.worker.instance_name,
            "writes": [each for each in streams if config.worker.instance_name in getattr(config.worker.writers, each)],
            "media": config.media.can_load_media_repo,
            "sends": config.worker.send_federation,
            "background": config.worker.run_background_tasks,
            "media_jobs": getattr(config.media, "media_instance_running_background_jobs", None),
            "redis": config.redis.redis_enabled,
            "password": bool(getattr(config.redis, "redis_password", None)),
            "replication": bool(config.worker.worker_replication_secret),
            "macaroon": bool(config.key.macaroon_secret_key),
            "registration": bool(config.registration.registration_shared_secret),
            "metrics": config.metrics.enable_metrics,
            "people": config.registration.enable_registration,
            "upload": getattr(config.media, "max_upload_size", None),  # only where media is
            "users": config.server.max_mau_value,
            "federates": config.federation.federation_domain_whitelist is None,
        }
json.dump(found, sys.stdout)
"""


@pytest.fixture(scope="module", params=VERSIONS)
def read(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """What Synapse reads: for each server, for each pod, a few of its settings."""
    version = request.param
    with contextlib.ExitStack() as stack:
        files: dict[str, dict[str, list[str]]] = {}
        for name in SERVERS:
            rendered = render(getattr(values, name)())
            fleet = stack.enter_context(Fleet(rendered, os.environ["DATABASE_URL"], version))
            pods = pods_of(rendered)
            fleet.write_all(*pods)
            files[name] = {pod: fleet.files(pod) for pod in pods}
        variables = {"PATH": os.environ["PATH"], "PYTHONPATH": str(s3_provider())}
        argv = [str(environment(version)), "-c", READ]
        done = subprocess.run(
            argv, input=json.dumps(files), env=variables, capture_output=True, text=True, timeout=200, check=False
        )
        assert done.returncode == 0, done.stderr
        yield json.loads(done.stdout)


def test_each_stream_has_one_writer_and_each_writer_its_stream(read: dict[str, Any]) -> None:
    pods = read["workers"]
    writes = {pod: each["writes"] for pod, each in pods.items() if each["writes"]}
    assert writes == {
        "synapse-event-persister-0": ["events"],
        "synapse-event-persister-1": ["events"],
        "synapse-typing-0": ["typing"],
        "synapse-to-device-0": ["to_device"],
        "synapse-account-data-0": ["account_data"],
        "synapse-receipts-0": ["receipts"],
        "synapse-presence-0": ["presence"],
        "synapse-push-rules-0": ["push_rules"],
    }
    assert {each["name"] for each in pods.values()} == {"master", *pods} - {"synapse-main-0"}


def test_without_workers_the_main_process_does_everything(read: dict[str, Any]) -> None:
    (main,) = read["monolith"].values()
    assert len(main["writes"]) == 7
    assert {key: main[key] for key in ("media", "sends", "background", "redis")} == {
        "media": True, "sends": True, "background": True, "redis": False,
    }  # fmt: skip


def test_duties_lie_where_their_process_is(read: dict[str, Any]) -> None:
    pods = read["workers"]
    assert [pod for pod, each in pods.items() if each["sends"]] == [
        "synapse-federation-sender-0",
        "synapse-federation-sender-1",
    ]
    assert [pod for pod, each in pods.items() if each["media"]] == ["synapse-media-0", "synapse-media-1"]
    assert {each["media_jobs"] for each in pods.values() if each["media"]} == {"synapse-media-0"}
    assert [pod for pod, each in pods.items() if each["background"]] == ["synapse-main-0"]
    assert [pod for pod, each in read["managed"].items() if each["media"]] == ["synapse-main-0"]


def test_every_process_has_its_secrets_and_limits(read: dict[str, Any]) -> None:
    for name, pods in read.items():
        for each in pods.values():
            assert all(each[key] for key in ("macaroon", "registration", "metrics", "federates"))
            assert (each["password"], each["replication"]) == (name != "monolith", name != "monolith")
            assert (each["people"], each["upload"], each["users"]) == (False, 104857600 if each["media"] else None, 50)
