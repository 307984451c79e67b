"""Two of the recoveries that `make bench BENCH=recoveries` does thirty of."""

from __future__ import annotations

from tests.backups.restore.busy import Busy
from tests.backups.restore.conftest import Server
from tests.backups.restore.recoveries import recover


def test_every_row_and_file_of_two_moments_comes_back(server: Server) -> None:
    found = recover(Busy(server).fill(2))

    assert found["recoveries"] == found["equal"] == 2
