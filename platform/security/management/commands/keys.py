"""`manage.py keys`: see, rotate and move keys, and know what to back up."""

from __future__ import annotations

import argparse
import json
import os
import uuid
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.core.serializers.json import DjangoJSONEncoder

from audit.services import SYSTEM
from security import reseal
from security.errors import KeysDamaged, SecurityError
from security.keyring import bundle, keks, publish, recovery, report, rewrap, roots, running, upkeep
from security.keyring.places import FolderPlace
from security.models import PLATFORM, KeyEncryptionKey, Rewrap, RootKey


class Command(BaseCommand):
    help = "Shows, rotates, rewraps and moves Hearth's keys, and says what to back up."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--report", action="store_true", help="the same as the verb `report`")
        parser.add_argument("--json", action="store_true", help="the report as JSON")
        verbs = parser.add_subparsers(dest="verb", parser_class=argparse.ArgumentParser)
        verbs.add_parser("show", help="every key, and what to back up")
        page = verbs.add_parser("report", help="every key's age, next rotation, and what is overdue")
        # Its absence here must not take back what was said before the verb.
        page.add_argument("--json", action="store_true", default=argparse.SUPPRESS)
        turn = verbs.add_parser("rotate", help="a new version for one owner, or for everybody")
        turn.add_argument("--owner", help="an organisation's id, or `platform`; without it: everybody")
        turn.add_argument("--compromised", action="store_true", help="the key may be known to others")
        verbs.add_parser("rewrap", help="move data keys to active versions now")
        verbs.add_parser("reseal", help="bring sealed values to the present form, and off compromised keys")
        gone = verbs.add_parser("destroy", help="one old version, when nothing is wrapped by it")
        gone.add_argument("owner", help="an organisation's id, or `platform`")
        gone.add_argument("version", type=int)
        verbs.add_parser("rotate-root", help="a new root key in the same key source")
        verbs.add_parser("move-to-hsm", help="a new root key in the HSM; nothing stops meanwhile")
        write = verbs.add_parser("bundle", help="write the encrypted key bundle of a place to a new file")
        write.add_argument("place", help="the place's name, such as a region")
        write.add_argument("file", type=Path)
        write.add_argument("--owner", action="append", help="only these owners' keys; may be given several times")
        read = verbs.add_parser("restore-bundle", help="restore one key bundle into an empty database")
        read.add_argument("place")
        read.add_argument("file", type=Path)
        every = verbs.add_parser("restore-bundles", help="restore all there is at the places into an empty database")
        every.add_argument("places", nargs="*", help="`name:/path`; without any: those of HEARTH_KEY_BUNDLES")
        verbs.add_parser("publish", help="write the whole keyring to every place now")

    def handle(self, *args: Any, **options: Any) -> None:  # noqa: ARG002 (Django's signature)
        verb = options["verb"] or ("report" if options["report"] else "show")
        do = getattr(self, "_" + verb.replace("-", "_"))
        try:
            do(options)
        except SecurityError as error:
            raise CommandError(str(error)) from None
        except OSError as error:
            raise CommandError(f"{error.filename}: {error.strerror}. No key was changed.") from None

    def _show(self, options: dict[str, Any]) -> None:  # noqa: ARG002 (all verbs are called alike)
        self._print(report.report())
        self._backup()

    def _report(self, options: dict[str, Any]) -> None:
        found = report.report()
        if options["json"]:
            self.stdout.write(json.dumps(found.as_json(), cls=DjangoJSONEncoder))
        else:
            self._print(found)

    def _rotate(self, options: dict[str, Any]) -> None:
        active = KeyEncryptionKey.objects.filter(state=KeyEncryptionKey.State.ACTIVE)
        owners = [_owner(options["owner"])] if options["owner"] else list(active.values_list("owner", flat=True))
        for owner in owners:
            if not active.filter(owner=owner).exists():
                raise CommandError(f"There is no key of {owner}. Nothing was changed. manage.py keys show lists all.")
            new = keks.rotate(SYSTEM, owner, compromised=options["compromised"])
            self.stdout.write(f"{report.name(owner)}: version {new.version} is active.")
        self.stdout.write("Data keys move in the background; to do it now: manage.py keys rewrap")
        if options["compromised"]:
            self.stdout.write(
                "What the old keys encrypted must be encrypted again: manage.py keys reseal, new backups."
            )

    def _rewrap(self, options: dict[str, Any]) -> None:  # noqa: ARG002 (all verbs are called alike)
        def progress(run: Rewrap) -> None:
            self.stdout.write(f"{report.name(run.owner)}: {run.done} of {run.total}")

        moved = rewrap.drive(per_second=float(settings.HEARTH["HEARTH_REWRAP_PER_SECOND"]), progress=progress)
        self.stdout.write(f"Looked at {moved} data keys. No data was read.")
        for run in Rewrap.objects.filter(finished__isnull=True):
            self.stdout.write(f"Not done: {report.name(run.owner)}. {run.error or 'Another worker has it.'}")

    def _destroy(self, options: dict[str, Any]) -> None:
        owner = _owner(options["owner"])
        kek = KeyEncryptionKey.objects.filter(owner=owner, version=options["version"]).first()
        if kek is None:
            raise CommandError(f"There is no version {options['version']} of {owner}. Nothing was changed.")
        keks.destroy(SYSTEM, kek)
        self.stdout.write(f"Destroyed version {kek.version} of {report.name(owner)}. Nothing was wrapped by it.")

    def _reseal(self, options: dict[str, Any]) -> None:  # noqa: ARG002 (all verbs are called alike)
        done, faults = reseal.reseal()
        self.stdout.write(f"Sealed {done} values anew.")
        for fault in faults:
            self.stdout.write(f"NOT OPENED: {fault}")

    def _rotate_root(self, options: dict[str, Any]) -> None:  # noqa: ARG002 (all verbs are called alike)
        self._new_root(None)

    def _move_to_hsm(self, options: dict[str, Any]) -> None:  # noqa: ARG002 (all verbs are called alike)
        # The command's own sources first: where they lack the HSM too, that is the sentence to read.
        roots.source("hsm").roots()
        if lacking := running.lacking(settings.HEARTH):
            raise CommandError(
                f"These processes of Hearth know nothing of this HSM: {', '.join(lacking)}. After the move they could "
                "open no key. Nothing was changed. Set HEARTH_HSM_MODULE, HEARTH_HSM_TOKEN and HEARTH_HSM_PIN_FILE "
                "where Hearth is started, restart it, and run this again."
            )
        self._new_root("hsm")

    def _new_root(self, kind: str | None) -> None:
        present = roots.ensure_root()
        if present.kind != kind if kind else not self._interrupted(present):
            present = roots.rotate_root(SYSTEM, kind=kind)
        self.stdout.write(f"The root key {present.id} is active. {roots.move_keks(SYSTEM)} keys were moved to it.")
        for root in RootKey.objects.filter(state=RootKey.State.READABLE):
            self.stdout.write(f"The root key {root.id} is still needed by {roots.in_use(root)} others. Keep it.")
        for root in RootKey.objects.filter(state=RootKey.State.RETIRED):
            self.stdout.write(
                f"The root key {root.id} is needed no more. Before you remove it: write new key bundles, and keep it "
                "as long as backups of the database from before this move are kept."
            )
        self._backup()

    def _interrupted(self, present: RootKey) -> bool:
        """Tell whether an earlier rotation is to be finished first; that makes no further root key."""
        if not roots.unmoved(present).exists():
            return False
        try:
            self.stdout.write(f"Finished an earlier rotation: {roots.move_keks(SYSTEM)} keys were moved.")
        except KeysDamaged as error:
            # With nothing left but damaged keys it is as finished as it can be.
            if error.moved:
                raise
            return False
        return True

    def _bundle(self, options: dict[str, Any]) -> None:
        owners = [_owner(owner) for owner in options["owner"]] if options["owner"] else None
        data = bundle.build(options["place"], owners)
        handle = os.open(options["file"], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(handle)
        self.stdout.write(
            f"Wrote {options['file']} ({len(data)} bytes). Only the root key opens it. Remove it within "
            f"{settings.HEARTH['HEARTH_KEY_BUNDLE_DAYS']} days: erasures count on that."
        )

    def _restore_bundle(self, options: dict[str, Any]) -> None:
        found = bundle.parse(options["file"].read_bytes(), options["place"])
        count = recovery.recover(SYSTEM, [found])
        self.stdout.write(f"Restored {len(found.keks)} key versions and {count} data keys of {found.created:%d %B %Y}.")

    def _restore_bundles(self, options: dict[str, Any]) -> None:
        given = [entry.partition(":") for entry in options["places"]]
        if not all(name and path for name, _, path in given):
            raise CommandError("Name each place as `name:/path`, such as east:/mnt/east. Nothing was restored.")
        places = [FolderPlace(name, Path(path)) for name, _, path in given] or publish.places()
        done = recovery.from_places(SYSTEM, places)
        self.stdout.write(f"Restored {done.data_keys} data keys from {done.bundles} bundles.")
        for fault in done.faults:
            self.stdout.write(f"NOT READ: {fault}")

    def _publish(self, options: dict[str, Any]) -> None:  # noqa: ARG002 (all verbs are called alike)
        for place in publish.places():
            count = upkeep.write_whole(place)
            self.stdout.write(f"Wrote the whole keyring to {place.name}, in {count} parts, and read it back.")

    def _backup(self) -> None:
        self.stdout.write("\nBack up:")
        for line in report.to_back_up():
            self.stdout.write(f"  {line}")

    def _print(self, found: report.Report) -> None:
        for source in found.sources:
            self.stdout.write("Source: " + ", ".join(f"{word} {value}" for word, value in source.items() if value))
        for line in found.keys:
            due = f"next rotation {line.next_rotation:%d %B %Y}" if line.next_rotation else ""
            count = f"{line.data_keys} data keys" if line.data_keys is not None else ""
            late = "OVERDUE" if line.overdue else ""
            words = [line.state, f"{line.age_days} days old", count, due, late]
            self.stdout.write(f"{line.key}: " + ", ".join(word for word in words if word))
        for run in found.rewraps:
            self.stdout.write(f"Rewrap of {run['owner']}: {run['done']} of {run['total']}. {run['error']}".rstrip())
        for row in found.erasures:
            self.stdout.write(f"Erasure of {row['owner']}: complete on {row['complete_on']:%d %B %Y}")
        self.stdout.write(f"Overdue: {len(found.overdue)} (a key is replaced after {found.rotation_days} days)")


def _owner(text: str) -> uuid.UUID:
    if text == "platform":
        return PLATFORM
    try:
        return uuid.UUID(text)
    except ValueError:
        raise CommandError(f"{text} is neither an organisation's id nor `platform`. Nothing was changed.") from None
