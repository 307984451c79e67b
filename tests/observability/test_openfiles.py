"""How many files a process may open: raised towards the hard limit, never lowered."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

RAISE = """
import resource, sys
from observability import openfiles
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
print(openfiles.raise_limit(int(sys.argv[3])), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "expected"),
    [
        pytest.param(256, 1000, 500, "500 500 1000", id="raised to what is wanted"),
        pytest.param(256, 1000, 5000, "1000 1000 1000", id="raised to the hard limit"),
        pytest.param(800, 1000, 500, "800 800 1000", id="a higher one stays"),
    ],
)
def test_it_works(soft: int, hard: int, wanted: int, expected: str) -> None:
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] >= hard
    command = [sys.executable, "-c", RAISE, str(soft), str(hard), str(wanted)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONPATH": "platform"})
    assert done.stdout.split() == expected.split()
