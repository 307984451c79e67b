"""Renders a server's documents: by Helm's engine in a resident helper, or, where there is none, by the helm command.

Both give the same: each document with the digest of its text. The helper parses only those that the caller has not.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import orjson
import yaml

log = logging.getLogger(__name__)

RELEASE = "synapse"
LONGEST = 20.0  # seconds
LINE = 16 << 20  # bytes of the longest answer
BETWEEN = re.compile(r"(?:^|\s*\n)---\s*(?:\n|$)")
SOURCE = re.compile(r"\A# Source: .*\n")


class RenderError(Exception):
    """The chart can't be rendered with these values; the text is Helm's."""


class RenderUnavailableError(Exception):
    """The renderer did not answer. Trying again can help."""


@dataclass(frozen=True, slots=True)
class Document:
    """One rendered document; `found` is None when the caller said that it has it."""

    digest: str
    found: dict[str, Any] | None


class Renderer(Protocol):
    """Renders values into documents."""

    async def render(self, namespace: str, values: dict[str, Any], have: Iterable[str] = ()) -> list[Document]:
        """Return the documents of one server; those with a digest in `have` without their content."""

    async def close(self) -> None:
        """End what runs."""


class Helper:
    """The resident helper (`render/main.go`): started when first needed, and again when it has died."""

    def __init__(self, program: Path, chart: Path, *, version: str, api_versions: Sequence[str]) -> None:
        self._words = [str(program), "-chart", str(chart), "-kube-version", version]
        self._words += [word for each in sorted(api_versions) for word in ("-api-version", each)]
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._last = 0
        self._starting = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """The helper's process, if it runs."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def render(self, namespace: str, values: dict[str, Any], have: Iterable[str] = ()) -> list[Document]:
        """See `Renderer`."""
        stdin = await self._input()
        number = self._last = self._last + 1
        asked = {"id": number, "release": RELEASE, "namespace": namespace, "values": values, "have": list(have)}
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        try:
            stdin.write(orjson.dumps(asked, option=orjson.OPT_APPEND_NEWLINE))
            async with asyncio.timeout(LONGEST):
                await stdin.drain()
                found = await answer
        except (OSError, TimeoutError) as error:
            raise RenderUnavailableError(f"the render helper did not answer: {error}") from error
        finally:
            self._answers.pop(number, None)
        if error_text := found.get("error"):
            raise RenderError(error_text)
        return [Document(each["digest"], each.get("object")) for each in found.get("documents") or ()]

    async def _input(self) -> asyncio.StreamWriter:
        async with self._starting:
            if self.pid is None:
                pipe = asyncio.subprocess.PIPE
                try:
                    self._process = await asyncio.create_subprocess_exec(
                        *self._words, stdin=pipe, stdout=pipe, limit=LINE, start_new_session=True
                    )
                except OSError as error:
                    raise RenderUnavailableError(f"the render helper can't be started: {error}") from error
                self._reader = asyncio.create_task(self._read(self._process))
            if self._process is None or self._process.stdin is None:
                raise RenderUnavailableError("the render helper has no input")
            return self._process.stdin

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        if process.stdout is None:
            return
        with contextlib.suppress(ValueError, OSError):
            while line := await process.stdout.readline():
                found = orjson.loads(line)
                waiting = self._answers.get(found["id"])
                if waiting is not None and not waiting.done():
                    waiting.set_result(found)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        for waiting in self._answers.values():
            if not waiting.done():
                waiting.set_exception(RenderUnavailableError("the render helper has ended"))

    async def close(self) -> None:
        """End the helper."""
        if self._process and self._process.stdin:
            self._process.stdin.close()
        if self._reader:
            await self._reader


class HelmCommand:
    """The `helm` command, once for each render: some fifty milliseconds instead of four."""

    def __init__(self, program: Path, chart: Path, *, version: str, api_versions: Sequence[str]) -> None:
        self._words = [str(program), "template", RELEASE, str(chart), "--kube-version", version]
        self._words += [word for each in sorted(api_versions) for word in ("--api-versions", each)]

    async def render(self, namespace: str, values: dict[str, Any], have: Iterable[str] = ()) -> list[Document]:
        """See `Renderer`."""
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(values, file)
            file.flush()
            pipe = asyncio.subprocess.PIPE
            words = [*self._words, "--namespace", namespace, "--values", file.name]
            process = await asyncio.create_subprocess_exec(*words, stdout=pipe, stderr=pipe)
            out, fault = await process.communicate()
        if process.returncode:
            raise RenderError(fault.decode("utf-8", "replace").strip())
        return list(split(out.decode(), set(have)))

    async def close(self) -> None:
        """Nothing runs."""


def split(text: str, have: set[str]) -> Iterable[Document]:
    """Yield the documents of helm's output, each with the digest that the helper gives it too."""
    for part in BETWEEN.split(text):
        document = SOURCE.sub("", part.strip()).strip()
        if any(line.strip() and not line.strip().startswith("#") for line in document.splitlines()):
            digest = sha256(document.encode()).hexdigest()[:16]
            yield Document(digest, None if digest in have else yaml.safe_load(document))
