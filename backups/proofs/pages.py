"""Proofs and drills in plain words, for pages. Reads alone, a fixed number of queries each."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from django.core.paginator import Page, Paginator

from backups.proofs import drills
from backups.proofs.models import Drill, Proof
from tenants.models import Server

PAGE = 20
TONES = {Proof.Result.PASSED: "good", Proof.Result.FAILED: "bad", Proof.Result.MISSED: "bad", "": "busy"}
STEPS = {
    "begin": "Waits for room",
    "recover": "Begins",
    "follow": "Brings the server back",
    "check": "Starts it and checks that it answers",
    "compare": "Compares it with the living server",
    "read": "Reads",
}


@dataclass(frozen=True)
class Shown:
    """One proof as a page shows it."""

    proof: Proof
    title: str
    label: str
    tone: str
    text: str


def proofs(server: Server, page: str | None) -> Page[Proof]:
    """Return a server's proofs, newest first; daily listings are left out, unless they found something."""
    rows = Proof.objects.filter(server=server).exclude(kind=Proof.Kind.LISTING, result=Proof.Result.PASSED)
    return Paginator(rows.order_by("-begun"), PAGE).get_page(page)


def shown(proof: Proof) -> Shown:
    """Return it in words."""
    titles = {
        Proof.Kind.LISTING: "Look through the store",
        Proof.Kind.READING: "Full read",
        Proof.Kind.RECOVERY: "Recovery test",
    }
    title = titles[Proof.Kind(proof.kind)] + (", part of a drill" if proof.drill_id else "")
    label = proof.get_result_display() if proof.result else "In progress"
    text = proof.summary or STEPS.get(proof.step, "")
    if not proof.result and proof.total_bytes:
        text += f", {min(100 * proof.done_bytes // proof.total_bytes, 100)} %"
    return Shown(proof, title, label, TONES.get(Proof.Result(proof.result) if proof.result else "", "busy"), text)


def facts(proof: Proof) -> list[tuple[str, str]]:
    """Return the evidence of a proof, line by line, for people."""
    found = _reading(proof) if proof.kind != Proof.Kind.RECOVERY else [*_recovery(proof), *_compared(proof)]
    damage = [(each["name"], each["text"]) for each in proof.evidence.get("damage", ())]
    return [*found, *damage]


def _reading(proof: Proof) -> list[tuple[str, str]]:
    told = proof.evidence
    found = [("Store", str(told.get("store", "")))]
    if proof.point:
        found.append(("Restore point", proof.point))
    if "objects" in told:
        found.append(("Objects", f"{told['objects']:,}"))
    if told.get("bytes"):
        found.append(("Read", f"{told['bytes'] / 1e6:,.1f} MB"))
    if proof.kind == Proof.Kind.READING and proof.result == Proof.Result.PASSED:
        found.append(
            ("Database", "Each file was compared with PostgreSQL's own manifest, each page of the log looked at")
        )
        media = "Each file was compared with its keyed hash" if told.get("hashed") else "Decrypted; not hashed"
        found.append(("Media", media))
    hit = told.get("damaged_restore_points", ())
    if hit:
        found.append(("Restore points that are damaged", ", ".join(hit)))
    if told.get("sound_restore_points"):
        found.append(("Restore points that are whole", ", ".join(told["sound_restore_points"])))
    return found


def _recovery(proof: Proof) -> list[tuple[str, str]]:
    told, restored = proof.evidence, proof.evidence.get("restored", {})
    found = [("Restore point", proof.point)] if proof.point else []
    if proof.moment:
        found.append(("Brought back to", f"{proof.moment:%Y-%m-%d %H:%M:%S} UTC"))
    if proof.store:
        found.append(("From the store", proof.store.name))
    if proof.rto_seconds is not None:
        found.append(("Back after (RTO)", f"{proof.rto_seconds:,.0f} s"))
    if proof.rpo_seconds is not None:
        found.append(("A loss then would have cost (RPO)", f"{proof.rpo_seconds:,.0f} s of work"))
    if restored:
        found.append(("Last change brought back", str(restored.get("last_commit") or "none after the restore point")))
        hashed = ", each compared with its keyed hash" if restored.get("media_hashed") else ""
        found.append(("Files", f"{restored.get('media_files', 0):,}{hashed}"))
        found.append(("Structure of the database", STRUCTURE[bool(restored.get("checked"))]))
    if checks := told.get("checks"):
        text = f"Synapse {checks['synapse_version']} answered, signed with {checks['signing_key_id']}, a sign-in worked"
        found.append(("Checks", text))
    return found


