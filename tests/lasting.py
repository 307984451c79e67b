"""What lasts as long as a `with` block: started at its begin, stopped at its end or when the start failed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self


class Lasting(ABC):
    """Programs of a test. `stop` must also end a start that came only half-way."""

    @abstractmethod
    def start(self) -> float | None:
        """Start everything. Some tell the seconds that it took."""

    @abstractmethod
    def stop(self) -> None:
        """End everything."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
