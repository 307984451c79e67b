"""How long the chart takes to render, how much it makes, and what kube-score thinks of it. The last line is JSON.

`render_s` is the median of whole `helm template` runs (a process each) of the smallest server, `objects` what it makes,
`critical` kube-score's critical findings that tests/chart/kube_score.py does not explain, over all kinds of servers.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from provisioning.chart.schema import FOLDER
from tests.chart import kube_score, values
from tests.chart.render import Rendered, values_file
from tests.cluster import tools

RUNS = 15
GOAL_S = 0.25
SERVERS = {"monolith": values.monolith, "workers": values.workers, "managed": values.managed}


def main() -> int:
    """Measure, and return the exit code: 1 where a goal is missed."""
    figures: dict[str, Any] = {}
    findings: list[str] = []
    checks = 0
    with tempfile.TemporaryDirectory(prefix="hearth-bench-") as folder:
        for name, spec in SERVERS.items():
            seconds, rendered = render(values_file(Path(folder), spec()))
            lines = score(rendered, Path(folder))
            checks += len(lines)
            findings += [line for line in lines if line.startswith("[CRITICAL]")]
            figures |= {f"{name}_s": round(seconds, 4), f"{name}_objects": len(rendered)}
            say(f"{name}: {len(rendered)} objects in {seconds:.3f} s (median of {RUNS} runs)")
    unexplained = [line for line in findings if not kube_score.explained(line)]
    for line in unexplained:
        say(line)
    result = {
        "bench": "chart",
        "render_s": figures["monolith_s"],
        "objects": figures["monolith_objects"],
        "critical": len(unexplained),
        "critical_explained": len(findings) - len(unexplained),
        "checks": checks,
        **figures,
    }
    say(json.dumps(result))
    return int(result["render_s"] > GOAL_S or bool(unexplained))


def render(file: Path) -> tuple[float, Rendered]:
    """Return the median of seconds, and what was rendered."""
    argv = [str(tools.find("helm")), "template", "synapse", str(FOLDER), "--namespace", "hearth", "--values", str(file)]
    taken = []
    for _ in range(RUNS):
        began = time.perf_counter()
        done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken), Rendered(done.stdout)


def score(rendered: Rendered, folder: Path) -> list[str]:
    """Return kube-score's lines, one for each check of each object."""
    file = folder / "objects.yaml"
    file.write_text(rendered.text)
    argv = [str(tools.find("kube-score")), "score", str(file), "-o", "ci", "--kubernetes-version", "v1.34"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    lines = [line for line in done.stdout.splitlines() if line.startswith("[") and "[SKIPPED]" not in line]
    assert lines, done.stderr
    return lines


def say(text: str) -> None:
    """Print one line."""
    print(text, flush=True)  # noqa: T201 (this is a command)


if __name__ == "__main__":
    sys.exit(main())
