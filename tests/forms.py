"""Fill in and send a page's own forms over HTTP, the way a browser without scripts does."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

import httpx


@dataclass
class Form:
    """One form of a page: where it goes, and what its fields hold before anybody types."""

    action: str
    method: str
    fields: dict[str, str] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)


class _Forms(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.forms: list[Form] = []
        self._open = False
        self._select = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "form":
            self.forms.append(Form(values.get("action", ""), values.get("method", "get").lower()))
            self._open = True
        elif self._open and self.forms:
            self._field(tag, values, {name for name, _ in attrs})

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._open = False

    def _field(self, tag: str, values: dict[str, str], present: set[str]) -> None:
        form = self.forms[-1]
        name = values.get("name", "")
        if tag == "select":
            self._select = name
            form.names.add(name)
        elif tag == "option":
            if "selected" in present or self._select not in form.fields:
                form.fields[self._select] = values.get("value", "")
        elif tag in {"input", "textarea"} and name:
            form.names.add(name)
            if values.get("type") in {"checkbox", "radio"} and "checked" not in present:
                return
            form.fields[name] = values.get("value", "")


def forms(page: str) -> list[Form]:
    """Return the page's forms in order."""
    parser = _Forms()
    parser.feed(page)
    return parser.forms


def submit(client: httpx.Client, page: httpx.Response, action: str = "", **typed: str) -> httpx.Response:
    """Send the page's form whose action ends with `action` (or the one that has all typed fields), and follow it."""
    fitting = [
        form
        for form in forms(page.text)
        if form.method == "post" and (form.action.endswith(action) if action else set(typed) <= form.names)
    ]
    if not fitting:
        raise AssertionError(f"{page.url} has no form for {action or sorted(typed)}:\n{page.text}")
    form = fitting[0]
    target = page.url.join(form.action) if form.action else page.url
    return client.post(target, data={**form.fields, **typed}, headers={"Referer": str(page.url)})
