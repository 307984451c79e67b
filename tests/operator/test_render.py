"""The resident helper renders as Helm does, over and over, whatever questions came before."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import pytest

from provisioning.chart.schema import defaulted
from provisioning.operator.render import HelmCommand, Helper, RenderError
from provisioning.operator.settings import CHART
from tests.chart import render, values
from tests.operator.process import helper_or_leave_out

VERSION = "v1.34.4"
KINDS = ["cert-manager.io/v1/Certificate", "monitoring.coreos.com/v1/ServiceMonitor"]
SPECS = {
    "the smallest": values.monolith(),
    "every group": values.workers(),
    "made elsewhere": values.managed(),
    "suspended": values.monolith(suspended={"message": "Back soon."}),
}
Step = Callable[[Helper], Coroutine[Any, Any, None]]


def resident() -> Helper:
    return Helper(helper_or_leave_out(), CHART, version=VERSION, api_versions=KINDS)


def asked(spec: Mapping[str, Any], namespace: str = render.NAMESPACE) -> dict[str, Any]:
    return values.values(defaulted(spec), namespace=namespace)


def with_helper(step: Step) -> None:
    async def run() -> None:
        helper = resident()
        try:
            await step(helper)
        finally:
            await helper.close()

    asyncio.run(run())


def test_the_helper_renders_what_the_helm_command_renders() -> None:
    async def step(helper: Helper) -> None:
        command = HelmCommand(Path(render.helm()), CHART, version=VERSION, api_versions=KINDS)
        for name, spec in SPECS.items():
            ours = await helper.render(render.NAMESPACE, asked(spec))
            theirs = await command.render(render.NAMESPACE, asked(spec))
            assert {each.digest: each.found for each in ours} == {each.digest: each.found for each in theirs}, name

    with_helper(step)


def test_what_the_caller_has_is_named_only() -> None:
    async def step(helper: Helper) -> None:
        whole = await helper.render(render.NAMESPACE, asked(values.monolith()))
        again = await helper.render(render.NAMESPACE, asked(values.monolith()), [each.digest for each in whole[1:]])
        assert again[0] == whole[0]
        assert [each.digest for each in again] == [each.digest for each in whole]
        assert all(each.found is None for each in again[1:])

    with_helper(step)


def test_a_refused_question_says_why_and_spoils_none_after_it() -> None:
    crowded = values.changed(values.workers(), {"size": {"cpu": 2, "memory": "2048Mi"}})

    async def step(helper: Helper) -> None:
        before = await helper.render(render.NAMESPACE, asked(values.monolith()))
        for _try in range(2):
            with pytest.raises(RenderError, match=r"^\d+ processes do not fit into 2048Mi"):
                await helper.render(render.NAMESPACE, asked(crowded))
            assert await helper.render(render.NAMESPACE, asked(values.monolith())) == before
        with pytest.raises(RenderError, match="additional properties"):
            await helper.render(render.NAMESPACE, asked(values.monolith(unknown=True)))
        assert await helper.render(render.NAMESPACE, asked(values.monolith())) == before

    with_helper(step)


def test_many_at_once_get_their_own_answers_and_a_killed_helper_comes_again() -> None:
    names = [f"hearth-{number}" for number in range(8)]

    async def all_of_them(helper: Helper) -> None:
        found = await asyncio.gather(*(helper.render(name, asked(values.monolith(), name)) for name in names))
        for name, documents in zip(names, found, strict=True):
            assert {each.found["metadata"]["namespace"] for each in documents if each.found} == {name}

    async def step(helper: Helper) -> None:
        await all_of_them(helper)
        assert helper.pid is not None
        os.kill(helper.pid, signal.SIGKILL)
        async with asyncio.timeout(60):
            while helper.pid is not None:  # noqa: ASYNC110 (its end is told to nobody else)
                await asyncio.sleep(0.01)
        await all_of_them(helper)

    with_helper(step)
