"""Requests that are too large are refused before anybody keeps them."""

from __future__ import annotations

import asyncio

import pytest

from config.body import Message, Receive, Send, limited


def send(pieces: list[bytes], length: str | None = None) -> tuple[list[str], list[Message]]:
    """Send a request in pieces to a small application behind the limit; return what it received, and the answer."""
    received: list[str] = []
    answer: list[Message] = []
    waiting: list[Message] = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]

    async def app(_scope: Message, receive: Receive, _send: Send) -> None:
        received.extend([(await receive())["type"] for _ in pieces])

    async def receive() -> Message:
        return waiting.pop(0)

    async def keep(message: Message) -> None:
        answer.append(message)

    headers = [] if length is None else [(b"content-length", length.encode())]
    asyncio.run(limited(app, largest=10)({"type": "http", "headers": headers}, receive, keep))
    return received, answer


def test_it_works() -> None:
    assert send([b"12345", b"67890"], "10") == (["http.request"] * 2, [])


@pytest.mark.parametrize("length", ["11", "9" * 5000])
def test_an_announced_length_is_refused_unread(length: str) -> None:
    received, answer = send([b"x"], length)
    assert received == []
    assert answer[0]["status"] == 413
    assert b"Nothing was saved" in answer[1]["body"]


@pytest.mark.parametrize("length", [None, "5", "nonsense"])
def test_what_comes_without_an_honest_length_is_counted(length: str | None) -> None:
    assert send([b"12345", b"67890", b"1"], length)[0] == ["http.request", "http.request", "http.disconnect"]
