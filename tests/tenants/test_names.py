"""The grammar of server names, as the Matrix specification's appendices and DNS have it."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenants import names
from tenants.errors import Refused

SPECIFICATION = re.compile(r"[A-Za-z0-9.-]{1,230}")
LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)


@pytest.mark.parametrize("name", ["acme", "a", "4", "a-b", "x" * 63, "xn--mller-kva"])
def test_a_label_works(name: str) -> None:
    assert names.server_label(f" {name} ") == name


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("", "Give the server a name"),
        ("   ", "Give the server a name"),
        ("Acme", "Write “acme”"),
        ("müller", "“xn--mller-kva”"),
        ("\uff41cme", "Write “acme”"),
        ("a_b", "can't be a part"),
        ("-acme", "can't be a part"),
        ("acme-", "can't be a part"),
        ("ac me", "can't be a part"),
        ("acme\n.x", "has no dots"),
        ("a\x00b", "can't be a part"),
        ("acme.org", "has no dots"),
        ("x" * 64, "64 characters"),
        ("ab--cd", "two hyphens"),
        ("xn--99999999", "two hyphens"),
        ("admin", "kept free"),
        ("www", "kept free"),
        ("postmaster", "kept free"),
        ("m-0123456789abcdef0123456789abcdef", "kept free"),
        ("🙂", "no domain can have"),
    ],
)
def test_a_label_is_refused_with_a_sentence(name: str, sentence: str) -> None:
    with pytest.raises(Refused, match=sentence):
        names.server_label(name)


@pytest.mark.parametrize("name", ["example.org", "chat.example.org", "example.org.", "xn--mller-kva.example"])
def test_a_domain_works(name: str) -> None:
    assert names.domain_name(name) == name.removesuffix(".")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("", "Type the domain"),
        ("example", "only one part"),
        ("https://example.org/", "without https"),
        ("alice@example.org", "without https"),
        ("example.org:8448", "without a port"),
        ("192.0.2.1", "IP address"),
        ("2001:db8::1", "IP address"),
        ("[2001:db8::1]", "IP address"),
        ("1.2.3", "ends in a number"),
        ("example..org", "two dots"),
        (".example.org", "two dots"),
        ("Example.org", "Write “example.org”"),
        ("straße.example", "xn--"),
        ("under_score.example", "can't be a part"),
        (f"{'a.' * 115}org", "Matrix allows 230"),
    ],
)
def test_a_domain_is_refused_with_a_sentence(name: str, sentence: str) -> None:
    with pytest.raises(Refused, match=sentence):
        names.domain_name(name)


def answer_of(check: Callable[[str], str], raw: str) -> str:
    """Return the name, which never ends in a dot, or the sentence, which always does."""
    try:
        name = check(raw)
    except Refused as refusal:
        return refusal.message
    return name if not name.endswith(".") else ""


@given(st.text(max_size=300))
def test_whatever_is_typed_gets_a_name_of_the_grammar_or_a_sentence(raw: str) -> None:
    for check in (names.server_label, names.domain_name):
        answer = answer_of(check, raw)
        assert answer.endswith(".") or (SPECIFICATION.fullmatch(answer) and answer == answer.lower())


@given(st.lists(LABEL, min_size=1, max_size=4), st.sampled_from(["org", "example", "museum"]))
def test_every_plain_dns_name_is_taken(labels: list[str], top: str) -> None:
    name = ".".join([*labels, top])
    plain = all(label[2:4] != "--" for label in labels)
    if plain and len(name) <= names.MAX_LENGTH:
        assert names.domain_name(name) == name


def test_parents_go_up_to_the_top() -> None:
    assert names.parents("a.example.org") == ["a.example.org", "example.org", "org"]


def test_a_name_of_230_characters_is_the_longest() -> None:
    longest = ".".join(["x" * 63, "x" * 63, "x" * 63, "x" * 38])
    assert len(longest) == 230
    assert names.domain_name(longest) == longest
    with pytest.raises(Refused, match="231 characters"):
        names.domain_name(f"{longest}x")
