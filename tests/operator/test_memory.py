"""What a burst has needed is given back once it is over, and only then."""

from __future__ import annotations

import asyncio

from provisioning.operator.memory import give_back, trim


def test_memory_is_given_back_once_after_work_and_never_during_it() -> None:
    async def run() -> list[tuple[bool, float]]:
        state = {"busy": True, "done": 0.0, "looks": 0}
        given: list[tuple[bool, float]] = []

        def busy() -> bool:
            state["looks"] += 1
            return bool(state["busy"])

        async def looked(times: int) -> None:
            last = state["looks"] + times
            async with asyncio.timeout(60):
                for _look in iter(lambda: state["looks"] >= last, True):
                    await asyncio.sleep(0)

        def give() -> None:
            given.append((bool(state["busy"]), state["done"]))

        giving = asyncio.create_task(give_back(busy, lambda: state["done"], trim=give, every=0))
        await looked(3)
        state["done"] = 7.0
        await looked(3)
        state["busy"] = False
        await looked(3)
        state["done"] = 8.0
        await looked(3)
        giving.cancel()
        await asyncio.gather(giving, return_exceptions=True)
        return given

    assert asyncio.run(run()) == [(False, 7.0), (False, 8.0)]


def test_the_c_library_takes_it() -> None:
    trim()