STRUCTURE = {
    True: "Looked at by pg_amcheck: no fault",
    False: "pg_amcheck is not part of this PostgreSQL; each file of the base backup was compared with PostgreSQL's own "
    "manifest before replay",
}


def _compared(proof: Proof) -> list[tuple[str, str]]:
    told = proof.evidence.get("compared")
    if not told:
        return []
    found = [("Accounts", f"{told.get('accounts', 0):,}"), ("Rooms", f"{told.get('rooms', 0):,}")]
    if told.get("living") != "asked":
        return [*found, ("Compared with the living server", f"No: it was {told.get('living', 'not asked')}")]
    lacks = len(told.get("accounts_missing", ()))
    found.append(
        ("Accounts compared", f"{told['accounts_compared']:,}, {'some are missing' if lacks else 'none missing'}")
    )
    if told.get("events_compared"):
        wrong = told.get("events_missing") or told.get("events_changed")
        text = "some are missing or differ" if wrong else "all are there and alike"
        found.append(("Events of one room compared", f"{told['events_compared']:,}, {text}"))
    else:
        found.append(("Events of one room compared", "There was none to compare"))
    return found


@dataclass(frozen=True)
class Row:
    """One server of a drill's report. Times in seconds from the loss."""

    place: int
    server: str
    organisation: str
    plan: str
    result: str
    rto_seconds: float | None
    rto_met: bool
    rpo_seconds: float | None
    rpo_met: bool
    own_seconds: float | None
    """From its own turn on."""
    store: str
    point: str
    summary: str


@dataclass(frozen=True)
class Report:
    """What a drill has shown."""

    drill: Drill
    rows: list[Row]

    @property
    def counts(self) -> dict[str, int]:
        done = [row for row in self.rows if row.result]
        return {
            "servers": len(self.rows),
            "ended": len(done),
            "back": sum(row.result == Proof.Result.PASSED for row in done),
            "rto_met": sum(row.rto_met for row in done),
            "rpo_met": sum(row.rpo_met for row in done),
            "missed": sum(row.result == Proof.Result.MISSED for row in done),
        }

    @property
    def worst(self) -> dict[str, float | None]:
        """The longest of each; None where nothing was measured."""
        return {
            "rto_seconds": max((row.rto_seconds for row in self.rows if row.rto_seconds is not None), default=None),
            "rpo_seconds": max((row.rpo_seconds for row in self.rows if row.rpo_seconds is not None), default=None),
        }

    def json(self) -> str:
        """Return all of it for machines. Times are UTC."""
        drill = self.drill
        told = {
            "drill": str(drill.pk),
            "name": drill.name,
            "region": drill.region.code,
            "target": drill.target.code,
            "planned": drill.planned.isoformat(),
            "begun": drill.begun.isoformat() if drill.begun else None,
            "ended": drill.ended.isoformat() if drill.ended else None,
            "result": drill.result,
            "summary": drill.summary,
            "goals": {"rto_seconds": drill.rto_goal, "rpo_seconds": drill.rpo_goal},
            "counts": self.counts,
            "worst": self.worst,
            "servers": [asdict(row) for row in self.rows],
        }
        return json.dumps(told, indent=1)

    def csv(self) -> str:
        """Return the servers as a table. What a spreadsheet would take for a formula is made a text."""
        out = io.StringIO()
        writer = csv.DictWriter(out, list(Row.__dataclass_fields__))
        writer.writeheader()
        writer.writerows({key: _plain(value) for key, value in asdict(row).items()} for row in self.rows)
        return out.getvalue()


def _plain(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value[:1] in {"=", "+", "-", "@", "\t", "\r"} else value


def report(drill: Drill) -> Report:
    """Return a drill's report, also while it runs."""
    return Report(drill, list(_rows(drill)))


def _rows(drill: Drill) -> Iterator[Row]:
    wanted = ("server__organisation__subscription__plan", "store")
    for proof in drill.proofs.select_related(*wanted).order_by("place", "pk"):
        organisation = proof.server.organisation
        subscription = getattr(organisation, "subscription", None)
        passed = proof.result == Proof.Result.PASSED
        yield Row(
            place=proof.place + 1,
            server=proof.server.server_name,
            organisation=organisation.name,
            plan=subscription.plan.name if subscription else "",
            result=proof.result,
            rto_seconds=proof.rto_seconds,
            rto_met=passed and drills.meets_rto(drill, proof),
            rpo_seconds=proof.rpo_seconds,
            rpo_met=passed and drills.meets_rpo(drill, proof),
            own_seconds=proof.evidence.get("own_seconds"),
            store=proof.store.name if proof.store else "",
            point=proof.point,
            summary=proof.summary or STEPS.get(proof.step, ""),
        )
