"""A bounded run of the fuzzer, and that it would find something."""

from __future__ import annotations

import pytest

from security.streams import Opener
from tests.security.streams import fuzz


@pytest.mark.parametrize("seed", [1, 2])
def test_no_crash_and_no_forgery(seed: int) -> None:
    seen = fuzz.run(2_500, seed)
    assert set(seen) == {"Corrupted", "Truncated", "UnknownFormat", "WrongContext", "WrongKey"}


def test_it_finds_an_accepted_forgery(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Opener, "open_into", lambda *_: None)
    with pytest.raises(fuzz.Fault, match="accepted"):
        fuzz.run(2_500, 1)
