"""The operator's settings: options of its command, each also an environment variable."""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from provisioning.operator.kube.access import ACCOUNT
from provisioning.operator.reconcile import Pace

HERE = Path(__file__).resolve().parent
CHART = HERE.parent / "chart"
AGENT = "http://backup-agent.{namespace}.svc:8009"
RECOVERY = "http://recovery.{namespace}.svc:8009"
PROBE = "http://synapse-main.{namespace}.svc:8008"


@dataclass(frozen=True)
class Settings:
    """What one operator is started with. `namespace`: where its Lease lies."""

    kubeconfig: str
    account: Path
    namespace: str
    identity: str
    lease: str
    chart: Path
    helper: Path | None
    helm: Path | None
    host: str
    port: int
    probe: str
    agent: str
    recovery: str
    in_flight: int
    pace: Pace
    log: str


def parse(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Settings:
    """Read the command's options."""
    parser = argparse.ArgumentParser(prog="provisioning.operator", description="Hearth's operator for Kubernetes.")

    def option(name: str, default: str, text: str) -> None:
        variable = "OPERATOR_" + name.upper().replace("-", "_")
        parser.add_argument(f"--{name}", default=environment.get(variable, default), help=f"{text} ({variable})")

    option("kubeconfig", "", "a kubeconfig; without it KUBECONFIG, then the pod's service account")
    option("account", str(ACCOUNT), "the folder of the pod's service account")
    option("namespace", "hearth", "the namespace of the operator's Lease")
    option("identity", f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}", "this operator's name in the Lease")
    option("lease", "hearth-operator", "the name of the Lease")
    option("chart", str(CHART), "the folder of the chart of one server")
    option("helper", str(HERE / "render" / "render"), "the render helper; without it the helm command is used")
    option("helm", "helm", "the helm command")
    option("host", "127.0.0.1", "the address that health and metrics are served on")
    option("port", "8080", "and the port; 0 takes a free one")
    option("probe", PROBE, "how a server's Synapse is reached")
    option("agent", AGENT, "how a server's backup agent is reached")
    option("recovery", RECOVERY, "how the pod is reached that brings a server back")
    option("in-flight", "16", "requests to the API server at once")
    option("diagnose-after", "15", "seconds before it is asked why a server does not come up")
    option("probe-again", "300", "seconds between two looks at whether a server that is Ready still answers")
    option("log", "info", "how much to log: debug, info or warning")
    return _settings(parser.parse_args(arguments))


def _settings(found: argparse.Namespace) -> Settings:
    helper, helm = Path(found.helper), shutil.which(found.helm)
    return Settings(
        kubeconfig=found.kubeconfig,
        account=Path(found.account),
        namespace=found.namespace,
        identity=found.identity,
        lease=found.lease,
        chart=Path(found.chart),
        helper=helper if os.access(helper, os.X_OK) else None,
        helm=Path(helm) if helm else None,
        host=found.host,
        port=int(found.port),
        probe=found.probe,
        agent=found.agent,
        recovery=found.recovery,
        in_flight=int(found.in_flight),
        pace=Pace(
            diagnose_after=float(found.diagnose_after),
            diagnose_again=max(2.0, 2 * float(found.diagnose_after)),
            probe_again=float(found.probe_again),
        ),
        log=found.log,
    )
